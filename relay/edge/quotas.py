"""How much there may be of what all workers share: connections, sockets, requests, failed logins.

Tables only: no I/O, and ``now`` is passed in, in seconds of a clock that never goes back. What is
asked for is a claim: granted as a whole, or refused in the name of one setting.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import Struct

from relay.config import ConnectionSettings, LoginSettings, QuotaSettings

_SWEEP: Final = 10.0
"""Seconds between two looks for what need not be remembered any longer."""


class Connection(Struct, frozen=True, tag=True, array_like=True):
    """An open TCP connection, from its acceptance to its end."""

    address: str | None
    """Whom it counts for; ``None`` where a proxy has yet to tell: an `Address` follows."""


class Address(Struct, frozen=True, tag=True, array_like=True):
    """A connection that is counted already, now that its client's address is known."""

    address: str


class Socket(Struct, frozen=True, tag=True, array_like=True):
    """An open WebSocket."""

    principal: str
    cluster: str


class Request(Struct, frozen=True, tag=True, array_like=True):
    """One request."""

    principal: str
    cluster: str


class FailedLogin(Struct, frozen=True, tag=True, array_like=True):
    """A credential that nobody knows."""

    address: str


Lasting = Connection | Address | Socket
"""Claims that last until they are freed."""
Claim = Lasting | Request | FailedLogin


class Refusal(Struct, frozen=True, array_like=True):
    """Why not: the setting, and the whole seconds after which trying again makes sense."""

    setting: str
    retry_after: int = 0


class Bound(NamedTuple):
    """No more than ``most`` of what ``key`` names; ``None``: any number."""

    key: tuple[str, ...]
    most: int | None
    setting: str


class Counts:
    """How many there are now."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def take(self, bounds: Iterable[Bound]) -> Refusal | None:
        """Count one more under each key, or, where one is full, under none."""
        bounds = tuple(bounds)
        for key, most, setting in bounds:
            if most is not None and self._counts[key] >= most:
                return Refusal(setting)
        self._counts.update(bound.key for bound in bounds)
        return None

    def free(self, bounds: Iterable[Bound]) -> None:
        """Count one less under each key."""
        for key, _, _ in bounds:
            if self._counts[key] > 1:
                self._counts[key] -= 1
            else:
                del self._counts[key]


class Rate:
    """``per_second`` on average, and ``burst`` at once: a token bucket for each key."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}
        """What is left in each that is not full, and when that was so."""

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, key: str, now: float) -> float:
        """Seconds until one may be taken; 0 where it may be taken now."""
        return max(0.0, (1 - self._left(key, now)) / self._per_second)

    def take(self, key: str, now: float) -> None:
        """Take one, which `wait` has allowed."""
        self._buckets[key] = (self._left(key, now) - 1, now)

    def forget(self, now: float) -> None:
        """Forget who has not been heard of for as long as it takes to fill a bucket."""
        for key in [key for key in self._buckets if self._left(key, now) >= self._burst]:
            del self._buckets[key]

    def _left(self, key: str, now: float) -> float:
        left, then = self._buckets.get(key, (self._burst, now))
        return min(self._burst, left + (now - then) * self._per_second)


class Failures:
    """``most`` in any ``window`` seconds for each key; the rest is refused and not remembered."""

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._times: dict[str, deque[float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def add(self, key: str, now: float) -> float:
        """Note one. The seconds for which ``key`` is to be refused, 0 where it is not."""
        times = self._times.setdefault(key, deque(maxlen=self._most))
        if len(times) == self._most and times[0] + self._window > now:
            return times[0] + self._window - now
        times.append(now)
        return 0.0

    def forget(self, now: float) -> None:
        """Forget whose last failure is past."""
        for key in [key for key, times in self._times.items() if times[-1] + self._window <= now]:
            del self._times[key]


class Quotas:
    """All of them together, as configured."""

    def __init__(
        self, connections: ConnectionSettings, quotas: QuotaSettings, logins: LoginSettings
    ) -> None:
        self._connections = connections
        self._quotas = quotas
        self._counts = Counts()
        self._rates = {
            "user": _rate(quotas.user_requests, quotas.user_burst),
            "cluster": _rate(quotas.cluster_requests, quotas.cluster_burst),
        }
        self._failures = Failures(logins.failures, logins.window)
        self._swept = -math.inf

    def __len__(self) -> int:
        """How many keys are remembered."""
        rates = sum(len(rate) for rate in self._rates.values() if rate is not None)
        return len(self._counts) + rates + len(self._failures)

    def take(self, claim: Claim, now: float) -> Refusal | None:
        """Grant ``claim``, or say why not. What is `Lasting` counts until it is freed."""
        if now >= self._swept + _SWEEP:
            self._forget(now)
        if isinstance(claim, Request):
            return self._take_request(claim, now)
        if isinstance(claim, FailedLogin):
            return _patience("logins.failures", self._failures.add(claim.address, now))
        return self._counts.take(self._bounds(claim))

    def free(self, claim: Lasting) -> None:
        """Give back what was granted."""
        self._counts.free(self._bounds(claim))

    def _bounds(self, claim: Lasting) -> list[Bound]:
        limits, quotas = self._connections, self._quotas
        if isinstance(claim, Socket):
            user = ("user", claim.principal)
            return [
                Bound(user, quotas.user_sockets, "quotas.user_sockets"),
                Bound(("cluster", claim.cluster), quotas.cluster_sockets, "quotas.cluster_sockets"),
            ]
        bounds = []
        if isinstance(claim, Connection):
            bounds.append(Bound(("all",), limits.total, "connections.total"))
        if claim.address is not None:
            address = ("address", claim.address)
            bounds.append(Bound(address, limits.per_address, "connections.per_address"))
        return bounds

    def _take_request(self, claim: Request, now: float) -> Refusal | None:
        asked = [
            (rate, key, f"quotas.{name}_requests")
            for (name, rate), key in zip(
                self._rates.items(), (claim.principal, claim.cluster), strict=True
            )
            if rate is not None
        ]
        for rate, key, setting in asked:
            refusal = _patience(setting, rate.wait(key, now))
            if refusal is not None:
                return refusal
        for rate, key, _ in asked:
            rate.take(key, now)
        return None

    def _forget(self, now: float) -> None:
        self._swept = now
        self._failures.forget(now)
        for rate in self._rates.values():
            if rate is not None:
                rate.forget(now)


def _rate(per_second: float | None, burst: int) -> Rate | None:
    return None if per_second is None else Rate(per_second, burst)


def _patience(setting: str, seconds: float) -> Refusal | None:
    return Refusal(setting, math.ceil(seconds)) if seconds > 0 else None
