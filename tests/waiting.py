"""Waiting for what sets no event here: another end of a socket, another process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

WAIT = 20.0
"""Seconds after which a test gives up, on however busy a machine."""


async def until(check: Callable[[], bool]) -> None:
    """Let the event loop turn until ``check`` holds."""
    async with asyncio.timeout(WAIT):
        while not check():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0)


def eventually(check: Callable[[], bool]) -> None:
    """Look again and again until ``check`` holds, while other processes work."""
    deadline = time.monotonic() + WAIT
    while not check():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
