"""Growing delays between retries. Pure: callers wait, and add jitter where they need it."""

from __future__ import annotations


class ExponentialDelay:
    """Delays in seconds that double from ``first`` up to ``limit``."""

    def __init__(self, first: float, limit: float) -> None:
        self._first = first
        self._limit = limit
        self._next = min(first, limit)

    def next(self) -> float:
        """Return the next delay."""
        delay = self._next
        self._next = min(delay * 2, self._limit)
        return delay

    def reset(self) -> None:
        """Start again with the first delay."""
        self._next = min(self._first, self._limit)
