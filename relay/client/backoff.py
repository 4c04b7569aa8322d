"""When to retry, and when to give up. Pure: the clock and the jitter are passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.backoff import ExponentialDelay
from relay.client.errors import GaveUp
from relay.client.settings import Settings
from relay.errors import RelayError

_FIRST_DELAY: Final = 0.1
"""Seconds of the longest first delay; the bound doubles with each try."""


class Backoff:
    """The retries of one outage. ``jitter`` returns a random number from 0 to 1."""

    def __init__(self, settings: Settings, jitter: Callable[[], float]) -> None:
        self._settings = settings
        self._jitter = jitter
        self._bound = ExponentialDelay(_FIRST_DELAY, settings.retry_at_most)
        self._since: float | None = None

    def succeeded(self) -> None:
        """End the outage, so that the next one has its full time again."""
        self._since = None
        self._bound.reset()

    def delay(self, now: float, error: RelayError) -> float:
        """Return the seconds to wait after ``error``: a random part of a growing bound.

        The randomness keeps clients that lost their connections together from returning together.
        The delay is at least what the relay asked for (``Retry-After``). Raises `GaveUp` when the
        outage has lasted for ``give_up_after``.
        """
        if self._since is None:
            self._since = now
        limit = self._settings.give_up_after
        left = self._since + limit - now
        if left <= 0:
            text = f"The relay was unavailable for {limit:g} s (give_up_after). {error.message}"
            raise GaveUp(text) from error
        # The last try is made when the time is up, not a whole delay later.
        return min(max(self._bound.next() * self._jitter(), float(error.retry_after or 0)), left)
