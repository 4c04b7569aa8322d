from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.agent.holders import create
from relay.agent.holders.create import KernelCreator, StartRequest
from relay.agent.launchers.local import RuntimeInfo
from relay.config import AgentConfig, CullSettings, KernelSettings, ListenSettings
from relay.config.holder import HolderConfig
from relay.errors import AgentUnavailable, Forbidden, TooMany
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder, KernelRecord, kernels_folder
from relay.model import Principal

ADA, BOB = Principal("token", "ada"), Principal("token", "bob")
RECORD = KernelRecord(holder_pid=1, holder_started=1, epoch="e", state="ready")


class FakeStarter:
    """A `Starter` whose holders hold their folders' locks, as real ones do."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self.problem: OSError | None = None
        self.started: list[str] = []
        self.disbelieved: set[str] = set()
        self._locks: list[int] = []

    def open_folders(self) -> None:
        pass

    async def prepare(self, kernel_folder: KernelFolder, owner: Principal) -> RuntimeInfo:
        kernel_folder.path.mkdir(exist_ok=True)
        return RuntimeInfo(self._runtime)

    async def start(self, kernel_folder: KernelFolder, owner: str, lock: int) -> int:
        if self.problem is not None:
            raise self.problem
        self._locks.append(os.dup(lock))
        self.started.append(kernel_folder.kernel_id)
        return 1

    async def bury(self, kernel_folder: KernelFolder, lock: int) -> None:
        raise NotImplementedError

    def believes(self, kernel_folder: KernelFolder, owner: str) -> bool:
        return kernel_folder.kernel_id not in self.disbelieved

    def end(self) -> None:
        """End all holders."""
        while self._locks:
            os.close(self._locks.pop())


class Agent:
    """An agent that starts kernels."""

    def __init__(self, state: Path, launcher: FakeStarter, **settings: Any) -> None:
        self.config = AgentConfig(
            cluster="alpha",
            listen=ListenSettings(host="127.0.0.1", port=0),
            state_dir=str(state),
            ticket_keys=["ticket.pub"],
            **settings,
        )
        self.folder = kernels_folder(state, "alpha")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.replaced: list[str] = []
        self._maker = KernelCreator(self.config, launcher, 1, self._replace)

    async def _replace(self, kernel_folder: KernelFolder, lock: int) -> None:
        os.fstat(lock)
        self.replaced.append(kernel_folder.kernel_id)
        os.close(lock)

    def kernel_folder(self, name: str) -> KernelFolder:
        return KernelFolder(self.folder / name)

    async def make(
        self,
        name: str,
        owner: Principal = ADA,
        quota: int | None = None,
        gone: frozenset[str] = frozenset(),
    ) -> None:
        request = StartRequest(
            kernel_id=name,
            name="python3",
            owner=owner,
            environment={},
            parameters={},
            working_folder=None,
            cull=CullSettings(),
            launch_timeout=7.0,
            max_kernels=quota,
            request_id="r1",
        )
        await self._maker.make(self.kernel_folder(name), request, gone)


@pytest.fixture
def launcher(tmp_path: Path) -> Any:
    launcher = FakeStarter(tmp_path)
    yield launcher
    launcher.end()


@pytest.fixture
def agent(tmp_path: Path, launcher: FakeStarter) -> Agent:
    return Agent(tmp_path / "state", launcher)


async def test_a_kernel_gets_a_folder_a_request_and_a_holder(
    agent: Agent, launcher: FakeStarter, tmp_path: Path
) -> None:
    await agent.make("k1")
    assert launcher.started == ["k1"]
    noted = msgspec.json.decode(agent.kernel_folder("k1").request.read_bytes(), type=HolderConfig)
    assert (noted.owner, noted.name, noted.request_id) == ("token:ada", "python3", "r1")
    assert noted.kernels.launch_timeout == 7.0
    assert Path(noted.socket).parent == tmp_path
    # The holder has the lock now, and it alone.
    assert agent.kernel_folder("k1").try_lock() is None
    launcher.end()
    lock = agent.kernel_folder("k1").try_lock()
    assert lock is not None
    os.close(lock)


async def test_a_kernel_that_has_a_holder_gets_no_other(
    agent: Agent, launcher: FakeStarter
) -> None:
    for _ in range(2):
        await agent.make("k1", quota=1)
    assert launcher.started == ["k1"]
    assert agent.replaced == []


async def test_a_holder_that_died_is_replaced(agent: Agent, launcher: FakeStarter) -> None:
    await agent.make("k1")
    launcher.end()
    write_atomic(agent.kernel_folder("k1").record, msgspec.json.encode(RECORD))
    await agent.make("k1")
    assert launcher.started == ["k1"]
    assert agent.replaced == ["k1"]


async def test_one_more_than_there_is_room_for(tmp_path: Path, launcher: FakeStarter) -> None:
    agent = Agent(tmp_path, launcher, shared_uid=True, kernels=KernelSettings(max_kernels=3))
    await agent.make("k1", quota=2)
    await agent.make("k2", quota=2)
    with pytest.raises(TooMany, match=r"quotas\.user_kernels"):
        await agent.make("k3", quota=2)
    await agent.make("k3", BOB, quota=2)
    with pytest.raises(TooMany, match=r"kernels\.max_kernels"):
        await agent.make("k4", BOB, quota=2)
    assert launcher.started == ["k1", "k2", "k3"]
    assert not agent.kernel_folder("k4").path.exists()


async def test_what_has_ended_or_is_not_believed_takes_no_room(
    agent: Agent, launcher: FakeStarter
) -> None:
    for name in ("k1", "k2", "k3"):
        await agent.make(name)
    ending = msgspec.structs.replace(RECORD, state="ending")
    write_atomic(agent.kernel_folder("k2").record, msgspec.json.encode(ending))
    launcher.disbelieved.add("k3")
    with pytest.raises(TooMany):
        await agent.make("k4", quota=1)
    await agent.make("k4", quota=1, gone=frozenset({"k1"}))
    assert launcher.started[-1] == "k4"


async def test_on_one_uid_there_is_one_user(
    agent: Agent, launcher: FakeStarter, tmp_path: Path
) -> None:
    await agent.make("k1")
    with pytest.raises(Forbidden, match="shared_uid"):
        await agent.make("k2", BOB)
    await Agent(tmp_path / "state", launcher, shared_uid=True).make("k2", BOB)
    assert launcher.started == ["k1", "k2"]


async def test_of_a_start_that_fails_nothing_is_left(agent: Agent, launcher: FakeStarter) -> None:
    launcher.problem = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        await agent.make("k1")
    assert not agent.kernel_folder("k1").path.exists()


async def test_an_agent_waits_for_the_others_and_not_for_ever(
    agent: Agent, launcher: FakeStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create, "_TURN", 0.0)
    with (agent.folder.parent / "starts.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AgentUnavailable, match="Another agent"):
            await agent.make("k1")
    assert launcher.started == []
    await agent.make("k1")
    assert launcher.started == ["k1"]
