"""A client in front of one kernel: what it asks, what it hears, and when it is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from tests.chaos.tally import Asked, Heard, Tally

PATIENCE: Final = 90.0
"""Seconds that anything may take on a busy machine; a client that needs longer is stuck."""
_QUIET: Final = 2.0
"""Seconds of silence after which a client asks for something else, to see what is lost."""
_LOOK: Final = 0.02
"""Seconds between two looks."""


class Stuck(Exception):
    """Nothing came of what was waited for."""


class Seat(Protocol):
    """A client of some kind, connected to one kernel. It comes back by itself."""

    def ports(self) -> set[int]:
        """The local ports of its connections to the edge; those of its whole process, where one
        has several seats."""

    async def ask(self, key: str, code: str) -> None:
        """Send an ``execute_request`` once, whatever becomes of it; ``key`` is its parent id."""

    async def close(self) -> None:
        """Leave."""


async def until(what: str, check: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Wait until ``check`` is true. Raises `Stuck` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise Stuck(f"not within {timeout:.0f} s: {what}")
        await asyncio.sleep(_LOOK)


class Desk:
    """Asks through a seat, and keeps what comes.

    What the kernel executed it tells by ``marks``, a file that its code writes to: that is how
    requests that never arrived are told from those whose answer was lost.
    """

    def __init__(self, name: str, marks: Path) -> None:
        self.name = name
        self.seat: Seat
        self.heard_until = ""
        """The date of the newest message that was heard, other than of a probe."""
        self._marks = marks
        self._number = 0
        self._asked: dict[str, Asked] = {}
        self._probes: list[Asked] = []
        self._heard = time.monotonic()

    def hear(self, heard: Heard) -> None:
        """Take in a message; for seats."""
        self._heard = time.monotonic()
        if asked := self._asked.get(heard.parent):
            asked.hear(heard)
            if asked not in self._probes:
                self.heard_until = max(self.heard_until, heard.date)

    @property
    def next_key(self) -> str:
        """What the next request will be called."""
        return f"{self.name}-{self._number}"

    async def ask(self, code: str, lines: Sequence[str] = ()) -> Asked:
        """Ask for something that prints these lines."""
        key = self.next_key
        self._number += 1
        asked = Asked(key, lines, time.monotonic())
        self._asked[key] = asked
        mark = f"with open({str(self._marks)!r}, 'a') as marks: print({key!r}, file=marks)\n"
        await self.seat.ask(key, mark + code)
        return asked

    async def settle(self, asked: Asked, enough: Callable[[], bool] = lambda: False) -> None:
        """Wait until everything of a request has come, or can be seen never to come; or until it
        is enough.

        The kernel answers in turn: what is still missing when a later request is answered is
        lost. Raises `Stuck` where nothing is answered.
        """
        self._probes.clear()
        deadline = time.monotonic() + PATIENCE
        while not (enough() or asked.complete or any(each.complete for each in self._probes)):
            now = time.monotonic()
            if now > deadline:
                raise Stuck(f"{asked.key}: {asked.replies} replies, {asked.idles} idles")
            recent = max([self._heard, asked.sent, *(probe.sent for probe in self._probes)])
            if now - recent > _QUIET:
                await self._probe()
            await asyncio.sleep(_LOOK)

    async def has_begun(self, asked: Asked) -> bool:
        """Wait until the kernel is busy with it; False if it never will be. Raises `Stuck`."""
        await self.settle(asked, lambda: asked.busies > 0)
        return asked.busies > 0

    async def _probe(self) -> None:
        self._number += 1
        key = f"{self.name}-probe-{self._number}"
        probe = self._asked[key] = Asked(key, (), time.monotonic())
        self._probes.append(probe)
        await self.seat.ask(key, "pass")

    def count(self, tally: Tally) -> None:
        """Add everything that was asked so far, and forget it."""
        marks = self._marks.read_text().splitlines() if self._marks.exists() else []
        for key, asked in self._asked.items():
            if "-probe-" not in key:
                tally.add(asked, marks.count(key))
        self._asked.clear()


def numbered(key: str, count: int) -> Iterator[str]:
    """So many lines, no two alike."""
    return (f"{key} {number}" for number in range(count))
