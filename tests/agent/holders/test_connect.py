from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.agent.holders import connect
from relay.agent.holders.client import HolderClient
from relay.agent.holders.connect import HolderConnector, read_ownership
from relay.agent.holders.create import KernelCreator
from relay.agent.holders.ended import EndedKernels
from relay.agent.launchers.base import Claim, HolderState, HolderStatus, Launcher
from relay.auth.ownership import Grant, KernelOwnership
from relay.bridge.records import RecordKind, record
from relay.config import KernelSettings
from relay.config.holder import HolderConfig
from relay.errors import AgentUnavailable, DiskFull, NotFound, StartFailed
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder
from tests.agent.launching import (
    FakeHolder,
    Node,
    agent_config,
    running_node,
    start_request,
)
from tests.waiting import until


class Agent:
    """The part of an agent that leads to holders."""

    def __init__(self, node: Node, launcher: Launcher | None = None, **settings: Any) -> None:
        self.node = node
        self.ended = EndedKernels()
        used = launcher or node.launcher
        creator = KernelCreator(agent_config(node.state, **settings), used, 1)
        self._connector = HolderConnector(used, creator, self.ended)
        self._clients: list[HolderClient] = []

    async def create(self, name: str, **fields: Any) -> HolderClient | None:
        request = start_request(name, **fields)
        return self._keep(await self._connector.connect(self.node.folder(name), request))

    async def find(self, name: str) -> HolderClient | None:
        return self._keep(await self._connector.connect(self.node.folder(name)))

    def _keep(self, client: HolderClient | None) -> HolderClient | None:
        if client is not None:
            self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


@asynccontextmanager
async def running_agent(state: Path) -> AsyncIterator[Agent]:
    async with running_node(state) as node:
        agent = Agent(node)
        yield agent
        agent.close()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    async with running_agent(tmp_path) as agent:
        yield agent


async def test_a_kernel_is_created_once_and_found_after_that(agent: Agent) -> None:
    created = await agent.create("k")
    assert created is not None
    assert created.status.owner == "token:ada"
    other = Agent(agent.node)
    for again in (await agent.create("k"), await agent.find("k"), await other.find("k")):
        assert again is not None
    other.close()
    assert agent.node.runner.started == ["k"]


async def test_what_is_not_there_is_not_found(agent: Agent) -> None:
    assert await agent.find("k") is None
    await agent.create("k")
    agent.ended.add("k")
    assert await agent.find("k") is None


async def test_a_dead_holder_is_replaced(agent: Agent) -> None:
    await agent.create("k")
    for number in range(2):
        agent.node.runner.holders[-1].die()
        client = await (agent.find("k") if number else agent.create("k"))
        assert client is not None
    assert agent.node.runner.started == ["k"] * 3


async def test_a_holder_that_keeps_dying_is_given_up_and_why_is_kept(agent: Agent) -> None:
    await agent.create("k")

    def die(holder: FakeHolder) -> None:
        holder.die()

    agent.node.runner.holders[0].die()
    agent.node.runner.manner = die
    assert await agent.find("k") is None
    limit = KernelSettings().holder_restart_limit
    assert agent.node.runner.started == ["k"] * (1 + limit)
    assert agent.node.runner.cleaned == ["k"]
    kernel = agent.ended.ownership("k")
    assert kernel is not None
    assert kernel.owner == "token:ada"
    with pytest.raises(NotFound, match=r"kernels\.holder_restart_limit"):
        agent.ended.raise_reason("k")
    # Another kernel may have the id: its end has no reason yet.
    agent.node.runner.manner = agent.node.runner.serve
    assert await agent.create("k") is not None
    agent.ended.raise_reason("k")


async def test_what_never_started_is_cleaned_up_by_who_finds_it(agent: Agent) -> None:
    kernel_folder = agent.node.folder("k")
    kernel_folder.path.mkdir()
    write_atomic(kernel_folder.request, b"{}")
    assert await agent.find("k") is None
    assert agent.node.runner.cleaned == ["k"]


async def test_a_first_holder_that_fails_is_tried_again(agent: Agent) -> None:
    def fail(holder: FakeHolder) -> None:
        holder.kernel_folder.holder_log.write_text("no module named relay")
        holder.die()

    agent.node.runner.manner = fail
    assert await agent.create("k") is None
    assert agent.node.runner.started == ["k"] * 3


async def test_a_kernel_is_reached_as_soon_as_its_holder_serves(agent: Agent) -> None:
    agent.node.runner.manner = lambda _: None
    async with asyncio.TaskGroup() as tasks:
        creating = tasks.create_task(agent.create("k"))
        await until(lambda: bool(agent.node.runner.holders))
        # Another agent looks now and then, and nobody starts a second holder.
        finding = tasks.create_task(Agent(agent.node).find("k"))
        await asyncio.sleep(0)
        await agent.node.runner.holders[0].serve()
        assert await creating is not None
        found = await finding
        assert found is not None
        found.close()
    assert agent.node.runner.started == ["k"]


async def test_a_holder_that_never_serves_is_not_waited_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "SERVE_TIMEOUT", 0.05)
    agent.node.runner.manner = lambda _: None
    for attempt in (agent.create("k"), agent.find("k")):
        with pytest.raises(AgentUnavailable, match="does not answer"):
            await attempt
    assert agent.node.runner.started == ["k"]
    assert agent.node.runner.cleaned == []


async def test_a_holder_that_serves_and_does_not_answer_is_not_waited_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that is stopped (SIGSTOP): its socket takes connections."""
    monkeypatch.setattr(connect, "SERVE_TIMEOUT", 0.05)
    agent.node.runner.manner = lambda _: None
    created = agent.node.folder("k")
    await agent.node.submit("k")
    address = created.read_address()
    assert address is not None
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(address.socket))
        silent.listen()
        other = Agent(agent.node, launcher=StatusLauncher([HolderStatus(HolderState.RUNNING)]))
        with pytest.raises(AgentUnavailable, match="does not answer"):
            await other.find("k")


async def test_a_holder_that_names_an_owner_who_cannot_be_it_is_refused(agent: Agent) -> None:
    await agent.create("k")
    agent.node.runner.mismatched.add("k")
    assert await agent.find("k") is None
    assert "k" in agent.ended
    assert agent.node.runner.cleaned == []


async def test_a_holder_that_speaks_otherwise_is_unavailable(agent: Agent) -> None:
    agent.node.runner.manner = lambda _: None
    await agent.node.submit("k")
    address = agent.node.folder("k").read_address()
    assert address is not None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(record(RecordKind.STATUS, b"[]"))
        writer.close()

    server = await asyncio.start_unix_server(serve, address.socket)
    other = Agent(agent.node, launcher=StatusLauncher([HolderStatus(HolderState.RUNNING)]))
    with pytest.raises(AgentUnavailable, match="does not speak"):
        await other.find("k")
    server.close()


@pytest.mark.parametrize(
    ("problem", "error"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull),
        (OSError(errno.EMFILE, "Too many open files"), AgentUnavailable),
    ],
)
async def test_what_the_system_refuses_is_told_in_our_words(
    agent: Agent, problem: OSError, error: type[Exception]
) -> None:
    agent.node.runner.problem = problem
    with pytest.raises(error):
        await agent.create("k")
    # Of a kernel that may run nobody says that its disk is full.
    agent.node.runner.problem = None
    await agent.create("k")
    agent.node.runner.holders[-1].die()
    agent.node.runner.problem = problem
    with pytest.raises(AgentUnavailable):
        await agent.find("k")


async def test_an_environment_that_is_no_text_fails_the_start(agent: Agent) -> None:
    with pytest.raises(StartFailed, match="UTF-8"):
        await agent.create("k", environment={"NAME": "\udcff"})


class StatusLauncher:
    """A `Launcher` elsewhere: it says what it is told to, and keeps no lock and no process here."""

    def __init__(self, statuses: Sequence[HolderStatus]) -> None:
        self._statuses = list(statuses)
        self.watched: list[HolderStatus | None] = []

    def open_folders(self) -> None:
        raise NotImplementedError

    def list(self) -> Sequence[KernelFolder]:
        raise NotImplementedError

    async def submit(self, kernel_folder: KernelFolder, config: HolderConfig) -> None:
        raise NotImplementedError

    async def watch(
        self, kernel_folder: KernelFolder, seen: HolderStatus | None = None
    ) -> HolderStatus:
        self.watched.append(seen)
        await asyncio.sleep(0)
        return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]

    @asynccontextmanager
    async def claim(self, kernel_folder: KernelFolder) -> AsyncIterator[Claim | None]:
        yield None

    async def cancel(self, kernel_folder: KernelFolder) -> None:
        raise NotImplementedError

    def owner_matches(self, kernel_folder: KernelFolder, owner: str) -> bool:
        return True


async def test_a_kernel_that_waits_elsewhere_is_waited_for(agent: Agent) -> None:
    await agent.node.submit("k")
    await agent.node.wait_serving("k")
    pending = HolderStatus(HolderState.STARTING, "Resources")
    next_up = HolderStatus(HolderState.STARTING, "Priority")
    running = HolderStatus(HolderState.RUNNING)
    launcher = StatusLauncher([pending, pending, next_up, running])
    other = Agent(agent.node, launcher=launcher)
    found = await other.find("k")
    assert found is not None
    found.close()
    # It is told what was seen last, and says when that has changed.
    assert launcher.watched == [None, None, pending, next_up]


async def test_what_a_launcher_does_not_know_is_unavailable(agent: Agent) -> None:
    await agent.node.submit("k")
    launcher = StatusLauncher([HolderStatus(HolderState.UNKNOWN, "the scheduler does not answer")])
    with pytest.raises(AgentUnavailable):
        await Agent(agent.node, launcher=launcher).find("k")
    assert agent.node.folder("k").exists()


async def test_a_folder_tells_whose_its_kernel_is_if_it_can_be(agent: Agent) -> None:
    launcher, kernel_folder = agent.node.launcher, agent.node.folder("k")
    assert read_ownership(launcher, kernel_folder) is None
    await agent.node.submit("k")
    write_atomic(kernel_folder.grants, msgspec.json.encode({"token:bob": "view"}))
    assert read_ownership(launcher, kernel_folder) == KernelOwnership(
        owner="token:ada", kernelspec="python3", grants={"token:bob": Grant.VIEW}
    )
    agent.node.runner.mismatched.add("k")
    assert read_ownership(launcher, kernel_folder) is None
