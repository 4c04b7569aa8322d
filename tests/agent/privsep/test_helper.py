from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from relay.agent.holder_process import HolderFiles
from relay.agent.privsep import helper
from relay.agent.privsep.folders import UserFolders
from relay.agent.privsep.helper import PrivilegedHelper, _Holders
from relay.agent.privsep.os_users import OsUser, OsUsers
from relay.agent.privsep.protocol import HelperRequest, HelperResponse, receive
from relay.config import AgentConfig, AgentTls, LaunchAs, ListenSettings
from relay.errors import Forbidden
from relay.kernel_folders import KernelFolder, kernels_folder
from relay.model import Principal
from relay.processes import Command, StartError

ID = "0a0a0a0a-0000-4000-8000-000000000001"
AGENT = OsUser("relay", 54001, 54001, "/", "")
ALICE = OsUser("alice", 54002, 54012, "/home/alice", "")
BOB = OsUser("bob", 54003, 54013, "/", "")


class Users(OsUsers):
    def of(self, principal: Principal) -> OsUser:
        if principal != Principal("token", "alice"):
            raise Forbidden("launch_as")
        return ALICE


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        cluster="alpha",
        listen=ListenSettings(port=0),
        state_dir=str(tmp_path / "state"),
        runtime_dir=str(tmp_path / "run"),
        user="daemon",
        launch_as=LaunchAs(),
        tls=AgentTls(certificate="a.pem", key="a.key", client_ca="ca.pem"),
        ticket_keys=["a.pub"],
    )


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
@as_root
def test_a_configuration_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "agent.yaml"
    path.touch()
    path.chmod(mode)
    with pytest.raises(StartError, match="writable by nobody else"):
        helper.run(config(tmp_path), path, {})
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(StartError, match="writable by nobody else"):
        helper.run(config(tmp_path), path, {})
    tmp_path.chmod(0o755)
    os.chown(path, AGENT.uid, 0)
    with pytest.raises(StartError, match="must be root's"):
        helper.run(config(tmp_path), path, {})


def test_only_root_can_launch_as_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StartError, match="as root"):
        helper.run(config(tmp_path), tmp_path / "agent.yaml", {})


class Bench:
    """A helper without an agent process: its answers come out of ``channel``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernels = kernels_folder(folder / "state", "alpha")
        self.kernels.mkdir(parents=True)
        (folder / "run").mkdir()
        for path in (folder / "run", self.kernels.parent, self.kernels):
            os.chown(path, AGENT.uid, AGENT.gid)
        self.ran: list[tuple[KernelFolder, HolderFiles, Mapping[str, str], list[str]]] = []
        self.users: list[dict[str, Any]] = []
        self.emptied: list[tuple[str, int]] = []
        self.sticky = 0
        """Times that a folder is not emptied: its user has killed the cleanup."""
        monkeypatch.setattr(helper, "run_holder", self._run)
        monkeypatch.setattr(helper, "empty_as_owner", self._empty)
        folders = UserFolders(folder / "state", "alpha", folder / "run", AGENT)
        settings = LaunchAs(umask="027")
        self.holders = _Holders(settings, Users(settings, AGENT), folders, {"LANG": "C"})
        ours, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets = ours, self.channel
        for each in self._sockets:
            each.settimeout(0)
        command = Command(name="agent", argv=("true",), environment={})
        self._helper = PrivilegedHelper(command, 1.0, self.holders, ours)

    def _run(
        self,
        kernel_folder: KernelFolder,
        files: HolderFiles,
        environment: Mapping[str, str],
        options: list[str],
        *,
        on_end: Callable[[], object],
        **user: Any,
    ) -> int:
        self.ran.append((kernel_folder, files, environment, options))
        self.users.append(user)
        self.on_end = on_end
        return 7

    async def _empty(self, hidden: KernelFolder, uid: int) -> None:
        self.emptied.append((hidden.kernel_id, uid))
        if self.sticky:
            self.sticky -= 1
        else:
            hidden.clear()

    async def ask(self, op: Any, kernel_id: str = ID, **fields: Any) -> HelperResponse:
        owner = fields.pop("owner", "token:alice")
        files = [os.open("/dev/null", os.O_RDONLY) for _ in range(fields.pop("files", 0))]
        request = HelperRequest(id="1", op=op, kernel_id=kernel_id, owner=owner)
        await self._helper._respond(request, files)
        for each in files:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(each)
        response, _ = receive(self.channel, HelperResponse)
        assert response is not None
        assert response.id == "1"
        return response

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.close()


@as_root
async def test_a_holder_is_started_in_a_folder_that_was_prepared(bench: Bench) -> None:
    assert (await bench.ask("prepare")).kind == ""
    response = await bench.ask("start", files=3)
    assert (response.kind, response.pid) == ("", 7)
    ((kernel_folder, _, environment, options),) = bench.ran
    assert kernel_folder.path == bench.kernels / ID
    assert environment == {
        "LANG": "C",
        "HOME": "/home/alice",
        "USER": "alice",
        "LOGNAME": "alice",
        "SHELL": "/bin/sh",
    }
    assert options == ["--agent-uid", str(AGENT.uid), "--no-new-privileges"]
    (user,) = bench.users
    assert (user["user"], user["group"], user["umask"], user["cwd"]) == (
        ALICE.uid,
        ALICE.gid,
        0o27,
        "/",
    )
    # When the holder has ended, what it has emptied is gone.
    bench.on_end()
    assert not kernel_folder.path.exists()


@as_root
@pytest.mark.parametrize(
    ("request_fields", "kind", "problem"),
    [
        ({"op": "prepare", "owner": "token:bob"}, "forbidden", "launch_as"),
        ({"op": "prepare", "owner": "nobody at all"}, "os", "authenticator:subject"),
        ({"op": "prepare", "kernel_id": "../../etc"}, "os", "no kernel id"),
        ({"op": "start", "files": 3}, "os", "No such file"),
        ({"op": "start", "files": 2}, "os", "holder's files"),
        ({"op": "clean_up"}, "os", "No such file"),
    ],
)
async def test_what_is_not_done(
    bench: Bench, request_fields: dict[str, Any], kind: str, problem: str
) -> None:
    response = await bench.ask(**request_fields)
    assert response.kind == kind
    assert problem in response.problem
    assert bench.ran == []
    assert bench.emptied == []


@as_root
async def test_another_users_folder_gets_no_holder(bench: Bench) -> None:
    (bench.kernels / ID).mkdir()
    os.chown(bench.kernels / ID, BOB.uid, AGENT.gid)
    (bench.kernels / ID / "file").touch()
    assert (await bench.ask("start", files=3)).kind == "forbidden"
    assert (await bench.ask("prepare")).kind == "conflict"
    assert bench.ran == []


@as_root
@pytest.mark.parametrize(("sticky", "left"), [(0, 0), (2, 0), (3, 1)])
async def test_a_folder_is_emptied_as_its_user_a_few_times(
    bench: Bench, sticky: int, left: int
) -> None:
    await bench.ask("prepare")
    (bench.kernels / ID / "file").touch()
    bench.sticky = sticky
    assert (await bench.ask("clean_up", owner="")).kind == ""
    assert {uid for _, uid in bench.emptied} == {ALICE.uid}
    assert len(bench.emptied) == min(sticky + 1, 3)
    # The id is free in any case, and the next helper goes on.
    assert not (bench.kernels / ID).exists()
    assert len(list(bench.kernels.iterdir())) == left
    await bench.holders.sweep()
    assert list(bench.kernels.iterdir()) == []


@as_root
@pytest.mark.parametrize("uid", [0, AGENT.uid])
async def test_what_is_no_kernel_users_is_not_cleaned_up(bench: Bench, uid: int) -> None:
    (bench.kernels / ID).mkdir()
    os.chown(bench.kernels / ID, uid, -1)
    response = await bench.ask("clean_up")
    assert (response.kind, response.errno) == ("os", errno.EPERM)
    assert (bench.kernels / ID).exists()
    assert bench.emptied == []
