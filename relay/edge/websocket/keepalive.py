"""Pings to a client: they keep its connection alive and prove how much output it has received.

A client answers frames in order, so a pong proves that everything sent before its ping has arrived
(RFC 6455 §5.5.2, §5.5.3). Each ping carries the seq up to which the client had been sent the
journal. The rhythm is that of decision 0017.
"""

from __future__ import annotations

import math
import struct
from typing import Final, NamedTuple

from relay.config import WebSocketSettings

_SEQ: Final = struct.Struct("<Q")
_TIMER_MARGIN: Final = 0.01
"""Seconds past a deadline at which a timer has certainly passed it."""


class TimerResult(NamedTuple):
    """What to do when the keep-alive timer fires."""

    ping: bytes | None
    """Payload of a ping to send now."""
    wait: float | None
    """Seconds until the timer fires again; None if the client counts as dead."""


class KeepAlive:
    """Decides when a client is pinged, what its pongs prove, and when it counts as dead.

    Times are in seconds of one monotonic clock. The owner has one timer, which calls `on_timer`:
    first after ``ping_interval``, then as `on_timer` and `schedule_proof` tell.
    """

    def __init__(self, settings: WebSocketSettings, now: float) -> None:
        self._settings = settings
        self._in_flight: bytes | None = None
        """Payload of the one ping that is not answered yet."""
        self._last_ping = -math.inf
        """When the last ping was sent."""
        self._timer_is_for_proof = False
        self.last_received = now
        """When the client last sent anything, or could be read from again."""
        self.sent = 0
        """The seq up to which the client has been sent the journal."""
        self.proved = 0
        """The seq up to which the client has received the journal for certain."""

    def start_epoch(self, seq: int) -> None:
        """Begin at ``seq`` of another journal: pings of the last one prove nothing in this one."""
        self.sent = self.proved = seq
        self._in_flight = None

    def schedule_proof(self, now: float) -> float | None:
        """Return the seconds until the timer must fire for a proof; None to leave the timer.

        The first output after a pause is proved at once, more of it every ``proof_interval``.
        """
        if self._in_flight is not None or self.sent <= self.proved:
            return None
        wait = self._last_ping + self._settings.proof_interval - now
        if wait <= 0:
            return 0.0
        if self._timer_is_for_proof:
            return None
        self._timer_is_for_proof = True
        return wait

    def on_timer(self, now: float, *, reading: bool) -> TimerResult:
        """Decide on a ping and on the client's life.

        ``reading``: whether the client is read from; a client that is not cannot be silent.
        """
        behind = self.sent > self.proved
        ping = None
        if self._in_flight is None:
            # The proof that a timer was started for may have come meanwhile.
            if behind or not self._timer_is_for_proof:
                ping = self._in_flight = _SEQ.pack(self.sent)
                self._last_ping = now
        elif reading and self._silence(now) > self._settings.pong_timeout:
            return TimerResult(None, None)
        self._timer_is_for_proof = behind
        return TimerResult(ping, self._next_wait(now, behind=behind))

    def _next_wait(self, now: float, *, behind: bool) -> float:
        interval = self._settings.proof_interval if behind else self._settings.ping_interval
        if self._in_flight is None:
            return interval
        # The timer fires when the pong is overdue, not up to a whole interval later.
        left = self._settings.pong_timeout - self._silence(now)
        return min(interval, max(left, 0) + _TIMER_MARGIN)

    def _silence(self, now: float) -> float:
        """Seconds that the ping in flight has waited without a byte from the client."""
        return now - max(self._last_ping, self.last_received)

    def on_pong(self, payload: bytes) -> int | None:
        """Take a pong; return the seq that it proves beyond what was proved, if there is one."""
        if self._in_flight is None or payload != self._in_flight:
            return None
        self._in_flight = None
        (seq,) = _SEQ.unpack(payload)
        if seq <= self.proved:
            return None
        self.proved = seq
        return self.proved
