"""When to try again, and when to give up. Pure: the clock and the dice are passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.client.errors import GaveUp
from relay.client.settings import Settings
from relay.errors import RelayError

_FIRST: Final = 0.1
"""Seconds that the first pause takes at most; it doubles with each try."""
_DOUBLINGS: Final = 16
"""More would not change anything, and overflow some day."""


class Backoff:
    """The tries of one outage. ``dice`` gives a number from 0 to 1."""

    def __init__(self, settings: Settings, dice: Callable[[], float]) -> None:
        self._settings = settings
        self._dice = dice
        self._since: float | None = None
        self._tries = 0

    def succeeded(self) -> None:
        """The outage is over: the next one has its full time again."""
        self._since, self._tries = None, 0

    def pause(self, now: float, error: RelayError) -> float:
        """Seconds to wait after ``error``: a random part of a growing bound.

        So clients that lost their connections together do not come back together. Where the relay
        said when (``Retry-After``), never before that. Raises `GaveUp` when time is up.
        """
        if self._since is None:
            self._since = now
        limit = self._settings.give_up_after
        left = self._since + limit - now
        if left <= 0:
            text = f"The relay was away for {limit:g} s (give_up_after). {error.message}"
            raise GaveUp(text) from error
        bound = min(self._settings.retry_at_most, _FIRST * 2.0 ** min(self._tries, _DOUBLINGS))
        self._tries += 1
        # The last try is made when time is up, not a whole pause later.
        return min(max(bound * self._dice(), float(error.retry_after or 0)), left)
