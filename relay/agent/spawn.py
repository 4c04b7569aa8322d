"""Holders' processes: started, replaced when they died, and what is left of them buried.

Everything here is done with the folder's lock taken; a holder that is started inherits it, so
that there is no moment in which nobody has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Final

import msgspec
import structlog

from relay import limits
from relay.config.holder import HolderConfig
from relay.config.values import THE_RELAYS
from relay.registry import Place, process_started, remove, write_atomic

log = structlog.get_logger(__name__)

_ALLOCATOR: Final = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "524288",
    "MALLOC_TRIM_THRESHOLD_": "16777216",
}
_TAIL: Final = 250
"""Characters of a failed holder's log that go into the agent's."""


def spawn(place: Place, config: HolderConfig, lock: int) -> None:
    """Start the first holder of a folder. Raises ``OSError``."""
    write_atomic(place.request, msgspec.json.encode(config))
    process = _start(place, lock)
    log.info("holder_started", kernel_id=place.kernel_id, holder_pid=process.pid)


def replace(place: Place, lock: int) -> str:
    """Start another holder, which adopts the kernel of one that died, or bury what is left.

    Returns why it was buried, where that is worth telling; "" otherwise. Raises ``OSError``.
    """
    record, config = place.read_record(), _read_config(place)
    if record is None or config is None or not record.adoptable:
        bury(place)
        return ""
    limit, window = config.kernels.holder_restart_limit, config.kernels.holder_restart_window
    now = time.monotonic()
    recent = [then for then in _replacements(place) if now - window < then <= now]
    if len(recent) >= limit:
        log.error(
            "holder_given_up",
            kernel_id=place.kernel_id,
            deaths=len(recent) + 1,
            window=window,
            setting="kernels.holder_restart_limit",
        )
        limits.hit("kernels.holder_restart_limit")
        bury(place)
        return (
            f"The kernel was ended: its holder died {len(recent) + 1} times within {window:g} s "
            "(kernels.holder_restart_limit)."
        )
    # Noted before it is done, whoever dies.
    write_atomic(place.replacements, msgspec.json.encode([*recent, now]))
    process = _start(place, lock)
    log.warning("holder_replaced", kernel_id=place.kernel_id, holder_pid=process.pid)
    return ""


def _read_config(place: Place) -> HolderConfig | None:
    try:
        return msgspec.json.decode(place.request.read_bytes(), type=HolderConfig)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _replacements(place: Place) -> list[float]:
    """Seconds since the machine started, a clock that all its processes share."""
    try:
        return msgspec.json.decode(place.replacements.read_bytes(), type=list[float])
    except (OSError, msgspec.MsgspecError):
        return []


def _start(place: Place, lock: int) -> subprocess.Popen[bytes]:
    # -P: the folder we happen to be in is no place to import from.
    command = [sys.executable, "-P", "-m", "relay.holder", "--folder", str(place.folder)]
    descriptor = os.open(place.holder_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [*command, "--lock", str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            pass_fds=(lock,),
            start_new_session=True,
            env=_holder_environment(),
        )
    finally:
        os.close(descriptor)
    _reap(process)
    return process


def _holder_environment() -> dict[str, str]:
    """What a holder, which is no kernel, gets: ours, and an allocator that gives back.

    Else glibc, having freed a few large messages, keeps the next ones' memory for itself
    (``mallopt(3)``, M_MMAP_THRESHOLD).
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(THE_RELAYS)}
    return own | _ALLOCATOR


def is_free(place: Place) -> bool:
    """Whether nobody holds a kernel's folder: its holder ended before it served."""
    try:
        lock = place.try_lock()
    except FileNotFoundError:
        return True
    if lock is None:
        return False
    os.close(lock)
    return True


def bury(place: Place) -> None:
    """End what a holder that died left running. Call it with the folder's lock taken."""
    record = place.read_record()
    if record is not None and record.kernel_pid is not None:
        alive = process_started(record.kernel_pid) == record.kernel_started
        log.warning("holder_died", kernel_id=place.kernel_id, kernel_alive=alive)
        if alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(record.kernel_pid, signal.SIGKILL)
    address = place.read_address()
    if address is not None:
        for socket in address.socket.parent.glob(f"{address.socket.stem}*"):
            socket.unlink(missing_ok=True)
    remove(place)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Collect the holder's exit status when it ends, so that it leaves no zombie."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.wait()

    loop.add_reader(descriptor, ended)


def log_tail(place: Place) -> str:
    """The end of what a holder wrote before it ended."""
    with contextlib.suppress(OSError):
        return place.holder_log.read_text(errors="replace")[-_TAIL:]
    return ""
