"""Work that several callers want at the same time, done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from relay.errors import RelayError

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs one piece of work for each key, as a task of ``tasks``, and shares the result."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[T | RelayError]] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the work that runs for ``key``; start it where none does.

        ``work`` raises `RelayError` only: any other exception would end all of ``tasks``.
        """
        task = self._running.get(key)
        if task is None:
            task = self._tasks.create_task(_result_or_error(work()), name=key)
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        # A caller that stops waiting does not stop the work of the others.
        found = await asyncio.shield(task)
        if isinstance(found, RelayError):
            raise found
        return found

    def cancel(self) -> None:
        """Cancel all work."""
        for task in list(self._running.values()):
            task.cancel()


async def _result_or_error(work: Coroutine[Any, Any, T]) -> T | RelayError:
    try:
        return await work
    except RelayError as error:
        return error
