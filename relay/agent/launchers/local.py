"""Holders on this machine: the folder's lock tells whether one runs.

The process that has a kernel's lock decides about the kernel. A holder inherits the lock from the
process that starts it, so that the lock is never free in between. A runner does what takes the
rights of the kernel's OS user.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from relay.agent.holder_process import HolderFiles, kill, open_log, open_process, wait_for_end
from relay.agent.launchers.base import Claim, HolderState, HolderStatus
from relay.agent.launchers.start_signals import StartSignals
from relay.config.holder import HolderConfig
from relay.errors import AgentUnavailable, OtherVersion
from relay.files import NotRegularFile, write_shared
from relay.kernel_folders import KernelFolder, find_folders, remove
from relay.runtime_dir import socket_name

log = structlog.get_logger(__name__)

_LOOK: Final = 0.25
"""Seconds between looks at a holder that some other process started, and that tells us nothing."""
_DEATH: Final = 5.0
"""Seconds that a holder may take to end once it was killed."""


class RuntimeInfo(NamedTuple):
    """What a kernel's OS user brings along."""

    sockets: Path
    """The folder of its unix sockets."""
    environment: Mapping[str, str] = {}
    """Variables that replace others."""
    working_folder: str | None = None
    """Where its kernels start, whatever was asked for; None: no such rule."""


class HolderRunner(Protocol):
    """Does what takes the rights of a kernel's OS user, on this machine."""

    def open_folders(self) -> None:
        """As in `Launcher`."""

    async def prepare(self, kernel_folder: KernelFolder, owner: str) -> RuntimeInfo:
        """Make a kernel's folder. Raises `Forbidden`, `Conflict` and ``OSError``."""

    async def run(self, kernel_folder: KernelFolder, owner: str, files: HolderFiles) -> int:
        """Run a holder and return its pid. Raises `Forbidden` and ``OSError``."""

    async def clean_up(self, kernel_folder: KernelFolder, lock: int | None) -> None:
        """End what runs for a kernel and free its id. Raises ``OSError``.

        Another OS user's holder is ended too. ``lock`` is the folder's lock, where it is taken.
        """

    def owner_matches(self, kernel_folder: KernelFolder, owner: str) -> bool:
        """As in `Launcher`."""


class LocalLauncher:
    """The `Launcher` of holders on this machine."""

    def __init__(self, state_dir: Path, cluster: str, runner: HolderRunner) -> None:
        self._state_dir = state_dir
        self._cluster = cluster
        self._runner = runner
        self._signals = StartSignals()

    def open_folders(self) -> None:
        """As in `Launcher`."""
        self._runner.open_folders()

    def list(self) -> Sequence[KernelFolder]:
        """As in `Launcher`."""
        return find_folders(self._state_dir, self._cluster)

    def owner_matches(self, kernel_folder: KernelFolder, owner: str) -> bool:
        """As in `Launcher`."""
        return self._runner.owner_matches(kernel_folder, owner)

    async def submit(self, kernel_folder: KernelFolder, config: HolderConfig) -> None:
        """As in `Launcher`."""
        try:
            info = await self._runner.prepare(kernel_folder, config.owner)
            with _locked(kernel_folder) as lock:
                if lock is not None and kernel_folder.read_record() is None:
                    noted = msgspec.json.encode(_complete(config, info))
                    write_shared(kernel_folder.request, noted)
                    await self._claim(kernel_folder, lock).resume(config.owner)
        except OSError:
            _discard(kernel_folder)
            raise

    async def watch(
        self, kernel_folder: KernelFolder, seen: HolderStatus | None = None
    ) -> HolderStatus:
        """As in `Launcher`."""
        status = self._look(kernel_folder)
        if status == seen:
            if self._signals.is_expected(kernel_folder.kernel_id):
                await self._signals.wait(kernel_folder.kernel_id)
            else:
                await _pause(kernel_folder)
            status = self._look(kernel_folder)
        return status

    @contextlib.asynccontextmanager
    async def claim(self, kernel_folder: KernelFolder) -> AsyncIterator[Claim | None]:
        """As in `Launcher`."""
        with _locked(kernel_folder) as lock:
            yield None if lock is None else self._claim(kernel_folder, lock)

    async def cancel(self, kernel_folder: KernelFolder) -> None:
        """As in `Launcher`."""
        kernel_folder.check_versions()
        if kernel_folder.uid != os.geteuid():
            # With the rights of the folder's user, which suffice for the holder too.
            await self._runner.clean_up(kernel_folder, None)
            return
        await _end_holder(kernel_folder)
        try:
            with _locked(kernel_folder) as lock:
                if lock is None:
                    raise AgentUnavailable("The kernel has another holder.", retry_after=1)
                await self._runner.clean_up(kernel_folder, lock)
        except NotRegularFile:
            # Something else is in the place of the lock, so no holder can have it.
            await self._runner.clean_up(kernel_folder, None)

    def _claim(self, kernel_folder: KernelFolder, lock: int) -> _LocalClaim:
        return _LocalClaim(self._runner, self._signals, kernel_folder, lock)

    def _look(self, kernel_folder: KernelFolder) -> HolderStatus:
        try:
            if not kernel_folder.exists():
                return HolderStatus(HolderState.ABSENT)
            if self._signals.is_expected(kernel_folder.kernel_id):
                return HolderStatus(HolderState.STARTING)
            if kernel_folder.is_locked():
                return HolderStatus(HolderState.RUNNING)
            record = kernel_folder.read_record()
        except FileNotFoundError:
            return HolderStatus(HolderState.ABSENT)
        except OSError as error:
            return HolderStatus(HolderState.UNKNOWN, str(error))
        return HolderStatus(HolderState.UNSTARTED if record is None else HolderState.LOST)


class _LocalClaim:
    """The `Claim` of a process that has the folder's lock."""

    def __init__(
        self, runner: HolderRunner, signals: StartSignals, kernel_folder: KernelFolder, lock: int
    ) -> None:
        self._runner = runner
        self._signals = signals
        self._kernel_folder = kernel_folder
        self._lock = lock

    async def resume(self, owner: str) -> None:
        """As in `Claim`."""
        kernel_id = self._kernel_folder.kernel_id
        log_file = open_log(self._kernel_folder)
        try:
            with self._signals.of_start(kernel_id) as serving:
                files = HolderFiles(self._lock, log_file, serving)
                pid = await self._runner.run(self._kernel_folder, owner, files)
        finally:
            os.close(log_file)
        log.info("holder_started", kernel_id=kernel_id, holder_pid=pid)

    async def cancel(self) -> None:
        """As in `Claim`."""
        await self._runner.clean_up(self._kernel_folder, self._lock)


@contextlib.contextmanager
def _locked(kernel_folder: KernelFolder) -> Iterator[int | None]:
    """Lock a kernel's folder: the descriptor, or None where the lock is taken.

    A holder that was started with the lock keeps it. Raises `OtherVersion` and ``OSError``.
    """
    lock = kernel_folder.try_lock()
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def _complete(config: HolderConfig, info: RuntimeInfo) -> HolderConfig:
    """Add what the kernel's OS user brings along."""
    return msgspec.structs.replace(
        config,
        socket=str(info.sockets / f"{socket_name()}.sock"),
        environment={**config.environment, **info.environment},
        working_folder=info.working_folder or config.working_folder,
    )


def _discard(kernel_folder: KernelFolder) -> None:
    """Remove the folder of a kernel whose first holder could not be started."""
    with contextlib.suppress(OSError, OtherVersion), _locked(kernel_folder) as lock:
        if lock is not None and kernel_folder.read_record() is None:
            remove(kernel_folder)
    with contextlib.suppress(OSError):
        # There was no room for the lock either.
        kernel_folder.path.rmdir()


async def _pause(kernel_folder: KernelFolder) -> None:
    """Wait for the end of the holder that the folder names, or for a moment."""
    record = None
    with contextlib.suppress(OSError):
        record = kernel_folder.read_record()
    if record is None:
        await asyncio.sleep(_LOOK)
        return
    with open_process(record.holder_pid, record.holder_started) as pidfd:
        if pidfd is None:
            await asyncio.sleep(_LOOK)
        else:
            await wait_for_end(pidfd, _LOOK)


async def _end_holder(kernel_folder: KernelFolder) -> None:
    """Kill the holder that the folder names, and wait for its end. Raises ``OSError``."""
    record = kernel_folder.read_record()
    if record is None:
        return
    with open_process(record.holder_pid, record.holder_started) as pidfd:
        if pidfd is not None:
            kill(pidfd)
            await wait_for_end(pidfd, _DEATH)
