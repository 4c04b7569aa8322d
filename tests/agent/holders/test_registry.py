from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.agent.holders import registry
from relay.agent.holders.registry import HolderRegistry
from relay.auth.ownership import Grant, KernelOwnership
from relay.bridge.control import Failure, HolderFigures, Phase
from relay.errors import (
    AgentUnavailable,
    Conflict,
    DiskFull,
    KernelError,
    NotFound,
    OtherVersion,
    StartFailed,
    TooMany,
)
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder
from relay.model import Principal
from tests.agent.launching import (
    ADA,
    BOB,
    FakeHolder,
    FakeRunner,
    Node,
    agent_config,
    running_node,
    start_request,
)
from tests.waiting import until


def kernel_id(number: int) -> str:
    return f"0a0a0a0a-0000-4000-8000-00000000000{number}"


K1, K2 = kernel_id(1), kernel_id(2)


class Agent:
    """An agent of a node."""

    def __init__(self, node: Node, tasks: asyncio.TaskGroup) -> None:
        self.node = node
        config = agent_config(node.state, shared_uid=True)
        self.holders = HolderRegistry(config, node.launcher, 1000, tasks)

    @property
    def runner(self) -> FakeRunner:
        return self.node.runner

    async def start(self, name: str, owner: Principal = ADA, **fields: Any) -> FakeHolder:
        await self.holders.start(start_request(name, owner, **fields))
        return self.runner.holders[-1]

    async def listed(self, owner: Principal | None = None) -> list[str]:
        def is_wanted(kernel: KernelOwnership) -> bool:
            return owner is None or kernel.owner == str(owner)

        clients = await self.holders.all(is_wanted)
        return [client.kernel_folder.kernel_id for client in clients]


@asynccontextmanager
async def running_agent(node: Node) -> AsyncIterator[Agent]:
    async with asyncio.TaskGroup() as tasks:
        agent = Agent(node, tasks)
        yield agent
        agent.holders.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with running_node(tmp_path) as node:
        yield node


@pytest.fixture
async def agent(node: Node) -> AsyncIterator[Agent]:
    async with running_agent(node) as agent:
        yield agent


async def test_a_kernel_is_started_shown_and_stopped(agent: Agent) -> None:
    holder = await agent.start(K1)
    assert await agent.listed() == [K1]
    client = await agent.holders.get(K1)
    assert (client.model.id, client.model.name) == (K1, "python3")
    assert agent.holders.exists(K1)
    await agent.holders.stop(K1, "r2")
    assert [(call.op, call.request_id) for call in holder.calls] == [
        ("status", ""),
        ("shutdown", "r2"),
    ]
    assert await agent.listed() == []
    assert not agent.holders.exists(K1)
    with pytest.raises(NotFound):
        await agent.holders.get(K1)


async def test_a_start_that_is_repeated_finds_the_kernel(agent: Agent) -> None:
    """At the same time, later, and at another agent of the node."""
    starts = (agent.holders.start(start_request(K1)) for _ in range(3))
    first, *others = await asyncio.gather(*starts)
    assert all(client is first for client in others)
    assert await agent.holders.start(start_request(K1)) is first
    async with running_agent(agent.node) as other:
        await other.start(K1)
    assert agent.runner.started == [K1]
    assert agent.holders.stats.starts == 4


async def test_the_next_agent_finds_what_the_last_one_started(agent: Agent) -> None:
    await agent.start(K1)
    dead = await agent.start(K2)
    agent.holders.close()
    dead.die()
    async with running_agent(agent.node) as other:
        await other.holders.find()
        assert sorted(client.kernel_folder.kernel_id for client in other.holders.ready) == [K1, K2]
    assert agent.runner.started == [K1, K2, K2]


async def test_an_id_that_somebody_elses_kernel_has_is_taken(agent: Agent) -> None:
    await agent.start(K1)
    with pytest.raises(Conflict):
        await agent.start(K1, BOB)
    async with running_agent(agent.node) as other:
        with pytest.raises(Conflict):
            await other.start(K1, BOB)


async def test_a_start_is_waited_for_to_its_end(agent: Agent) -> None:
    agent.runner.status = msgspec.structs.replace(agent.runner.status, phase=Phase.STARTING)
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(agent.start(K1))
        await until(lambda: K1 in agent.holders._clients)
        assert await agent.listed() == []
        assert not starting.done()
        agent.runner.holders[0].tell(phase=Phase.READY)
        await starting
    assert await agent.listed() == [K1]


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        ({"phase": Phase.FAILED, "failure": Failure("no such program")}, StartFailed, "program"),
        (
            {"phase": Phase.FAILED, "failure": Failure("no room", http_status=507)},
            DiskFull,
            "room",
        ),
        ({"phase": Phase.GONE}, StartFailed, "ended while it started"),
    ],
)
async def test_a_start_that_fails_says_why(
    agent: Agent, end: dict[str, Any], error: type[Exception], message: str
) -> None:
    agent.runner.status = msgspec.structs.replace(agent.runner.status, phase=Phase.STARTING)

    async def fail() -> None:
        await until(lambda: K1 in agent.holders._clients)
        agent.runner.holders[0].tell(**end)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())
        with pytest.raises(error, match=message):
            await agent.start(K1)
    assert agent.holders.stats.start_failures == 1


async def test_a_holder_that_never_starts_its_kernel_is_not_waited_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_MARGIN", 0.01)
    agent.runner.status = msgspec.structs.replace(agent.runner.status, phase=Phase.STARTING)
    with pytest.raises(StartFailed, match="does not answer"):
        await agent.start(K1, launch_timeout=0.01)


async def test_a_first_holder_that_keeps_failing_fails_the_start(agent: Agent) -> None:
    agent.runner.manner = lambda holder: holder.die()
    with pytest.raises(StartFailed, match="ended while it started"):
        await agent.start(K1)


async def test_a_refused_start_is_no_failed_one(agent: Agent) -> None:
    with pytest.raises(TooMany):
        await agent.start(K1, max_kernels=0)
    assert agent.holders.stats.start_failures == 0


async def test_a_holder_that_dies_is_replaced_at_once(agent: Agent) -> None:
    holder = await agent.start(K1)
    before = await agent.holders.get(K1)
    holder.die()
    await until(lambda: len(agent.runner.holders) == 2)
    # Whoever asks meanwhile waits for the new one.
    client = await agent.holders.get(K1)
    assert client is not before
    assert await agent.listed() == [K1]
    assert agent.holders.stats.holder_deaths == 1


async def test_a_kernel_that_ends_by_itself_is_not_replaced(agent: Agent) -> None:
    holder = await agent.start(K1)
    holder.tell(phase=Phase.GONE)
    await until(lambda: K1 not in agent.holders._clients)
    holder.die()
    with pytest.raises(NotFound):
        await agent.holders.get(K1)
    assert agent.runner.started == [K1]
    assert agent.holders.stats.holder_deaths == 0


async def test_why_a_kernel_was_given_up_is_told_to_whose_it_was(agent: Agent) -> None:
    holder = await agent.start(K1)
    agent.runner.manner = lambda holder: holder.die()
    holder.die()
    await until(lambda: agent.runner.cleaned == [K1])
    with pytest.raises(NotFound, match=r"kernels\.holder_restart_limit"):
        await agent.holders.get(K1)
    kernel = agent.holders.ownership(K1)
    assert kernel is not None
    assert kernel.owner == str(ADA)
    assert not agent.holders.exists(K1)


async def test_a_list_is_never_partial(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ANSWER", 0.05)
    await agent.start(K1)
    agent.runner.manner = lambda _: None
    await agent.node.submit(K2)
    for attempt in (agent.listed(), agent.listed(ADA), agent.holders.get(K2)):
        with pytest.raises(AgentUnavailable, match="does not answer"):
            await attempt
    # Nobody waits for the holder of somebody else's kernel.
    assert await agent.listed(BOB) == []
    # An agent that finds such a kernel begins to serve all the same.
    await agent.holders.find()
    await agent.runner.holders[1].serve()
    assert sorted(await agent.listed()) == [K1, K2]


async def test_whose_a_kernel_is_the_folder_and_the_holder_say(agent: Agent) -> None:
    await agent.node.submit(K1, BOB)
    folder = agent.node.folder(K1)
    write_atomic(folder.grants, msgspec.json.encode({"token:ada": "use"}))
    bobs = KernelOwnership(owner="token:bob", kernelspec="python3", grants={"token:ada": Grant.USE})
    assert agent.holders.ownership(K1) == bobs
    await agent.holders.get(K1)
    # What the kernel's user writes there changes nothing.
    forged = folder.request.read_text().replace("token:bob", "token:eve")
    folder.request.write_text(forged)
    assert agent.holders.ownership(K1) == bobs
    agent.runner.mismatched.add(K1)
    assert agent.holders.ownership(K1) is None


async def test_what_cannot_be_its_owners_is_in_nobodys_list(agent: Agent) -> None:
    await agent.start(K1)
    agent.runner.mismatched.add(K1)
    assert await agent.listed() == []


@pytest.mark.parametrize("name", ["", "..", "../../etc", "a/b", "k"])
async def test_what_is_no_id_is_no_path(agent: Agent, name: str) -> None:
    assert agent.holders.ownership(name) is None
    assert not agent.holders.exists(name)
    with pytest.raises(NotFound):
        await agent.holders.get(name)


async def test_a_holder_that_fails_to_end_its_kernel_keeps_it(agent: Agent) -> None:
    holder = await agent.start(K1)
    holder.failure = Failure("it does not end")
    with pytest.raises(KernelError, match="does not end"):
        await agent.holders.stop(K1, "r")
    assert await agent.listed() == [K1]


async def test_calls_end_with_the_connection(agent: Agent) -> None:
    holder = await agent.start(K1)
    client = await agent.holders.get(K1)
    # It takes the call and dies before it answers.
    holder.perform = lambda *_: holder.die()
    with pytest.raises(AgentUnavailable, match="went away"):
        await client.call("interrupt", "r", 5)


async def test_a_closed_agent_leaves_kernels_alone(agent: Agent) -> None:
    await agent.start(K1)
    agent.holders.close()
    await until(lambda: K1 not in agent.holders._clients)
    assert agent.holders.stats.holder_deaths == 0
    assert agent.runner.started == [K1]
    assert agent.node.folder(K1).is_locked()


async def test_what_holders_count_outlives_them(agent: Agent) -> None:
    holder = await agent.start(K1)
    holder.tell(figures=HolderFigures(messages=5))
    client = await agent.holders.get(K1)
    await until(lambda: client.status.figures is not None)
    await agent.holders.stop(K1, "r")
    assert agent.holders.stats.figures(agent.holders.ready, Counter()).messages == 5


# Other versions

NOTED = {
    "a request": ("request.json", {"version": 3}),
    "a record": ("record.json", {"version": 3, "holder": "as a later version notes it"}),
    "a journal": ("record.json", {"journal": 2, "holder_pid": 1, "holder_started": 1}),
}


def contents(kernel_folder: KernelFolder) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in kernel_folder.path.iterdir() if path.name != "lock"
    }


@contextmanager
def left_over(node: Node, name: str, *, alive: bool) -> Iterator[KernelFolder]:
    """Ada's kernel, whose holder is not known here; while it lives it has the lock."""
    kernel_folder = node.folder(name)
    kernel_folder.path.mkdir()
    noted = {"socket": str(node.state / "s" / "none"), "owner": str(ADA), "name": "python3"}
    kernel_folder.request.write_bytes(msgspec.json.encode(noted))
    lock = kernel_folder.try_lock() if alive else None
    yield kernel_folder
    if lock is not None:
        os.close(lock)


@pytest.mark.parametrize("noted", NOTED.values(), ids=NOTED)
@pytest.mark.parametrize("alive", [True, False])
async def test_what_another_version_has_left_is_left_alone(
    agent: Agent, noted: tuple[str, dict[str, object]], alive: bool
) -> None:
    name, more = noted
    await agent.start(K1, BOB)
    with left_over(agent.node, K2, alive=alive) as kernel_folder:
        path = kernel_folder.path / name
        before = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
        path.write_bytes(msgspec.json.encode({**before, **more}))
        found = contents(kernel_folder)
        for attempt in (
            agent.holders.get(K2),
            agent.start(K2),
            agent.holders.stop(K2, "r"),
            agent.listed(ADA),
        ):
            with pytest.raises(OtherVersion, match=r"folder has version \d of .* relay has"):
                await attempt
        # Others have their kernels, and an agent that starts finds those that it can serve.
        assert await agent.listed(BOB) == [K1]
        await agent.holders.find()
        assert [client.kernel_folder.kernel_id for client in agent.holders.ready] == [K1]
        assert contents(kernel_folder) == found


@pytest.mark.parametrize("alive", [True, False])
async def test_a_folder_of_another_version_without_an_owner_is_in_nobodys_list(
    agent: Agent, alive: bool
) -> None:
    await agent.start(K1, BOB)
    with left_over(agent.node, K2, alive=alive) as kernel_folder:
        kernel_folder.request.write_bytes(b'{"version":3,"owner":{"name":"ada"}}')
        assert await agent.listed(BOB) == [K1]
        assert await agent.listed(ADA) == []
        with pytest.raises(OtherVersion):
            await agent.start(K2)
        assert kernel_folder.exists()


async def test_a_holder_that_speaks_another_version_costs_its_owner_only(agent: Agent) -> None:
    await agent.start(K1, BOB)
    agent.runner.status = msgspec.structs.replace(agent.runner.status, version=2)
    kernel_folder = await agent.node.submit(K2)
    await agent.node.wait_serving(K2)
    found = contents(kernel_folder)
    for attempt in (agent.holders.get(K2), agent.listed(ADA)):
        with pytest.raises(AgentUnavailable, match="kernel's holder has version 2 of"):
            await attempt
    assert await agent.listed(BOB) == [K1]
    assert contents(kernel_folder) == found
