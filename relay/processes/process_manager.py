"""Keeps a program running: starts it again, with back-off, whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from relay.processes.children import Child, Command

_CONFIGURATION_ERROR: Final = 2
_HOPELESS_FAILURES: Final = 5
_SHORT: Final = 0.5

log: FilteringBoundLogger = structlog.get_logger()


class Backoff:
    """How long to wait before the next start, in seconds: 0.1, 0.2, 0.4, ... 5.

    A process that lived for ``settle`` seconds begins anew.
    """

    def __init__(self, first: float = 0.1, limit: float = 5.0, settle: float = 3.0) -> None:
        self._first = first
        self._limit = limit
        self._settle = settle
        self._next = first

    def after(self, lived: float) -> float:
        """The delay after a life of so many seconds."""
        delay = self._first if lived >= self._settle else self._next
        self._next = min(delay * 2, self._limit)
        return delay


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: its exit code (negative: the signal), its life in seconds."""

    code: int
    lived: float


class ProcessManager:
    """Runs one command for as long as `run` runs.

    ``changed`` is called whenever `child`, its readiness or its workers have changed.
    """

    def __init__(
        self, command: Command, changed: Callable[[], None], backoff: Backoff | None = None
    ) -> None:
        self.command = command
        self.child: Child | None = None
        self.was_ready = False
        self.failures = 0
        """Ends before it was ready for the first time."""
        self.last_exit: Exit | None = None
        self._changed = changed
        self._backoff = backoff or Backoff()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether the process runs and has said so."""
        return self.child is not None and self.child.ready

    @property
    def hopeless(self) -> bool:
        """Whether it never worked and trying again will not change that."""
        if self.was_ready or self.last_exit is None:
            return False
        return self.last_exit.code == _CONFIGURATION_ERROR or self.failures >= _HOPELESS_FAILURES

    async def run(self) -> None:
        """Start the command again and again, until `stop` or `kill`."""
        try:
            while not self._stopping.is_set():
                self.last_exit = await self._live()
                if self._stopping.is_set():
                    break
                self.failures += not self.was_ready
                delay = self._backoff.after(self.last_exit.lived)
                log.warning(
                    "process_ended",
                    process=self.command.name,
                    exit_code=self.last_exit.code,
                    restart_in=delay,
                )
                # Nobody is told of a gap this short, only of the successor.
                if delay > _SHORT or self.hopeless:
                    self._changed()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._stopping.wait()
        finally:
            self._stopped.set()

    async def stop(self, grace: float) -> None:
        """Send SIGTERM, wait for ``grace`` seconds, then SIGKILL; returns when it is gone."""
        self._end(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._stopped.wait()
        if not self._stopped.is_set():
            log.warning("process_did_not_end", process=self.command.name, grace=grace)
            self.kill()
            await self._stopped.wait()

    def kill(self) -> None:
        """End it at once, for good."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        self._stopping.set()
        if self.child is not None:
            self.child.signal(number)

    async def _live(self) -> Exit:
        """One life, from start to end."""
        loop = asyncio.get_running_loop()
        born = loop.time()
        try:
            self.child = child = Child.start(self.command, self._heard)
        except OSError as error:
            log.warning("process_not_started", process=self.command.name, error=str(error))
            return Exit(code=-1, lived=0.0)
        log.info("process_started", process=self.command.name, child=child.pid)
        self._changed()
        try:
            code = await child.wait()
        finally:
            child.signal(signal.SIGKILL)
            self.child = None
        return Exit(code=code, lived=loop.time() - born)

    def _heard(self) -> None:
        if self.ready:
            self.was_ready = True
        self._changed()


async def until_ready(
    keepers: Sequence[ProcessManager], change: asyncio.Event, stop: asyncio.Event
) -> ProcessManager | None:
    """Wait until all are ready, or ``stop`` is set: None; or return the first that is hopeless.

    ``change`` is set by the keepers' ``changed`` callback, and along with ``stop``.
    """
    while not stop.is_set():
        change.clear()
        for keeper in keepers:
            if keeper.hopeless:
                return keeper
        if all(keeper.ready for keeper in keepers):
            break
        await change.wait()
    return None


async def stop_all(keepers: Sequence[ProcessManager], grace: float) -> None:
    """Stop them side by side, within ``grace`` seconds and a moment."""
    async with asyncio.TaskGroup() as group:
        for keeper in keepers:
            group.create_task(keeper.stop(grace), name=f"stop {keeper.command.name}")
