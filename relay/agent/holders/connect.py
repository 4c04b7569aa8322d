"""The way to a kernel's holder: created, adopted or found, and connected to once it serves."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from relay.agent.holder_process import log_tail
from relay.agent.holders.adopt import adopt
from relay.agent.holders.client import HolderClient
from relay.agent.holders.create import KernelCreator, StartRequest
from relay.agent.holders.ended import EndedKernels
from relay.agent.launchers.base import HolderState, HolderStatus, Launcher
from relay.agent.launchers.start_signals import SERVE_TIMEOUT
from relay.auth.ownership import KernelOwnership
from relay.bridge.records import RecordError
from relay.errors import AgentUnavailable, DiskFull, OtherVersion, RelayError, StartFailed
from relay.files import is_disk_error
from relay.kernel_folders import KernelFolder

log = structlog.get_logger(__name__)

_TRIES: Final = 3
"""Times that a first holder is started."""


class HolderConnector:
    """Connects to the holders of one cluster's kernels, and has dead ones replaced."""

    def __init__(self, launcher: Launcher, creator: KernelCreator, ended: EndedKernels) -> None:
        self._launcher = launcher
        self._creator = creator
        self._ended = ended

    async def connect(
        self, kernel_folder: KernelFolder, request: StartRequest | None = None
    ) -> HolderClient | None:
        """Connect to a kernel's holder; None for a kernel that has ended.

        A kernel that does not exist is created by ``request``. Raises `RelayError` only.
        """
        try:
            if request is None:
                return await self._find(kernel_folder)
            return await self._create(kernel_folder, request)
        except OtherVersion as error:
            log.warning("version_refused", kernel_id=kernel_folder.kernel_id, problem=error.message)
            raise
        except (RecordError, UnicodeEncodeError, OSError) as error:
            raise _explain(error, kernel_folder, request) from error

    async def _find(self, kernel_folder: KernelFolder) -> HolderClient | None:
        """Connect to the holder of a kernel that may run; one that died is replaced."""
        while kernel_folder.exists() and kernel_folder.kernel_id not in self._ended:
            status = await self._launcher.watch(kernel_folder)
            if status.state in {HolderState.LOST, HolderState.UNSTARTED}:
                await self._adopt(kernel_folder)
            client = await self._connect(kernel_folder)
            if client is not None:
                return client
        return None

    async def _create(
        self, kernel_folder: KernelFolder, request: StartRequest
    ) -> HolderClient | None:
        self._ended.forget(kernel_folder.kernel_id)
        for _ in range(_TRIES):
            # Another agent may take a folder without a holder for a left-over in between.
            with contextlib.suppress(FileNotFoundError):
                await self._creator.create(kernel_folder, request, self._ended)
            if (await self._launcher.watch(kernel_folder)).state is HolderState.LOST:
                await self._adopt(kernel_folder)
            client = await self._connect(kernel_folder)
            if client is not None:
                return client
        return None

    async def _adopt(self, kernel_folder: KernelFolder) -> None:
        kernel = read_ownership(self._launcher, kernel_folder)
        with contextlib.suppress(FileNotFoundError):
            reason = await adopt(self._launcher, kernel_folder)
            if reason and kernel is not None:
                self._ended.explain(kernel_folder.kernel_id, kernel, reason)

    async def _connect(self, kernel_folder: KernelFolder) -> HolderClient | None:
        """Connect once the holder serves; None where the kernel has no holder any more."""
        try:
            async with asyncio.timeout(SERVE_TIMEOUT):
                client = await self._connect_when_serving(kernel_folder)
        except TimeoutError:
            msg = "A kernel's holder does not answer."
            raise AgentUnavailable(msg, retry_after=1) from None
        if client is None or self._launcher.owner_matches(kernel_folder, client.status.owner):
            return client
        log.warning("owner_mismatch", kernel_id=kernel_folder.kernel_id, owner=client.status.owner)
        self._ended.add(kernel_folder.kernel_id)
        client.close()
        return None

    async def _connect_when_serving(self, kernel_folder: KernelFolder) -> HolderClient | None:
        status: HolderStatus | None = None
        while True:
            status = await self._launcher.watch(kernel_folder, status)
            match status.state:
                case HolderState.RUNNING:
                    with contextlib.suppress(OSError, EOFError):
                        return await HolderClient.open(kernel_folder)
                case HolderState.STARTING:
                    continue
                case HolderState.ABSENT:
                    return None
                case HolderState.LOST | HolderState.UNSTARTED:
                    log.warning(
                        "holder_start_failed",
                        kernel_id=kernel_folder.kernel_id,
                        log_tail=log_tail(kernel_folder),
                    )
                    return None
                case HolderState.UNKNOWN:
                    raise OSError(status.reason)


def read_ownership(launcher: Launcher, kernel_folder: KernelFolder) -> KernelOwnership | None:
    """Return a kernel's ownership as its folder tells it; None where it tells of none that counts.

    A folder's user may write anything into it: it proves nothing about another user's kernel.
    """
    noted = kernel_folder.read_address()
    if noted is None or not launcher.owner_matches(kernel_folder, noted.owner):
        return None
    grants = kernel_folder.read_grants()
    return KernelOwnership(owner=noted.owner, kernelspec=noted.name, grants=grants)


def _explain(
    error: Exception, kernel_folder: KernelFolder, request: StartRequest | None
) -> RelayError:
    """Log a failure and return what the client is told of it."""
    kernel_id = kernel_folder.kernel_id
    if isinstance(error, RecordError):
        log.warning("holder_protocol_error", kernel_id=kernel_id, problem=error.message)
        msg = "A kernel's holder does not speak as this agent does."
        return AgentUnavailable(msg, retry_after=1)
    if isinstance(error, UnicodeEncodeError):
        return StartFailed("The kernel's folder, or its environment, is not in UTF-8.")
    log.error("holder_start_failed", kernel_id=kernel_id, problem=str(error))
    if request is not None and isinstance(error, OSError) and is_disk_error(error):
        return DiskFull(f"The kernel's files cannot be written: {error.strerror}.")
    # The kernel may run: all that is known is that it cannot be reached just now.
    return AgentUnavailable("A kernel's holder cannot be started just now.", retry_after=1)
