from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.agent.holders import create
from relay.agent.holders.create import KernelCreator
from relay.config import KernelSettings
from relay.config.holder import HolderConfig
from relay.errors import AgentUnavailable, TooMany
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder
from relay.model import Principal
from tests.agent.launching import (
    ADA,
    BOB,
    RECORD,
    FakeRunner,
    Node,
    agent_config,
    running_node,
    start_request,
)


class Agent:
    """An agent that creates kernels."""

    def __init__(self, node: Node, **settings: Any) -> None:
        self.node = node
        config = agent_config(node.state, **settings)
        self._creator = KernelCreator(config, node.launcher, 1)

    async def create(
        self,
        name: str,
        owner: Principal = ADA,
        quota: int | None = None,
        ended: frozenset[str] = frozenset(),
    ) -> KernelFolder:
        kernel_folder = self.node.folder(name)
        request = start_request(name, owner, max_kernels=quota)
        await self._creator.create(kernel_folder, request, ended)
        return kernel_folder


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with running_node(tmp_path / "state") as node:
        yield node


@pytest.fixture
def runner(node: Node) -> FakeRunner:
    return node.runner


@pytest.fixture
def agent(node: Node) -> Agent:
    return Agent(node)


async def test_a_kernel_gets_a_folder_a_request_and_a_holder(
    agent: Agent, runner: FakeRunner, tmp_path: Path
) -> None:
    kernel_folder = await agent.create("k1")
    assert runner.started == ["k1"]
    noted = msgspec.json.decode(kernel_folder.request.read_bytes(), type=HolderConfig)
    assert (noted.owner, noted.name, noted.request_id) == ("token:ada", "python3", "r1")
    assert noted.kernels.launch_timeout == 7.0
    assert Path(noted.socket).parent == tmp_path / "state" / "s"
    # The holder has the lock now, and it alone.
    assert kernel_folder.try_lock() is None
    runner.holders[0].die()
    lock = kernel_folder.try_lock()
    assert lock is not None
    os.close(lock)


async def test_a_kernel_that_has_a_holder_gets_no_other(agent: Agent, runner: FakeRunner) -> None:
    for _ in range(2):
        await agent.create("k1", quota=1)
    assert runner.started == ["k1"]


async def test_a_kernel_whose_holder_died_is_not_created_again(
    agent: Agent, runner: FakeRunner
) -> None:
    kernel_folder = await agent.create("k1")
    runner.holders[0].die()
    write_atomic(kernel_folder.record, msgspec.json.encode(RECORD))
    await agent.create("k1")
    assert runner.started == ["k1"]


async def test_a_start_that_was_broken_off_goes_on(agent: Agent, runner: FakeRunner) -> None:
    """The agent was killed when it had made the folder, or noted the request."""
    agent.node.folder("k1").path.mkdir()
    await agent.create("k1")
    kernel_folder = agent.node.folder("k2")
    kernel_folder.path.mkdir()
    write_atomic(kernel_folder.request, b"{}")
    await agent.create("k2")
    assert runner.started == ["k1", "k2"]


async def test_one_more_than_there_is_room_for(node: Node, runner: FakeRunner) -> None:
    agent = Agent(node, shared_uid=True, kernels=KernelSettings(max_kernels=3))
    await agent.create("k1", quota=2)
    await agent.create("k2", quota=2)
    with pytest.raises(TooMany, match=r"quotas\.user_kernels"):
        await agent.create("k3", quota=2)
    await agent.create("k3", BOB, quota=2)
    with pytest.raises(TooMany, match=r"kernels\.max_kernels"):
        await agent.create("k4", BOB, quota=2)
    assert runner.started == ["k1", "k2", "k3"]
    assert not node.folder("k4").path.exists()


async def test_of_a_start_that_fails_nothing_is_left(agent: Agent, runner: FakeRunner) -> None:
    runner.problem = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        await agent.create("k1")
    assert not agent.node.folder("k1").path.exists()


async def test_an_agent_waits_for_the_others_and_not_for_ever(
    agent: Agent, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create, "_TURN", 0.0)
    with (agent.node.state / "alpha" / "starts.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AgentUnavailable, match="Another agent"):
            await agent.create("k1")
    assert runner.started == []
    monkeypatch.setattr(create, "_TURN", 10.0)
    await agent.create("k1")
    assert runner.started == ["k1"]
