from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.agent.holders.stop_all import end_kernels
from relay.agent.privsep import cleanup
from relay.bridge.control import Failure
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder, KernelRecord, kernels_folder, process_started
from tests.agent.launching import BOB, Node, running_node

OTHER = 54003


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with running_node(tmp_path) as node:
        yield node


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a holder's or a kernel's place."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process
        process.kill()


def left_over(state: Path, cluster: str = "alpha") -> KernelFolder:
    """A kernel's folder without a holder."""
    kernel_folder = KernelFolder(kernels_folder(state, cluster) / "left")
    kernel_folder.path.mkdir(parents=True)
    noted = {"socket": str(state / "s" / "left"), "owner": "token:ada", "name": "python3"}
    write_atomic(kernel_folder.request, msgspec.json.encode(noted))
    return kernel_folder


def note(kernel_folder: KernelFolder, **fields: Any) -> None:
    holder: dict[str, Any] = {"holder_pid": 1, "holder_started": 1, "epoch": "e"}
    record = KernelRecord(**holder | fields)
    write_atomic(kernel_folder.record, msgspec.json.encode(record))


async def test_holders_are_asked_to_end_their_kernels(node: Node) -> None:
    await node.submit("k1")
    await node.submit("k2", BOB)
    for name in ("k1", "k2"):
        await node.wait_serving(name)
    assert await end_kernels(node.state, 5) == 2
    assert [[call.op for call in holder.calls] for holder in node.runner.holders] == [
        ["status", "shutdown"],
        ["status", "shutdown"],
    ]
    assert node.launcher.list() == []
    assert await end_kernels(node.state, 5) == 0


async def test_what_dead_holders_left_is_ended_in_every_cluster(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    kernel, other = left_over(tmp_path), left_over(tmp_path, "beta")
    note(kernel, kernel_pid=process.pid, kernel_started=process_started(process.pid))
    assert await end_kernels(tmp_path, 5) == 2
    assert process.wait(5) == -signal.SIGKILL
    assert not kernel.path.exists()
    assert not other.path.exists()


async def test_a_folder_in_which_nothing_was_asked_for_is_no_kernel(tmp_path: Path) -> None:
    kernel_folder = left_over(tmp_path)
    kernel_folder.request.unlink()
    assert await end_kernels(tmp_path, 5) == 0
    assert not kernel_folder.path.exists()


async def test_a_holder_that_does_not_serve_is_killed(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    kernel_folder = left_over(tmp_path)
    note(kernel_folder, holder_pid=process.pid, holder_started=process_started(process.pid))
    lock = kernel_folder.try_lock()
    assert lock is not None
    # Its lock is ours here, and so it is not free when the process has ended.
    assert await end_kernels(tmp_path, 5) == 0
    assert process.wait(5) == -signal.SIGKILL
    os.close(lock)
    assert await end_kernels(tmp_path, 5) == 1
    assert not kernel_folder.path.exists()


@pytest.mark.parametrize("held", [True, False])
async def test_what_another_version_has_left_is_not_ended(
    tmp_path: Path, process: subprocess.Popen[bytes], held: bool
) -> None:
    kernel_folder = left_over(tmp_path)
    lock = kernel_folder.try_lock() if held else None
    started = process_started(process.pid)
    note(kernel_folder, holder_pid=process.pid, holder_started=started, version=3)
    assert await end_kernels(tmp_path, 1) == 0
    assert process.poll() is None
    assert kernel_folder.exists()
    if lock is not None:
        os.close(lock)


async def test_a_holder_that_refuses_or_does_not_answer_is_not_waited_for(node: Node) -> None:
    await node.submit("k1")
    (holder,) = node.runner.holders
    await node.wait_serving("k1")
    holder.failure = Failure("it does not end")
    assert await end_kernels(node.state, 5) == 0
    holder.perform = lambda *_: None
    assert await end_kernels(node.state, 0.05) == 0
    assert holder.kernel_folder.exists()


async def test_what_stands_in_the_place_of_files_is_deleted(tmp_path: Path) -> None:
    kernel_folder = left_over(tmp_path)
    (tmp_path / "precious").touch()
    (kernel_folder.path / "lock").symlink_to(tmp_path / "precious")
    assert await end_kernels(tmp_path, 5) == 1
    assert not kernel_folder.path.exists()
    assert (tmp_path / "precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
async def test_another_users_kernel_is_ended_as_that_user(
    tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pid that the user writes there names a process of root's: it is not signalled."""
    programs: list[tuple[Path, int]] = []

    def run(folder: Path, uid: int, gid: int) -> subprocess.Popen[bytes]:
        programs.append((folder, uid))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(cleanup, "_run", run)
    kernel_folder = left_over(tmp_path)
    started = process_started(process.pid)
    note(
        kernel_folder,
        holder_pid=process.pid,
        holder_started=started,
        kernel_pid=process.pid,
        kernel_started=started,
    )
    os.chown(kernel_folder.path, OTHER, -1)
    assert await end_kernels(tmp_path, 5) == 1
    assert process.poll() is None
    ((hidden, uid),) = programs
    assert uid == OTHER
    assert hidden.name.startswith(".left.")
    assert not kernel_folder.path.exists()
