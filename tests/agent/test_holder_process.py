from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.agent import holder_process
from relay.agent.holder_process import (
    HolderFiles,
    clean_up,
    kill,
    log_tail,
    open_log,
    open_process,
    reap,
    run_holder,
    wait_for_end,
)
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder, KernelRecord, process_started
from tests.waiting import until

TELL = """
import json, os, sys
FOLDER = "/proc/self/fd/"
found = os.listdir(FOLDER)
print(json.dumps({
    "argv": sys.argv[1:],
    "session": os.getsid(0) == os.getpid(),
    "environment": dict(os.environ),
    "open": sorted(int(fd) for fd in found if int(fd) > 2 and os.path.exists(FOLDER + fd)),
}), flush=True)
"""


@pytest.fixture
def kernel_folder(tmp_path: Path) -> KernelFolder:
    kernel_folder = KernelFolder(tmp_path / "k")
    kernel_folder.path.mkdir()
    return kernel_folder


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python's place, a program that tells how it was run."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n{TELL}")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.usefixtures("interpreter")
async def test_how_a_holder_is_run(kernel_folder: KernelFolder) -> None:
    lock = kernel_folder.try_lock()
    assert lock is not None
    reading, serving = os.pipe()
    log_file = open_log(kernel_folder)
    ended = asyncio.Event()
    pid = run_holder(
        kernel_folder,
        HolderFiles(lock, log_file, serving),
        {"PATH": "/bin", "MALLOC_ARENA_MAX": "9"},
        ["--agent-uid", "7"],
        on_end=ended.set,
    )
    await asyncio.wait_for(ended.wait(), 10)
    # It has been collected: no zombie stays.
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    told: dict[str, Any] = json.loads(kernel_folder.holder_log.read_bytes())
    assert told["argv"] == [
        *("-P", "-m", "relay.holder", "--folder", str(kernel_folder.path)),
        *("--lock", str(lock), "--serving", str(serving), "--agent-uid", "7"),
    ]
    assert told["session"]
    assert told["open"] == sorted([lock, serving])
    assert told["environment"].items() >= {
        ("PATH", "/bin"),
        ("MALLOC_ARENA_MAX", "2"),
        ("MALLOC_MMAP_THRESHOLD_", "524288"),
    }
    assert "HOME" not in told["environment"]
    for each in (lock, reading, serving, log_file):
        os.close(each)


async def test_a_program_that_is_not_there_is_an_error(
    kernel_folder: KernelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FileNotFoundError):
        run_holder(kernel_folder, HolderFiles(0, 1, 2), {})


def test_the_end_of_a_log(kernel_folder: KernelFolder) -> None:
    assert log_tail(kernel_folder) == ""
    for text in ("a" * 1000, "the end"):
        log_file = open_log(kernel_folder)
        os.write(log_file, text.encode())
        os.close(log_file)
    assert log_tail(kernel_folder).endswith("athe end")
    assert len(log_tail(kernel_folder)) == 250
    assert kernel_folder.holder_log.stat().st_mode & 0o777 == 0o600
    kernel_folder.holder_log.unlink()
    kernel_folder.holder_log.symlink_to("/etc/passwd")
    assert log_tail(kernel_folder) == ""


async def test_a_process_is_opened_by_pid_and_start(sleeper: subprocess.Popen[bytes]) -> None:
    started = process_started(sleeper.pid)
    assert started is not None
    for pid, when in ((sleeper.pid, started + 1), (sleeper.pid, None), (2**40, 1), (0, 0)):
        with open_process(pid, when) as pidfd:
            assert pidfd is None
    with open_process(sleeper.pid, started) as pidfd:
        assert pidfd is not None
        assert not await wait_for_end(pidfd, 0.01)
        kill(pidfd)
        assert await wait_for_end(pidfd, 10)
        # A second time nothing happens, to nobody.
        sleeper.wait()
        kill(pidfd)
    with open_process(sleeper.pid, started) as gone:
        assert gone is None
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(pidfd)


async def test_a_child_is_collected_and_then_told_of() -> None:
    ends: list[int | None] = []
    process = subprocess.Popen(["false"])  # noqa: ASYNC220 - the kind that holders are
    reap(process, lambda: ends.append(process.returncode))
    await until(lambda: bool(ends))
    assert ends == [1]


@pytest.mark.parametrize("alive", [True, False])
def test_what_is_left_of_a_kernel(
    kernel_folder: KernelFolder, sleeper: subprocess.Popen[bytes], alive: bool
) -> None:
    started = process_started(sleeper.pid)
    assert started is not None
    sockets = [kernel_folder.path.parent / name for name in ("0a1b.sock", "0a1b-1", "other.sock")]
    for path in sockets:
        path.touch()
    noted = {"socket": str(sockets[0]), "owner": "token:ada", "name": "python3"}
    write_atomic(kernel_folder.request, msgspec.json.encode(noted))
    record = KernelRecord(
        holder_pid=1,
        holder_started=1,
        epoch="e",
        kernel_pid=sleeper.pid,
        # Of a pid that is another's by now.
        kernel_started=started if alive else started - 1,
    )
    write_atomic(kernel_folder.record, msgspec.json.encode(record))
    clean_up(kernel_folder)
    assert not kernel_folder.path.exists()
    assert [path.exists() for path in sockets] == [False, False, True]
    if alive:
        assert sleeper.wait(5) == -signal.SIGKILL
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            sleeper.wait(0.2)


def test_a_folder_without_anything_is_removed(kernel_folder: KernelFolder) -> None:
    holder_process.clean_up(kernel_folder)
    assert not kernel_folder.path.exists()
