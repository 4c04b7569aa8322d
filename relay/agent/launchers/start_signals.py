"""Signals of holders that were started here: each tells once that it serves, or that it has died.

A holder inherits the write end of a pipe and closes it when it serves its socket; the system closes
it when the holder dies. Nothing is read from the pipe: a kernel's user could write anything there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Final

SERVE_TIMEOUT: Final = 15.0
"""Seconds a holder has from its start until it serves its socket, and answers there."""


class StartSignals:
    """The holders that this process has started and that serve no socket yet, by kernel id.

    A holder that its user has stopped tells nothing: it is expected for ``timeout`` seconds.
    """

    def __init__(self, timeout: float = SERVE_TIMEOUT) -> None:
        self._timeout = timeout
        self._waiting: dict[str, asyncio.Event] = {}

    @contextlib.contextmanager
    def of_start(self, kernel_id: str) -> Iterator[int]:
        """Run the body, which hands the descriptor that it gets to the kernel's new holder."""
        reading, writing = os.pipe()
        try:
            yield writing
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._expect(kernel_id, reading)

    def _expect(self, kernel_id: str, reading: int) -> None:
        loop = asyncio.get_running_loop()
        told = self._waiting[kernel_id] = asyncio.Event()

        def tell() -> None:
            late.cancel()
            loop.remove_reader(reading)
            os.close(reading)
            told.set()
            if self._waiting.get(kernel_id) is told:
                del self._waiting[kernel_id]

        late = loop.call_later(self._timeout, tell)
        loop.add_reader(reading, tell)

    def is_expected(self, kernel_id: str) -> bool:
        """Return whether a kernel's holder has yet to tell that it serves."""
        return kernel_id in self._waiting

    async def wait(self, kernel_id: str) -> None:
        """Wait until a kernel's holder serves or has died; at once where none is expected."""
        if (told := self._waiting.get(kernel_id)) is not None:
            await told.wait()
