"""Holders' processes: started, replaced when they died, and what is left of them buried.

Everything here is done with the folder's lock taken; a holder that is started inherits it, so
that there is no moment in which nobody has it. Whatever takes the rights of the kernel's own OS
user is a `Launcher`'s to do: the agent itself where they share one, else its launcher
(``agent/launchers/other_user.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import structlog

from relay import limits
from relay.config.holder import HolderConfig
from relay.config.values import THE_RELAYS
from relay.files import open_plain, private_folder, read_struct, read_tail, write_atomic
from relay.kernel_folders import (
    KernelFolder,
    kernels_folder,
    process_started,
    remove,
    runtime_folder,
    sweep,
)
from relay.model import Principal

log = structlog.get_logger(__name__)

_ALLOCATOR: Final = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "524288",
    "MALLOC_TRIM_THRESHOLD_": "16777216",
}
"""Variables for a holder, which is no kernel: an allocator that gives back.

Else glibc, having freed a few large messages, keeps the next ones' memory for itself
(``mallopt(3)``, M_MMAP_THRESHOLD).
"""
_TAIL: Final = 250
"""Bytes of a failed holder's log that go into the agent's."""


class RuntimeInfo(NamedTuple):
    """What a kernel's OS user brings along."""

    runtime: Path
    """The folder of its unix sockets."""
    environment: Mapping[str, str] = {}
    """Variables that take the place of others."""
    working_folder: str | None = None
    """Where its kernels start unless somebody says otherwise; None: where the agent runs."""


class Launcher(Protocol):
    """Does what takes the rights of a kernel's OS user."""

    def open_folders(self) -> None:
        """Make what the kernels' folders stand in. Raises ``OSError`` and `FolderError`."""

    async def prepare(self, kernel_folder: KernelFolder, owner: Principal) -> RuntimeInfo:
        """Make a kernel's folder. Raises `Forbidden`, `Conflict` and ``OSError``."""

    async def start(self, kernel_folder: KernelFolder, owner: str, lock: int) -> int:
        """Start a holder, which keeps the lock: its pid. Raises `Forbidden` and ``OSError``."""

    async def bury(self, kernel_folder: KernelFolder, lock: int) -> None:
        """End what a dead holder left, and free the kernel's id. Raises ``OSError``."""

    def believes(self, kernel_folder: KernelFolder, owner: str) -> bool:
        """Whether a folder can hold a kernel of ``owner``, whatever is written in it."""


class LocalLauncher:
    """The `Launcher` where agent, holders and kernels share one OS user."""

    def __init__(self, state_dir: Path, cluster: str, runtime_dir: str | None) -> None:
        self._state_dir = state_dir
        self._cluster = cluster
        self._runtime = runtime_folder(state_dir, runtime_dir)

    def open_folders(self) -> None:
        """As in `Launcher`."""
        private_folder(kernels_folder(self._state_dir, self._cluster))
        sweep(self._state_dir, self._cluster)

    async def prepare(self, kernel_folder: KernelFolder, owner: Principal) -> RuntimeInfo:
        """As in `Launcher`."""
        del owner
        private_folder(kernel_folder.path)
        return RuntimeInfo(self._runtime)

    async def start(self, kernel_folder: KernelFolder, owner: str, lock: int) -> int:
        """As in `Launcher`."""
        del owner
        log_file = open_log(kernel_folder)
        try:
            return run_holder(kernel_folder, lock, log_file, _own_environment())
        finally:
            os.close(log_file)

    async def bury(self, kernel_folder: KernelFolder, lock: int) -> None:
        """As in `Launcher`."""
        del lock
        bury(kernel_folder)

    def believes(self, kernel_folder: KernelFolder, owner: str) -> bool:
        """As in `Launcher`."""
        del kernel_folder, owner
        return True


async def spawn(
    launcher: Launcher, kernel_folder: KernelFolder, config: HolderConfig, lock: int
) -> None:
    """Start the first holder of a folder. Raises as `Launcher.start`."""
    write_atomic(kernel_folder.request, msgspec.json.encode(config))
    pid = await launcher.start(kernel_folder, config.owner, lock)
    log.info("holder_started", kernel_id=kernel_folder.kernel_id, holder_pid=pid)


async def replace(launcher: Launcher, kernel_folder: KernelFolder, lock: int) -> str:
    """Start another holder, which adopts the kernel of one that died, or bury what is left.

    Returns why it was buried, where that is worth telling; "" otherwise. Raises ``OSError``.
    """
    record, config = kernel_folder.read_record(), read_struct(kernel_folder.request, HolderConfig)
    if record is None or config is None or not record.adoptable:
        await launcher.bury(kernel_folder, lock)
        return ""
    if not launcher.believes(kernel_folder, config.owner):
        log.error("owner_not_believed", kernel_id=kernel_folder.kernel_id, owner=config.owner)
        await launcher.bury(kernel_folder, lock)
        return ""
    limit, window = config.kernels.holder_restart_limit, config.kernels.holder_restart_window
    now = time.monotonic()
    recent = [then for then in _replacements(kernel_folder) if now - window < then <= now]
    if len(recent) >= limit:
        log.error(
            "holder_given_up",
            kernel_id=kernel_folder.kernel_id,
            deaths=len(recent) + 1,
            window=window,
            setting="kernels.holder_restart_limit",
        )
        limits.record("kernels.holder_restart_limit")
        await launcher.bury(kernel_folder, lock)
        return (
            f"The kernel was ended: its holder died {len(recent) + 1} times within {window:g} s "
            "(kernels.holder_restart_limit)."
        )
    # Noted before it is done, whoever dies.
    write_atomic(kernel_folder.replacements, msgspec.json.encode([*recent, now]))
    pid = await launcher.start(kernel_folder, config.owner, lock)
    log.warning("holder_replaced", kernel_id=kernel_folder.kernel_id, holder_pid=pid)
    return ""


def _replacements(kernel_folder: KernelFolder) -> list[float]:
    """Seconds since the machine started, a clock that all its processes share."""
    try:
        return read_struct(kernel_folder.replacements, list[float]) or []
    except OSError:
        return []


def run_holder(
    kernel_folder: KernelFolder,
    lock: int,
    log_file: int,
    environment: Mapping[str, str],
    arguments: Sequence[str] = (),
    *,
    ended: Callable[[], object] = lambda: None,
    **user: Any,  # noqa: ANN401 - Popen's own
) -> int:
    """Run a holder, which keeps ``lock``: its pid. ``ended`` is called when it has ended.

    ``user`` are arguments of ``subprocess.Popen`` that say as whom it runs. Raises ``OSError``.
    """
    # -P: the folder we happen to be in is no place to import from.
    command = (sys.executable, "-P", "-m", "relay.holder", "--folder", str(kernel_folder.path))
    process = subprocess.Popen(  # noqa: S603 - our own program
        [*command, "--lock", str(lock), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log_file,
        stderr=log_file,
        pass_fds=(lock,),
        start_new_session=True,
        env={**environment, **_ALLOCATOR},
        **user,
    )
    when_ended(process, ended)
    return process.pid


def open_log(kernel_folder: KernelFolder) -> int:
    """The file that a holder writes its log to: a descriptor. Raises ``OSError``."""
    return open_plain(kernel_folder.holder_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(THE_RELAYS)}


def is_free(kernel_folder: KernelFolder) -> bool:
    """Whether nobody holds a kernel's folder: its holder ended before it served."""
    try:
        lock = kernel_folder.try_lock()
    except FileNotFoundError:
        return True
    if lock is None:
        return False
    os.close(lock)
    return True


def bury(kernel_folder: KernelFolder) -> None:
    """End what a holder that died left running. Call it with the folder's lock taken."""
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


def when_ended(process: subprocess.Popen[bytes], ended: Callable[[], object]) -> None:
    """Collect a child's exit status when it ends, so that it leaves no zombie; then call that."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)

    def collect() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.wait()
        ended()

    loop.add_reader(descriptor, collect)


def log_tail(kernel_folder: KernelFolder) -> str:
    """The end of what a holder wrote before it ended."""
    with contextlib.suppress(OSError):
        return read_tail(kernel_folder.holder_log, _TAIL).decode(errors="replace")
    return ""
