"""Which of a Hub's users have a kernel that works, from their open WebSockets.

The edge decodes no message. It sees that something goes to or fro, and agents say with each sign of
life whether the kernel is busy, so that one which computes for hours and prints nothing counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple, Protocol


class HubServer(NamedTuple):
    """What is to be kept from being culled."""

    user: str
    server: str
    """One of the user's servers by its name; the default one's is ""."""


class ActivityReport(enum.Enum):
    """What became of a report."""

    TAKEN = enum.auto()
    NOBODY = enum.auto()
    """There is no such user, or not that server."""
    FAILED = enum.auto()


class WatchedSocket(Protocol):
    """An open WebSocket."""

    @property
    def last_activity(self) -> float:
        """When something was last seen on it, in seconds of the loop."""
        ...


class _Reporter(Protocol):
    def __call__(
        self, place: HubServer, last_activity: float, /, *, server: bool
    ) -> Awaitable[ActivityReport]: ...


class ActivityReporter:
    """Reports every ``interval`` seconds what has been active since the last time.

    One report at a time, and one for each place however many WebSockets it has.
    """

    def __init__(
        self,
        report: _Reporter,
        interval: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``report`` is given Unix seconds, and whether to name the server."""
        self._report = report
        self._interval = interval
        self._clock = clock
        self._open: dict[HubServer, set[WatchedSocket]] = {}
        self._closed: dict[HubServer, float] = {}
        """The last activity of what was closed since the last round."""
        self._reported: dict[HubServer, float] = {}
        self._homeless: set[HubServer] = set()
        """Those without such a server: only their users are reported."""

    @contextlib.contextmanager
    def watch(self, place: HubServer, socket: WatchedSocket) -> Iterator[None]:
        """Take what happens on ``socket`` for activity of ``place``."""
        sockets = self._open.setdefault(place, set())
        sockets.add(socket)
        try:
            yield
        finally:
            sockets.discard(socket)
            self._closed[place] = max(self._closed.get(place, -math.inf), socket.last_activity)
            if not sockets:
                del self._open[place]

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.round()

    async def round(self) -> None:
        """Report every user who was active since the last round; stop at the first failure."""
        latest, self._closed = self._closed, {}
        for place, sockets in self._open.items():
            seen = (socket.last_activity for socket in sockets)
            latest[place] = max(*seen, latest.get(place, -math.inf))
        now, wall = asyncio.get_running_loop().time(), self._clock()
        for place, active in latest.items():
            if active <= self._reported.get(place, -math.inf):
                continue
            if not await self._tell(place, wall - (now - active)):
                # The Hub has trouble enough; the next round has the same to tell, and more.
                break
            self._reported[place] = active
        self._reported = {p: when for p, when in self._reported.items() if p in self._open}
        self._homeless.intersection_update(self._open)

    async def _tell(self, place: HubServer, moment: float) -> bool:
        """Whether the Hub answered."""
        server = place not in self._homeless
        result = await self._report(place, moment, server=server)
        if result is ActivityReport.NOBODY and server:
            # A script's token belongs to no server. Its user works all the same.
            self._homeless.add(place)
            result = await self._report(place, moment, server=False)
        return result is not ActivityReport.FAILED
