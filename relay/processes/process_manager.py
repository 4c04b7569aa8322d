"""Keeps a program running: starts it again, after a delay, whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from relay.backoff import ExponentialDelay
from relay.processes.children import Child, Command

_CONFIGURATION_ERROR: Final = 2
"""Exit code of a program whose configuration is invalid."""
_MAX_START_FAILURES: Final = 5
_BRIEF: Final = 0.5
"""Seconds between end and restart that are too short to be worth reporting."""

log: FilteringBoundLogger = structlog.get_logger()


class RestartDelay:
    """Delays before the restarts of a process, in seconds: 0.1, 0.2, 0.4, ... 5.

    After a life of ``stable_after`` seconds the delays begin anew.
    """

    def __init__(self, first: float = 0.1, limit: float = 5.0, stable_after: float = 3.0) -> None:
        self._delay = ExponentialDelay(first, limit)
        self._stable_after = stable_after

    def after(self, lived: float) -> float:
        """Return the delay after a life of so many seconds."""
        if lived >= self._stable_after:
            self._delay.reset()
        return self._delay.next()


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: its exit code (negative: a signal), and its lifetime in seconds."""

    code: int
    lived: float


class ProcessManager:
    """Runs one command for as long as `run` runs.

    ``on_change`` is called when `child`, its readiness or its workers have changed.
    """

    def __init__(
        self,
        command: Command,
        on_change: Callable[[], None],
        delay: RestartDelay | None = None,
    ) -> None:
        self.command = command
        self.child: Child | None = None
        self.was_ready = False
        self.failures = 0
        """Ends before the process was ready for the first time."""
        self.last_exit: Exit | None = None
        self._on_change = on_change
        self._delay = delay or RestartDelay()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether the process runs and has notified that it is ready."""
        return self.child is not None and self.child.ready

    @property
    def crash_looping(self) -> bool:
        """Whether the process was never ready and another start will not change that."""
        if self.was_ready or self.last_exit is None:
            return False
        code = self.last_exit.code
        return code == _CONFIGURATION_ERROR or self.failures >= _MAX_START_FAILURES

    async def run(self) -> None:
        """Start the command, and again whenever it ends, until `stop` or `kill`."""
        try:
            while not self._stopping.is_set():
                self.last_exit = await self._run_once()
                if self._stopping.is_set():
                    break
                self.failures += not self.was_ready
                delay = self._delay.after(self.last_exit.lived)
                log.warning(
                    "process_ended",
                    process=self.command.name,
                    exit_code=self.last_exit.code,
                    restart_in=delay,
                )
                if delay > _BRIEF or self.crash_looping:
                    self._on_change()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._stopping.wait()
        finally:
            self._stopped.set()

    async def stop(self, grace: float) -> None:
        """Send SIGTERM, wait for ``grace`` seconds, then send SIGKILL; return after the end."""
        self._end(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._stopped.wait()
        if not self._stopped.is_set():
            log.warning("process_did_not_end", process=self.command.name, grace=grace)
            self.kill()
            await self._stopped.wait()

    def kill(self) -> None:
        """Send SIGKILL, and do not start the process again."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        self._stopping.set()
        if self.child is not None:
            self.child.signal(number)

    async def _run_once(self) -> Exit:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            self.child = child = Child.start(self.command, self._on_notify)
        except OSError as error:
            log.warning("process_not_started", process=self.command.name, error=str(error))
            return Exit(code=-1, lived=0.0)
        log.info("process_started", process=self.command.name, child=child.pid)
        self._on_change()
        try:
            code = await child.wait()
        finally:
            child.signal(signal.SIGKILL)
            self.child = None
        return Exit(code=code, lived=loop.time() - started)

    def _on_notify(self) -> None:
        if self.ready:
            self.was_ready = True
        self._on_change()


async def wait_until_ready(
    managers: Sequence[ProcessManager], change: asyncio.Event, stop: asyncio.Event
) -> ProcessManager | None:
    """Wait until all processes are ready, or until ``stop`` is set.

    Returns the first process that is `crash_looping`, else None. The managers' ``on_change`` sets
    ``change``; it must be set along with ``stop`` too.
    """
    while not stop.is_set():
        change.clear()
        for manager in managers:
            if manager.crash_looping:
                return manager
        if all(manager.ready for manager in managers):
            break
        await change.wait()
    return None


async def stop_all(managers: Sequence[ProcessManager], grace: float) -> None:
    """Stop all processes at the same time; each has ``grace`` seconds before it is killed."""
    async with asyncio.TaskGroup() as group:
        for manager in managers:
            group.create_task(manager.stop(grace), name=f"stop {manager.command.name}")
