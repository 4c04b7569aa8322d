"""The holders of this node: found in their folders, kept at hand, replaced when they died.

The folders are the registry; what is kept here is read from them and from the holders' sockets,
and can be read again by the next agent. Agents that share a state folder serve the same kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from relay.agent.holders.client import HolderClient
from relay.agent.holders.create import KernelCreator, StartRequest
from relay.agent.holders.stats import HolderStats
from relay.agent.launchers.local import Launcher, is_free, log_tail, replace
from relay.auth.ownership import KernelOwnership, no_such_kernel
from relay.bridge.records import Phase, RecordError
from relay.config import AgentConfig
from relay.errors import (
    AgentUnavailable,
    Conflict,
    DiskFull,
    NotFound,
    RelayError,
    StartFailed,
)
from relay.files import is_disk_trouble
from relay.kernel_folders import KernelFolder, find_folders, kernels_folder
from relay.routing.routes import is_kernel_id

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CONNECT: Final = 15.0
"""Seconds a holder has from its start until it serves its socket."""
_ANSWER: Final = 5.0
"""Seconds a list waits for a holder that was never heard."""
_RETRY: Final = 0.02
_TRIES: Final = 3
_REASONS: Final = 1024
"""Kernels of which is remembered why they are no more."""
_MARGIN: Final = 20.0
"""Seconds beyond twice the launch timeout (ipc, then TCP) after which a start has failed."""


class HolderRegistry:
    """The kernels of one cluster on this node.

    ``tasks`` owns the lines to the holders.
    """

    def __init__(
        self, config: AgentConfig, launcher: Launcher, max_record: int, tasks: asyncio.TaskGroup
    ) -> None:
        self._config = config
        self._launcher = launcher
        self._maker = KernelCreator(config, launcher, max_record, self._replace)
        self._tasks = tasks
        self._state_dir = Path(config.state_dir)
        self._lines: dict[str, HolderClient] = {}
        self._gone: set[str] = set()
        """Ended, though their folders may be there for another moment."""
        self._reasons: OrderedDict[str, tuple[KernelOwnership, str]] = OrderedDict()
        """Why kernels were ended that nobody wanted to end, and whose they were."""
        self._opening: dict[str, asyncio.Task[HolderClient | RelayError | None]] = {}
        self.tally = HolderStats()

    @property
    def ready(self) -> list[HolderClient]:
        """The kernels that run, as far as is known."""
        return [line for line in self._lines.values() if line.status.phase is Phase.READY]

    async def find(self) -> None:
        """Find the kernels that run already, those of holders that died among them."""
        try:
            lines = await self.all()
        except AgentUnavailable as error:
            log.warning("holder_silent", problem=error.message)
        else:
            log.info("kernels_found", count=len(lines))

    async def all(
        self, wanted: Callable[[KernelOwnership], bool] = lambda _: True
    ) -> list[HolderClient]:
        """Every kernel that runs and is ``wanted``.

        Raises `AgentUnavailable` rather than leave one out.
        """
        found = find_folders(self._state_dir, self._config.cluster)
        self._gone &= {kernel_folder.kernel_id for kernel_folder in found}

        def is_wanted(kernel_id: str, *, unknown: bool) -> bool:
            kernel = self.possession(kernel_id)
            return unknown if kernel is None else wanted(kernel)

        # Nobody waits for the holder of somebody else's kernel.
        asked = [
            kernel_folder
            for kernel_folder in found
            if is_wanted(kernel_folder.kernel_id, unknown=True)
        ]
        return [
            line
            for line in await self._within_answer(self._known(asked))
            if line.status.phase is Phase.READY
            and is_wanted(line.kernel_folder.kernel_id, unknown=False)
        ]

    def possession(self, kernel_id: str) -> KernelOwnership | None:
        """Whose a kernel is, or was that ended against everybody's will; None for no kernel."""
        if not is_kernel_id(kernel_id):
            # An id becomes a path.
            return None
        kernel_folder, line = self._kernel_folder(kernel_id), self._lines.get(kernel_id)
        known = line.status if line is not None else kernel_folder.read_address()
        # A folder's user may write anything there: it is no proof of another's kernel.
        if known is not None and self._launcher.believes(kernel_folder, known.owner):
            grants = kernel_folder.read_grants()
            return KernelOwnership(owner=known.owner, kernelspec=known.name, grants=grants)
        kernel, _ = self._reasons.get(kernel_id, (None, ""))
        return kernel

    def exists(self, kernel_id: str) -> bool:
        """Whether there is a kernel of this id."""
        return (
            is_kernel_id(kernel_id)
            and kernel_id not in self._gone
            and self._kernel_folder(kernel_id).exists()
        )

    async def get(self, kernel_id: str) -> HolderClient:
        """One kernel. Raises `NotFound`."""
        if not is_kernel_id(kernel_id):
            raise no_such_kernel(kernel_id)
        line = self._lines.get(kernel_id)
        if line is None and self.exists(kernel_id):
            line = await self._within_answer(self._open(self._kernel_folder(kernel_id)))
        if line is None or line.status.phase is not Phase.READY:
            if kernel_id in self._reasons:
                _, reason = self._reasons[kernel_id]
                raise NotFound(reason)
            raise no_such_kernel(kernel_id)
        return line

    async def start(self, request: StartRequest) -> HolderClient:
        """Start a kernel, or find the one that an earlier try with the same id started.

        Raises `StartFailed`, `Conflict` for somebody else's kernel, `TooMany`, and `Forbidden`
        where it would share its user id with somebody else's.
        """
        self.tally.starts += 1
        try:
            return await self._start(request)
        except StartFailed:
            self.tally.start_failures += 1
            raise

    async def _start(self, request: StartRequest) -> HolderClient:
        self._refuse_anothers(request)
        line = self._lines.get(request.kernel_id)
        if line is None:
            line = await self._open(self._kernel_folder(request.kernel_id), request)
        if line is None:
            msg = "The kernel ended while it started."
            raise StartFailed(msg)
        self._refuse_anothers(request)
        try:
            await line.settled(2 * request.launch_timeout + _MARGIN)
        except TimeoutError:
            msg = "The kernel's holder does not answer."
            raise StartFailed(msg) from None
        if line.status.phase is Phase.FAILED and line.status.failure is not None:
            failure = line.status.failure
            full = failure.http_status == DiskFull.http_status
            raise (DiskFull if full else StartFailed)(failure.message)
        if line.status.phase is not Phase.READY:
            msg = "The kernel ended while it started."
            raise StartFailed(msg)
        return line

    def _refuse_anothers(self, request: StartRequest) -> None:
        """Raise `Conflict` for an id that somebody else's kernel has, and say no more of it."""
        if not self.exists(request.kernel_id):
            return
        kernel = self.possession(request.kernel_id)
        if kernel is not None and kernel.owner != str(request.owner):
            raise Conflict("This kernel id is taken.")

    async def stop(self, kernel_id: str, request_id: str) -> None:
        """End a kernel. Raises `NotFound`."""
        line = await self.get(kernel_id)
        await line.call("shutdown", request_id, self._config.kernels.shutdown_timeout + _MARGIN)
        self._forget(line)

    def close(self) -> None:
        """Hang up on all holders; they and their kernels live on."""
        for task in list(self._opening.values()):
            task.cancel()
        for line in self._lines.values():
            line.close()

    def _kernel_folder(self, kernel_id: str) -> KernelFolder:
        return KernelFolder(kernels_folder(self._state_dir, self._config.cluster) / kernel_id)

    def _is_known(self, kernel_folder: KernelFolder) -> bool:
        return kernel_folder.kernel_id in self._lines or kernel_folder.kernel_id in self._gone

    async def _known(self, found: list[KernelFolder]) -> list[HolderClient]:
        """The line to each kernel; looked for again where a holder has died meanwhile."""
        while unknown := [
            kernel_folder for kernel_folder in found if not self._is_known(kernel_folder)
        ]:
            lines = await asyncio.gather(*(self._open(kernel_folder) for kernel_folder in unknown))
            ended = {
                kernel_folder
                for kernel_folder, line in zip(unknown, lines, strict=True)
                if line is None
            }
            found = [kernel_folder for kernel_folder in found if kernel_folder not in ended]
        # In the turn in which all were seen to be there.
        return list(self._lines.values())

    async def _within_answer(self, waited: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(waited, _ANSWER)
        except TimeoutError:
            msg = "A kernel's holder does not answer."
            raise AgentUnavailable(msg, retry_after=1) from None

    async def _open(
        self, kernel_folder: KernelFolder, request: StartRequest | None = None
    ) -> HolderClient | None:
        """The line to a kernel's holder; all who ask at the same time get the same one."""
        task = self._opening.get(kernel_folder.kernel_id)
        if task is None:
            coroutine = self._open_or_fail(kernel_folder, request)
            task = self._tasks.create_task(coroutine, name=f"open {kernel_folder.kernel_id}")
            self._opening[kernel_folder.kernel_id] = task
            task.add_done_callback(lambda _: self._opening.pop(kernel_folder.kernel_id, None))
        # Whoever stops waiting must not stop the others' start.
        found = await asyncio.shield(task)
        if isinstance(found, RelayError):
            raise found
        return found

    async def _open_or_fail(
        self, kernel_folder: KernelFolder, request: StartRequest | None
    ) -> HolderClient | RelayError | None:
        """As a task: an exception would end the agent with all its tasks."""
        try:
            return await (
                self._look(kernel_folder)
                if request is None
                else self._begin(kernel_folder, request)
            )
        except RecordError as error:
            log.warning(
                "holder_not_understood", kernel_id=kernel_folder.kernel_id, problem=error.message
            )
            msg = "A kernel's holder does not speak as this agent does."
            return AgentUnavailable(msg, retry_after=1)
        except RelayError as error:
            return error
        except UnicodeEncodeError:
            return StartFailed("The kernel's folder, or its environment, is not in UTF-8.")
        except OSError as error:
            log.error("holder_not_started", kernel_id=kernel_folder.kernel_id, problem=str(error))  # noqa: TRY400 - the text says it all
            # Of one that may run, that it cannot be reached just now is all that is known.
            if request is not None and is_disk_trouble(error):
                return DiskFull(f"The kernel's files cannot be written: {error.strerror}.")
            msg = "A kernel's holder cannot be started just now."
            return AgentUnavailable(msg, retry_after=1)

    async def _look(self, kernel_folder: KernelFolder) -> HolderClient | None:
        """The line to a kernel that may run; a holder that died is replaced, as often as it may."""
        while kernel_folder.exists() and kernel_folder.kernel_id not in self._gone:
            await self._tend(kernel_folder)
            line = await self._connect(kernel_folder)
            if line is not None:
                return line
        return None

    async def _begin(
        self, kernel_folder: KernelFolder, request: StartRequest
    ) -> HolderClient | None:
        self._gone.discard(kernel_folder.kernel_id)
        self._reasons.pop(kernel_folder.kernel_id, None)
        for _ in range(_TRIES):
            # Another agent may take a folder without a holder for a left-over in between.
            with contextlib.suppress(FileNotFoundError):
                await self._maker.make(kernel_folder, request, self._gone)
            line = await self._connect(kernel_folder)
            if line is not None:
                return line
        return None

    async def _tend(self, kernel_folder: KernelFolder) -> None:
        """Replace the holder of a folder that no holder holds, or bury what is left of it."""
        with contextlib.suppress(FileNotFoundError):
            lock = kernel_folder.try_lock()
            if lock is not None:
                await self._replace(kernel_folder, lock)

    async def _replace(self, kernel_folder: KernelFolder, lock: int) -> None:
        kernel = self.possession(kernel_folder.kernel_id)
        try:
            reason = await replace(self._launcher, kernel_folder, lock)
        finally:
            os.close(lock)
        if reason and kernel is not None:
            self._reasons[kernel_folder.kernel_id] = kernel, reason
            if len(self._reasons) > _REASONS:
                self._reasons.popitem(last=False)

    async def _connect(self, kernel_folder: KernelFolder) -> HolderClient | None:
        deadline = time.monotonic() + _CONNECT
        while time.monotonic() < deadline:
            try:
                line = await HolderClient.open(kernel_folder)
            except (OSError, EOFError):
                if not kernel_folder.exists():
                    return None
                if is_free(kernel_folder):
                    log.warning(
                        "holder_failed",
                        kernel_id=kernel_folder.kernel_id,
                        said=log_tail(kernel_folder),
                    )
                    return None
                await asyncio.sleep(_RETRY)
                continue
            if not self._launcher.believes(kernel_folder, line.status.owner):
                log.warning("owner_not_believed", kernel_id=kernel_folder.kernel_id)
                self._gone.add(kernel_folder.kernel_id)
                line.close()
                return None
            self._lines[kernel_folder.kernel_id] = line
            self.tally.meet(line)
            self._tasks.create_task(self._follow(line), name=f"line {kernel_folder.kernel_id}")
            return line
        msg = "A kernel's holder does not answer."
        raise AgentUnavailable(msg, retry_after=1)

    async def _follow(self, line: HolderClient) -> None:
        await line.run()
        hung_up_by_us = line.closed
        self._forget(line)
        if line.status.phase in {Phase.READY, Phase.STARTING} and not hung_up_by_us:
            # Hung up without a word: looking again replaces the holder, if it died.
            log.warning("holder_lost", kernel_id=line.kernel_folder.kernel_id)
            self.tally.holder_deaths += 1
            self._gone.discard(line.kernel_folder.kernel_id)
            try:
                await self._open(line.kernel_folder)
            except RelayError as error:
                # Whoever asks for the kernel next looks again.
                log.warning(
                    "holder_silent", kernel_id=line.kernel_folder.kernel_id, problem=error.message
                )

    def _forget(self, line: HolderClient) -> None:
        self._gone.add(line.kernel_folder.kernel_id)
        if self._lines.get(line.kernel_folder.kernel_id) is line:
            self.tally.part(line)
            del self._lines[line.kernel_folder.kernel_id]
        line.close()
