"""Holder processes: how one is run, how its end is noticed, what is left of one that died.

Everything here runs with the rights of the process that calls it: the agent where kernels run as
its own OS user, else the privileged helper (``agent/privsep/``) or a program that it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog

from relay.files import open_regular, read_tail
from relay.kernel_folders import KernelFolder, process_started, remove

log = structlog.get_logger(__name__)

_ALLOCATOR: Final = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "524288",
    "MALLOC_TRIM_THRESHOLD_": "16777216",
}
"""Variables of a holder, not of its kernel: an allocator that gives memory back.

Without them glibc, having freed a few large messages, keeps the next ones' memory for itself
(``mallopt(3)``, M_MMAP_THRESHOLD).
"""
_TAIL: Final = 250
"""Bytes of a failed holder's log that go into the agent's."""


class HolderFiles(NamedTuple):
    """Descriptors that a holder is started with."""

    lock: int
    """The kernel folder's lock file, locked: the holder keeps the lock for as long as it lives."""
    log: int
    """The holder's standard output and error."""
    serving: int
    """A pipe's write end, which the holder closes when it serves its socket."""


def run_holder(
    kernel_folder: KernelFolder,
    files: HolderFiles,
    environment: Mapping[str, str],
    arguments: Sequence[str] = (),
    *,
    on_end: Callable[[], object] = lambda: None,
    **user: Any,  # noqa: ANN401 - Popen's own
) -> int:
    """Run a holder and return its pid.

    ``on_end`` is called when the holder has ended. ``user`` are the arguments of
    ``subprocess.Popen`` that choose the OS user.

    Raises:
        OSError: the process cannot be started.
    """
    # -P: the current folder is no place to import from.
    command = (sys.executable, "-P", "-m", "relay.holder", "--folder", str(kernel_folder.path))
    process = subprocess.Popen(  # noqa: S603 - our own program
        [*command, *_options(files), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=files.log,
        stderr=files.log,
        pass_fds=(files.lock, files.serving),
        start_new_session=True,
        env={**environment, **_ALLOCATOR},
        **user,
    )
    reap(process, on_end)
    return process.pid


def _options(files: HolderFiles) -> tuple[str, ...]:
    return ("--lock", str(files.lock), "--serving", str(files.serving))


def open_log(kernel_folder: KernelFolder) -> int:
    """Open the file for a holder's log and return the descriptor. Raises ``OSError``."""
    return open_regular(kernel_folder.holder_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def log_tail(kernel_folder: KernelFolder) -> str:
    """Return the end of a holder's log; "" where it cannot be read."""
    with contextlib.suppress(OSError):
        return read_tail(kernel_folder.holder_log, _TAIL).decode(errors="replace")
    return ""


def reap(process: subprocess.Popen[bytes], on_end: Callable[[], object]) -> None:
    """Collect a child's exit status when it ends, so that no zombie stays; then call ``on_end``."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(process.pid)

    def collect() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process.wait()
        on_end()

    loop.add_reader(pidfd, collect)


@contextlib.contextmanager
def open_process(pid: int, started: int | None) -> Iterator[int | None]:
    """Open a process by pid and start time, closed at the end: a pidfd (``pidfd_open(2)``).

    ``started`` is as in `process_started`. The value is None for a process that has ended; the pid
    may be another process's by then.
    """
    pidfd = None
    try:
        if started is not None and process_started(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
        # From here on the pidfd names one process for good: was it the right one?
        yield pidfd if pidfd is not None and process_started(pid) == started else None
    finally:
        if pidfd is not None:
            os.close(pidfd)


async def wait_for_end(pidfd: int, timeout: float) -> bool:
    """Wait until a process has ended, ``timeout`` seconds at the most; return whether it has."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(timeout):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True


def kill(pidfd: int) -> None:
    """Send SIGKILL to a process, unless it has ended or may not be signalled."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def clean_up(kernel_folder: KernelFolder) -> None:
    """End the kernel that a dead holder left running, and delete the kernel's files.

    Call it with the folder's lock taken, or with the folder moved aside.
    """
    record = kernel_folder.read_record()
    if record is not None and record.kernel_pid and record.kernel_started is not None:
        alive = process_started(record.kernel_pid) == record.kernel_started
        log.warning("holder_died", kernel_id=kernel_folder.kernel_id, kernel_alive=alive)
        if alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(record.kernel_pid, signal.SIGKILL)
    address = kernel_folder.read_address()
    if address is not None:
        for socket in address.socket.parent.glob(f"{address.socket.stem}*"):
            socket.unlink(missing_ok=True)
    remove(kernel_folder)
