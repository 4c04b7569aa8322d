"""A request of the holder's own, and what has come of it."""

from __future__ import annotations

import asyncio


class Probe:
    """Whether its reply has come, and the idle status that follows it on iopub."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.idle = asyncio.Event()
        self.lost = False
        """Whether the kernel process ended; then both are set."""

    def lose(self) -> None:
        """The kernel process has ended."""
        self.lost = True
        self.answered.set()
        self.idle.set()
