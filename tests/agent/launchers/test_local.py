from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from relay.agent.launchers import local
from relay.agent.launchers.base import HolderState, HolderStatus
from relay.errors import AgentUnavailable
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder, process_started
from tests.agent.launching import RECORD, FakeHolder, Node, holder_config, running_node
from tests.waiting import until

RUNNING = HolderStatus(HolderState.RUNNING)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with running_node(tmp_path) as node:
        yield node


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a holder's place."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process
        process.kill()


def note(kernel_folder: KernelFolder, process: subprocess.Popen[bytes]) -> None:
    """Have a kernel's folder name a process as its holder."""
    started = process_started(process.pid)
    assert started is not None
    record = msgspec.structs.replace(RECORD, holder_pid=process.pid, holder_started=started)
    write_atomic(kernel_folder.record, msgspec.json.encode(record))


def wait_for_nothing(_holder: FakeHolder) -> None:
    """A new holder that does not serve."""


async def state(node: Node, kernel_folder: KernelFolder) -> HolderState:
    return (await node.launcher.watch(kernel_folder)).state


async def test_a_kernels_states(node: Node) -> None:
    kernel_folder = node.folder("k")
    assert await state(node, kernel_folder) is HolderState.ABSENT
    kernel_folder.path.mkdir()
    assert await state(node, kernel_folder) is HolderState.ABSENT
    kernel_folder.request.write_text("{}")
    assert await state(node, kernel_folder) is HolderState.UNSTARTED
    node.runner.manner = wait_for_nothing
    await node.submit("k")
    (holder,) = node.runner.holders
    assert await state(node, kernel_folder) is HolderState.STARTING
    await holder.serve()
    await until(lambda: not node.launcher._signals.is_expected("k"))
    assert await state(node, kernel_folder) is HolderState.RUNNING
    holder.die()
    assert await state(node, kernel_folder) is HolderState.LOST
    assert node.launcher.list() == [kernel_folder]


async def test_what_cannot_be_looked_at_is_unknown(node: Node, tmp_path: Path) -> None:
    kernel_folder = await node.submit("k")
    lock = kernel_folder.path / "lock"
    lock.unlink()
    lock.symlink_to(tmp_path)
    await until(lambda: not node.launcher._signals.is_expected("k"))
    found = await node.launcher.watch(kernel_folder)
    assert found.state is HolderState.UNKNOWN
    assert "lock" in found.reason


@pytest.mark.parametrize("end", [HolderState.RUNNING, HolderState.UNSTARTED])
async def test_a_start_tells_when_it_serves_or_has_failed(node: Node, end: HolderState) -> None:
    """Nobody looks in between: the pause between looks is longer than the test."""
    node.runner.manner = wait_for_nothing
    kernel_folder = await node.submit("k")
    starting = await node.launcher.watch(kernel_folder)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(node.launcher.watch(kernel_folder, starting))
        await asyncio.sleep(0)
        assert not watching.done()
        (holder,) = node.runner.holders
        if end is HolderState.RUNNING:
            await holder.serve()
        else:
            holder.die()
        assert (await asyncio.wait_for(watching, 5)).state is end


async def test_what_has_changed_already_is_not_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_LOOK", 60.0)
    kernel_folder = await node.submit("k")
    await node.wait_serving("k")
    node.runner.holders[0].die()
    found = await asyncio.wait_for(node.launcher.watch(kernel_folder, RUNNING), 5)
    assert found.state is HolderState.LOST


async def test_a_holder_of_another_agent_is_looked_at_now_and_then(node: Node) -> None:
    await node.submit("k")
    other = local.LocalLauncher(node.state, "alpha", node.runner)
    kernel_folder = node.folder("k")
    await node.wait_serving("k")
    began = time.monotonic()
    # It may have begun to serve by now: nothing tells of that.
    assert await other.watch(kernel_folder, RUNNING) == RUNNING
    assert local._LOOK - 0.05 < time.monotonic() - began < 5


async def test_the_end_of_a_holder_of_another_agent_is_noticed_at_once(
    node: Node, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_LOOK", 60.0)
    kernel_folder = await node.submit("k")
    await node.wait_serving("k")
    note(kernel_folder, process)
    other = local.LocalLauncher(node.state, "alpha", node.runner)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(other.watch(kernel_folder, RUNNING))
        await asyncio.sleep(0)
        node.runner.holders[0].die()
        process.kill()
        assert (await asyncio.wait_for(watching, 10)).state is HolderState.LOST


async def test_nothing_is_started_twice(node: Node) -> None:
    for _ in range(2):
        await node.submit("k")
    assert node.runner.started == ["k"]
    await node.wait_serving("k")
    node.runner.holders[0].die()
    # It has had a holder: what becomes of it is for whoever claims it.
    await node.submit("k")
    assert node.runner.started == ["k"]


async def test_a_start_that_fails_leaves_nothing(node: Node) -> None:
    node.runner.problem = OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(OSError, match="Too many"):
        await node.submit("k")
    assert not node.folder("k").path.exists()
    assert not node.launcher._signals.is_expected("k")


async def test_a_kernel_is_claimed_by_one_and_only_without_a_holder(node: Node) -> None:
    kernel_folder = await node.submit("k")
    async with node.launcher.claim(kernel_folder) as claim:
        assert claim is None
    await node.wait_serving("k")
    node.runner.holders[0].die()
    async with node.launcher.claim(kernel_folder) as first:
        assert first is not None
        async with node.launcher.claim(kernel_folder) as second:
            assert second is None
        await first.resume("token:ada")
    assert node.runner.started == ["k", "k"]
    # The new holder has the lock of the claim.
    async with node.launcher.claim(kernel_folder) as claim:
        assert claim is None
    node.runner.holders[1].die()
    async with node.launcher.claim(kernel_folder) as claim:
        assert claim is not None
        await claim.cancel()
    assert not kernel_folder.path.exists()
    with pytest.raises(FileNotFoundError):
        async with node.launcher.claim(kernel_folder):
            pytest.fail("there is nothing to claim")


async def test_a_kernel_is_cancelled_with_its_holder(
    node: Node, process: subprocess.Popen[bytes]
) -> None:
    kernel_folder = node.folder("k")
    kernel_folder.path.mkdir()
    kernel_folder.request.write_text("{}")
    note(kernel_folder, process)
    await node.launcher.cancel(kernel_folder)
    assert process.wait(5) == -signal.SIGKILL
    assert not kernel_folder.path.exists()


async def test_a_kernel_whose_holder_is_another_by_now_is_not_cancelled(node: Node) -> None:
    kernel_folder = await node.submit("k")
    await node.wait_serving("k")
    with pytest.raises(AgentUnavailable):
        await node.launcher.cancel(kernel_folder)
    assert kernel_folder.exists()
    assert node.runner.cleaned == []


async def test_what_stands_in_the_place_of_a_lock_keeps_nobody(node: Node, tmp_path: Path) -> None:
    kernel_folder = node.folder("k")
    kernel_folder.path.mkdir()
    kernel_folder.request.write_text("{}")
    (kernel_folder.path / "lock").symlink_to(tmp_path)
    await node.launcher.cancel(kernel_folder)
    assert node.runner.cleaned == ["k"]


async def test_what_an_os_user_brings_along_replaces_what_was_asked_for() -> None:
    asked = msgspec.structs.replace(
        holder_config("token:ada"),
        environment={"HOME": "/asked", "LANG": "C"},
        working_folder="/asked",
    )
    info = local.RuntimeInfo(Path("/run/7"), {"HOME": "/home/ada"}, "/home/ada")
    config = local._complete(asked, info)
    assert config.environment == {"HOME": "/home/ada", "LANG": "C"}
    assert config.working_folder == "/home/ada"
    assert Path(config.socket).parent == Path("/run/7")
    plain = local._complete(asked, local.RuntimeInfo(Path("/run/7")))
    assert (plain.environment, plain.working_folder) == (asked.environment, "/asked")
    assert plain.socket != config.socket


def test_a_lock_that_is_looked_at_is_not_taken(tmp_path: Path) -> None:
    kernel_folder = KernelFolder(tmp_path)
    assert not kernel_folder.is_locked()
    lock = kernel_folder.try_lock()
    assert lock is not None
    assert kernel_folder.is_locked()
    os.close(lock)
    with (tmp_path / "lock").open() as other_look:
        fcntl.flock(other_look, fcntl.LOCK_SH)
        assert not kernel_folder.is_locked()
    assert not KernelFolder(tmp_path / "no such").is_locked()
