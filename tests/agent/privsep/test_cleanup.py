from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from relay.agent.privsep import cleanup
from relay.agent.privsep.cleanup import clean_up_as_owner
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder, KernelRecord, process_started

OTHER = 54003
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


@pytest.fixture
def kernel_folder(tmp_path: Path) -> KernelFolder:
    kernel_folder = KernelFolder(tmp_path / "k")
    kernel_folder.path.mkdir()
    noted = {"socket": str(tmp_path / "s"), "owner": "token:ada", "name": "python3"}
    write_atomic(kernel_folder.request, msgspec.json.encode(noted))
    return kernel_folder


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A holder and its kernel."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    started = [subprocess.Popen(command, start_new_session=True) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_the_program_ends_holder_and_kernel_and_deletes_the_folder(
    kernel_folder: KernelFolder,
    processes: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holder, kernel = processes
    record = KernelRecord(
        holder_pid=holder.pid,
        holder_started=process_started(holder.pid) or 0,
        epoch="e",
        kernel_pid=kernel.pid,
        kernel_started=process_started(kernel.pid),
    )
    write_atomic(kernel_folder.record, msgspec.json.encode(record))
    monkeypatch.setattr(sys, "argv", ["cleanup", "--folder", str(kernel_folder.path)])
    cleanup.main()
    assert [each.wait(5) for each in processes] == [-signal.SIGKILL] * 2
    assert not kernel_folder.path.exists()


def test_the_program_needs_no_record(
    kernel_folder: KernelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_folder.record.write_text("{")
    monkeypatch.setattr(sys, "argv", ["cleanup", "--folder", str(kernel_folder.path)])
    cleanup.main()
    assert not kernel_folder.path.exists()


@as_root
async def test_nothing_is_run_as_root(kernel_folder: KernelFolder) -> None:
    with pytest.raises(PermissionError, match="nothing is run as root"):
        await clean_up_as_owner(kernel_folder)
    assert kernel_folder.exists()


@as_root
async def test_the_id_is_free_before_anything_is_run(
    kernel_folder: KernelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int, bool]] = []

    def run(folder: Path, uid: int, gid: int) -> subprocess.Popen[bytes]:
        seen.append((kernel_folder.path.exists(), uid, (folder / "request.json").exists()))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(cleanup, "_run", run)
    os.chown(kernel_folder.path, OTHER, -1)
    await clean_up_as_owner(kernel_folder)
    assert seen == [(False, OTHER, True)]


async def test_a_cleanup_that_its_user_has_stopped_is_killed(
    kernel_folder: KernelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def run(folder: Path, uid: int, gid: int) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[0]

    monkeypatch.setattr(cleanup, "_run", run)
    monkeypatch.setattr(cleanup, "_TIMEOUT", 0.05)
    await cleanup.empty_as_owner(kernel_folder, OTHER)
    assert started[0].returncode == -signal.SIGKILL


@as_root
async def test_a_user_without_an_account_has_no_groups(
    kernel_folder: KernelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[dict[str, object]] = []

    class Process(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: object) -> None:
            arguments.append(options)
            super().__init__(["true"])

    monkeypatch.setattr(subprocess, "Popen", Process)
    await cleanup.empty_as_owner(kernel_folder, OTHER)
    (options,) = arguments
    assert (options["user"], options["group"], options["extra_groups"]) == (OTHER, 65534, [])
