from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.agent.holders.stop_all import end_kernels
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder, KernelRecord, kernels_folder, process_started


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a holder's place."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
def kernel_folder(tmp_path: Path) -> KernelFolder:
    """A kernel's folder whose holder serves nobody."""
    kernel_folder = KernelFolder(kernels_folder(tmp_path, "alpha") / "a-kernel")
    kernel_folder.path.mkdir(parents=True)
    noted = {"socket": str(tmp_path / "s"), "owner": "token:ada", "name": "python3"}
    write_atomic(kernel_folder.request, msgspec.json.encode(noted))
    return kernel_folder


def note(kernel_folder: KernelFolder, holder: subprocess.Popen[bytes], **more: Any) -> None:
    started = process_started(holder.pid)
    assert started is not None
    record = KernelRecord(holder_pid=holder.pid, holder_started=started, epoch="e", **more)
    write_atomic(kernel_folder.record, msgspec.json.encode(record))


@pytest.mark.parametrize("held", [True, False])
async def test_what_another_version_has_left_is_not_ended(
    tmp_path: Path, kernel_folder: KernelFolder, holder: subprocess.Popen[bytes], held: bool
) -> None:
    lock = kernel_folder.try_lock() if held else None
    note(kernel_folder, holder, version=3)
    assert await end_kernels(tmp_path, 1) == 0
    assert holder.poll() is None
    assert kernel_folder.exists()
    if lock is not None:
        os.close(lock)


async def test_what_this_version_has_left_is_ended(
    tmp_path: Path, kernel_folder: KernelFolder, holder: subprocess.Popen[bytes]
) -> None:
    lock = kernel_folder.try_lock()
    assert lock is not None
    note(kernel_folder, holder)
    # Its holder has the lock and does not answer: it is killed.
    assert await end_kernels(tmp_path, 1) == 0
    assert holder.wait(5) == -signal.SIGKILL
    os.close(lock)
    assert await end_kernels(tmp_path, 1) == 1
    assert not kernel_folder.exists()
