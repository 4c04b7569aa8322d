"""The lock under which the agents of a node start kernels one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from relay.errors import AgentUnavailable
from relay.files import try_flock


class StartsLock:
    """A lock file that is waited for without blocking the event loop, and without polling.

    A thread waits for a lock that another process has. Nothing can interrupt the thread, so it
    outlives a caller that gives up: the next caller gets its lock, and without one it lets go.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Future[int] | None = None
        self._wanted = False

    @contextlib.asynccontextmanager
    async def held(self, timeout: float) -> AsyncIterator[None]:
        """Hold the lock.

        Raises:
            AgentUnavailable: others have had it for ``timeout`` seconds.
            OSError: the file cannot be opened.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout):
                    await stack.enter_async_context(self._turn)
                    descriptor = await self._take()
            except TimeoutError:
                msg = "Another agent is busy starting kernels."
                raise AgentUnavailable(msg, retry_after=1) from None
            stack.callback(os.close, descriptor)
            yield

    async def _take(self) -> int:
        if self._waiting is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if try_flock(descriptor):
                return descriptor
            self._waiting = self._start_waiting(descriptor)
        waiting, self._wanted = self._waiting, True
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if waiting.done():
                # The lock came in the very turn in which the caller gave up.
                os.close(waiting.result())
            raise
        finally:
            self._wanted = False

    def _start_waiting(self, descriptor: int) -> asyncio.Future[int]:
        loop = asyncio.get_running_loop()
        taken = loop.create_future()

        def hand_over() -> None:
            self._waiting = None
            if self._wanted:
                taken.set_result(descriptor)
            else:
                os.close(descriptor)

        def wait() -> None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                loop.call_soon_threadsafe(hand_over)
            except RuntimeError:
                # The loop is closed: this process is about to end.
                os.close(descriptor)

        threading.Thread(target=wait, name="starts lock", daemon=True).start()
        return taken
