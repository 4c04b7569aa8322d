"""Limits that all workers share: on connections, WebSockets, requests and failed logins.

The tables do no I/O, and ``now`` is passed in, in seconds of a clock that never goes back. What a
worker asks for is granted as a whole, or refused in the name of one setting.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import ClassVar, Final, NamedTuple

from relay.config import ConnectionSettings, LoginSettings, QuotaSettings
from relay.edge.ipc.protocol import Refusal
from relay.edge.ipc.service import CallRequest, PermitRequest, Service

_SERVICE: Final = "quotas"
_SWEEP: Final = 10.0
"""Seconds between two looks for what need not be remembered any longer."""


class ConnectionPermit(PermitRequest[None], frozen=True):
    """An open TCP connection, from its acceptance to its end."""

    service: ClassVar[str] = _SERVICE
    address: str | None
    """The client that it counts for; ``None`` where a proxy has yet to tell: an `AddressPermit`
    follows."""


class AddressPermit(PermitRequest[None], frozen=True):
    """A connection that is counted already, now that its client's address is known."""

    service: ClassVar[str] = _SERVICE
    address: str


class WebSocketPermit(PermitRequest[None], frozen=True):
    """An open WebSocket."""

    service: ClassVar[str] = _SERVICE
    principal: str
    cluster: str


class CountRequest(CallRequest[None], frozen=True):
    """One HTTP request."""

    service: ClassVar[str] = _SERVICE
    principal: str
    cluster: str


class CountFailedLogin(CallRequest[None], frozen=True):
    """A credential that is nobody's."""

    service: ClassVar[str] = _SERVICE
    address: str


QuotaPermit = ConnectionPermit | AddressPermit | WebSocketPermit
QuotaRequest = QuotaPermit | CountRequest | CountFailedLogin


class Limit(NamedTuple):
    """No more than ``most`` of what ``key`` names; ``None``: any number."""

    key: tuple[str, ...]
    most: int | None
    setting: str


class ConcurrencyLimiter:
    """Counts how many permits there are under each key, up to the key's limit."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def acquire(self, limits: Iterable[Limit]) -> Refusal | None:
        """Count one more under each key, or, where one is full, under none."""
        limits = tuple(limits)
        for key, most, setting in limits:
            if most is not None and self._counts[key] >= most:
                return refusal(setting)
        self._counts.update(limit.key for limit in limits)
        return None

    def release(self, limits: Iterable[Limit]) -> None:
        """Count one less under each key."""
        for key, _, _ in limits:
            if self._counts[key] > 1:
                self._counts[key] -= 1
            else:
                del self._counts[key]


class TokenBucket:
    """``per_second`` on average, and ``burst`` at once: a token bucket for each key."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}
        """What is left in each that is not full, and when that was so."""

    def __len__(self) -> int:
        return len(self._buckets)

    def retry_after(self, key: str, now: float) -> float:
        """Return the seconds until a token may be taken; 0 where one may be taken now."""
        return max(0.0, (1 - self._left(key, now)) / self._per_second)

    def take(self, key: str, now: float) -> None:
        """Take a token, which `retry_after` has allowed."""
        self._buckets[key] = (self._left(key, now) - 1, now)

    def evict(self, now: float) -> None:
        """Forget the keys whose buckets are full again."""
        for key in [key for key in self._buckets if self._left(key, now) >= self._burst]:
            del self._buckets[key]

    def _left(self, key: str, now: float) -> float:
        left, then = self._buckets.get(key, (self._burst, now))
        return min(self._burst, left + (now - then) * self._per_second)


class SlidingWindow:
    """``most`` in any ``window`` seconds for each key; the rest is refused and not remembered."""

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._times: dict[str, deque[float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def record(self, key: str, now: float) -> float:
        """Record one. Return the seconds for which ``key`` is refused, 0 where it is not."""
        times = self._times.setdefault(key, deque(maxlen=self._most))
        if len(times) == self._most and times[0] + self._window > now:
            return times[0] + self._window - now
        times.append(now)
        return 0.0

    def evict(self, now: float) -> None:
        """Forget the keys of which nothing is in the window any longer."""
        for key in [key for key, times in self._times.items() if times[-1] + self._window <= now]:
            del self._times[key]


class Quotas:
    """All limits together, as configured."""

    def __init__(
        self, connections: ConnectionSettings, quotas: QuotaSettings, logins: LoginSettings
    ) -> None:
        self._connections = connections
        self._quotas = quotas
        self._limiter = ConcurrencyLimiter()
        self._buckets = {
            "user": _bucket(quotas.user_requests, quotas.user_burst),
            "cluster": _bucket(quotas.cluster_requests, quotas.cluster_burst),
        }
        self._failures = SlidingWindow(logins.failures, logins.window)
        self._swept = -math.inf

    def __len__(self) -> int:
        """How many keys are remembered."""
        buckets = sum(len(bucket) for bucket in self._buckets.values() if bucket is not None)
        return len(self._limiter) + buckets + len(self._failures)

    def acquire(self, request: QuotaRequest, now: float) -> Refusal | None:
        """Grant ``request``, or return why not. A `QuotaPermit` counts until its release."""
        if now >= self._swept + _SWEEP:
            self._evict(now)
        if isinstance(request, CountRequest):
            return self._count_request(request, now)
        if isinstance(request, CountFailedLogin):
            seconds = self._failures.record(request.address, now)
            return refusal("logins.failures", seconds) if seconds else None
        return self._limiter.acquire(self._limits(request))

    def release(self, permit: QuotaPermit) -> None:
        """Take back what was granted."""
        self._limiter.release(self._limits(permit))

    def _limits(self, permit: QuotaPermit) -> list[Limit]:
        connections, quotas = self._connections, self._quotas
        if isinstance(permit, WebSocketPermit):
            user, cluster = ("user", permit.principal), ("cluster", permit.cluster)
            return [
                Limit(user, quotas.user_sockets, "quotas.user_sockets"),
                Limit(cluster, quotas.cluster_sockets, "quotas.cluster_sockets"),
            ]
        limits = []
        if isinstance(permit, ConnectionPermit):
            limits.append(Limit(("all",), connections.total, "connections.total"))
        if permit.address is not None:
            address = ("address", permit.address)
            limits.append(Limit(address, connections.per_address, "connections.per_address"))
        return limits

    def _count_request(self, request: CountRequest, now: float) -> Refusal | None:
        wanted = [
            (bucket, key, f"quotas.{name}_requests")
            for (name, bucket), key in zip(
                self._buckets.items(), (request.principal, request.cluster), strict=True
            )
            if bucket is not None
        ]
        for bucket, key, setting in wanted:
            seconds = bucket.retry_after(key, now)
            if seconds:
                return refusal(setting, seconds)
        for bucket, key, _ in wanted:
            bucket.take(key, now)
        return None

    def _evict(self, now: float) -> None:
        self._swept = now
        self._failures.evict(now)
        for bucket in self._buckets.values():
            if bucket is not None:
                bucket.evict(now)


def quotas_service(quotas: Quotas, clock: Callable[[], float] = time.monotonic) -> Service:
    """Return the service that lets all workers ask one ``quotas``."""

    def acquire(request: QuotaRequest) -> Refusal | None:
        return quotas.acquire(request, clock())

    return Service(
        _SERVICE,
        ConnectionPermit.granted_by(acquire, quotas.release),
        AddressPermit.granted_by(acquire, quotas.release),
        WebSocketPermit.granted_by(acquire, quotas.release),
        CountRequest.served_by(acquire),
        CountFailedLogin.served_by(acquire),
    )


def refusal(setting: str, seconds: float = 0.0) -> Refusal:
    """Return the refusal in the name of ``setting``; trying again makes sense after ``seconds``."""
    return Refusal(setting, "the limit is reached", math.ceil(seconds))


def _bucket(per_second: float | None, burst: int) -> TokenBucket | None:
    return None if per_second is None else TokenBucket(per_second, burst)
