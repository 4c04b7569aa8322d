"""Who has something open, and may they still: judged again, as long as it is open.

A WebSocket, or an answer that goes on, outlives the request that opened it. So what let it in is
looked at again: when its credential expires, when an authenticator wants to be asked again or says
that something has changed, and when the policy changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

import structlog

from relay.auth.credentials import PresentedCredentials
from relay.edge.upstream.client import Caller
from relay.errors import Forbidden, RelayError, Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity

log = structlog.get_logger(__name__)

LOOK: Final = 1.0
"""Seconds between two looks at what is due. Times are the wall clock's, which may be set."""
_CANNOT_TELL: Final = 5.0
"""Seconds until somebody is asked again who could not tell."""

Identify = Callable[[PresentedCredentials, float], Awaitable[Identity]]
Judge = Callable[[Identity], Caller]
"""What somebody may do; raises `RelayError` where that is not enough."""


class AuthorizedStream:
    """One thing that is open."""

    def __init__(
        self, identity: Identity, judge: Judge, bearer: Caller, about: Mapping[str, object]
    ) -> None:
        self.identity = identity
        self.bearer = bearer
        """In whose name agents are asked on its behalf, and what for; ``judge``'s last word."""
        self.ended: RelayError | None = None
        """Why it was ended."""
        self.about = about
        """What the log has of it."""
        self._judge = judge
        self._on_end: Callable[[RelayError], None] = lambda _: None
        self._on_change: Callable[[], None] = lambda: None

    def attend(self, end: Callable[[RelayError], None], change: Callable[[], None]) -> None:
        """Have ``end`` called when it must end, and ``change`` when `bearer` is another.

        At once, where it had to end before.
        """
        self._on_end, self._on_change = end, change
        if self.ended is not None:
            end(self.ended)

    def judged(self, identity: Identity) -> RelayError | None:
        """Go on with what an authenticator says now; why that cannot be, if it cannot."""
        if identity.principal != self.identity.principal:
            return Unauthorized("the credential is somebody else's now")
        try:
            bearer = self._judge(identity)
        except RelayError:
            # In one form, whether it is forbidden or not even known any more.
            return Forbidden("no longer allowed")
        self.identity = identity
        if bearer != self.bearer:
            self.bearer = bearer
            log.info("rights_changed", **self.about)
            self._on_change()
        return None

    def end(self, error: RelayError) -> None:
        """End it."""
        self.ended = error
        self._on_end(error)


class _Held:
    """The visits of those who showed the same."""

    def __init__(self, shown: PresentedCredentials) -> None:
        self.shown = shown
        self.visits: set[AuthorizedStream] = set()
        self.due = -math.inf
        """When it is looked at next, in Unix seconds."""
        self.busy = False


class Reauthorizer:
    """All visits of a worker."""

    def __init__(
        self,
        identify: Identify,
        metrics: EdgeMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identify = identify
        self._metrics = metrics
        self._clock = clock
        self._held: dict[PresentedCredentials, _Held] = {}
        self._hurry = asyncio.Event()

    @contextlib.contextmanager
    def visit(
        self, shown: PresentedCredentials, visit: AuthorizedStream
    ) -> Iterator[AuthorizedStream]:
        """Judge it for as long as the ``with`` block takes; ``shown`` is what let it in."""
        held = self._held.setdefault(shown, _Held(shown))
        held.visits.add(visit)
        # What changed while it was being let in did not reach it yet.
        held.due = -math.inf
        try:
            yield visit
        finally:
            held.visits.discard(visit)
            if not held.visits:
                self._held.pop(shown, None)

    def judge_all(self) -> None:
        """Something has changed: judge everybody, now."""
        for held in self._held.values():
            held.due = -math.inf
        self._hurry.set()

    async def run(self) -> None:
        """Judge who is due, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._hurry.clear()
                now = self._clock()
                for held in list(self._held.values()):
                    if held.due <= now and not held.busy:
                        held.busy = True
                        tasks.create_task(self._look_at(held), name="judge a credential")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await self._hurry.wait()

    async def _look_at(self, held: _Held) -> None:
        held.due = math.inf
        try:
            due = await self._judge(held)
        finally:
            held.busy = False
        # Unless there is more to see by now.
        held.due = min(held.due, due)

    async def _judge(self, held: _Held) -> float:
        """When to look at it again."""
        now = self._clock()
        try:
            identity = await self._identify(held.shown, now)
        except Unauthorized:
            for visit in list(held.visits):
                self._end(visit, _gone(visit, now))
            return math.inf
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            log.warning("cannot_tell", problem=str(error))
            return self._trust(held, now)
        for visit in list(held.visits):
            problem = visit.judged(identity)
            if problem is not None:
                self._end(visit, problem)
        return min(identity.expires, now + identity.recheck)

    def _trust(self, held: _Held, now: float) -> float:
        """Keep to what was said last, for as long as that was to hold."""
        for visit in list(held.visits):
            if visit.identity.expires <= now:
                self._end(visit, _gone(visit, now))
        return now + _CANNOT_TELL

    def _end(self, visit: AuthorizedStream, error: RelayError) -> None:
        if visit.ended is not None:
            return
        log.info("sent_away", code=error.close_code, problem=error.message, **visit.about)
        self._metrics.sent_away.labels(error.reason.lower()).inc()
        visit.end(error)


def _gone(visit: AuthorizedStream, now: float) -> Unauthorized:
    expired = visit.identity.expires <= now
    return Unauthorized("the credential has expired" if expired else "the credential was revoked")
