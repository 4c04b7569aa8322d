from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from relay.config import ConnectionSettings, LoginSettings, QuotaSettings
from relay.edge.ipc.quotas import (
    AddressPermit,
    ConnectionPermit,
    CountFailedLogin,
    CountRequest,
    QuotaPermit,
    QuotaRequest,
    Quotas,
    WebSocketPermit,
    quotas_service,
    refusal,
)

ADA, BOB = "token:ada", "token:bob"


CONNECTIONS = ConnectionSettings(total=5, per_address=3)
LOGINS = LoginSettings(failures=3, window=10.0)
QUOTAS = QuotaSettings(
    user_sockets=2,
    cluster_sockets=3,
    user_requests=2.0,
    user_burst=4,
    cluster_requests=3.0,
    cluster_burst=6,
)


def quotas(**changes: Any) -> Quotas:
    """As above, but for some settings."""
    return Quotas(*(changed(each, changes) for each in (CONNECTIONS, QUOTAS, LOGINS)))


def changed(settings: Any, changes: dict[str, Any]) -> Any:
    mine = {key: value for key, value in changes.items() if hasattr(settings, key)}
    return msgspec.structs.replace(settings, **mine)


def granted(kept: Quotas, request: QuotaRequest, now: float = 0.0) -> bool:
    return kept.acquire(request, now) is None


@pytest.mark.parametrize(
    ("requests", "next_one", "setting"),
    [
        (
            [ConnectionPermit("a"), ConnectionPermit("b")] * 2 + [ConnectionPermit("c")],
            "d",
            "connections.total",
        ),
        ([ConnectionPermit("a")] * 3, "a", "connections.per_address"),
        ([ConnectionPermit(None)] * 5, None, "connections.total"),
    ],
)
def test_connections_at_the_limit_and_past_it(
    requests: list[QuotaPermit], next_one: str | None, setting: str
) -> None:
    kept = quotas()
    assert all(granted(kept, request) for request in requests)
    assert kept.acquire(ConnectionPermit(next_one), 0.0) == refusal(setting)
    kept.release(requests[0])
    assert granted(kept, ConnectionPermit(next_one))


def test_what_a_proxy_brings_counts_for_its_client_not_for_the_proxy() -> None:
    kept = quotas(total=9)
    for address in ["a", "a", "a", "b"]:
        assert granted(kept, ConnectionPermit(None))
        assert granted(kept, AddressPermit(address))
    assert kept.acquire(AddressPermit("a"), 0.0) == refusal("connections.per_address")
    # Wherever the connection came from, it is one of that client's.
    assert kept.acquire(ConnectionPermit("a"), 0.0) == refusal("connections.per_address")


def test_sockets_at_the_limit_and_past_it() -> None:
    kept = quotas()
    assert granted(kept, WebSocketPermit(ADA, "alpha"))
    assert granted(kept, WebSocketPermit(ADA, "beta"))
    assert kept.acquire(WebSocketPermit(ADA, "alpha"), 0.0) == refusal("quotas.user_sockets")
    assert granted(kept, WebSocketPermit(BOB, "alpha"))
    assert granted(kept, WebSocketPermit("x", "alpha"))
    assert kept.acquire(WebSocketPermit("y", "alpha"), 0.0) == refusal("quotas.cluster_sockets")
    # What was refused for the cluster's sake has not been counted for the user's.
    assert granted(kept, WebSocketPermit("y", "beta"))
    assert granted(kept, WebSocketPermit("y", "beta"))


def test_a_refused_claim_counts_nowhere() -> None:
    kept = quotas(total=2)
    assert granted(kept, ConnectionPermit("a"))
    assert granted(kept, ConnectionPermit("b"))
    assert not granted(kept, ConnectionPermit("c"))
    kept.release(ConnectionPermit("a"))
    kept.release(ConnectionPermit("b"))
    # The sweep has nothing to do with counts.
    assert len(kept) == 0


def test_requests_at_the_rate_and_past_it() -> None:
    kept = quotas()
    assert all(granted(kept, CountRequest(ADA, "alpha")) for _ in range(4))
    assert kept.acquire(CountRequest(ADA, "alpha"), 0.0) == refusal("quotas.user_requests", 1)
    assert not granted(kept, CountRequest(ADA, "alpha"), 0.49)
    assert granted(kept, CountRequest(ADA, "alpha"), 0.5)
    assert not granted(kept, CountRequest(ADA, "alpha"), 0.5)


def test_a_clusters_rate_is_everybodys() -> None:
    kept = quotas()
    for user in (ADA, ADA, BOB, BOB, "x", "x"):
        assert granted(kept, CountRequest(user, "alpha"))
    assert kept.acquire(CountRequest("y", "alpha"), 0.0) == refusal("quotas.cluster_requests", 1)
    assert granted(kept, CountRequest("y", "beta"))
    # Nor did the refused one cost its user anything.
    assert [granted(kept, CountRequest("y", "beta")) for _ in range(4)] == [True] * 3 + [False]


def test_retry_after_is_when_one_may_be_taken_again() -> None:
    kept = quotas(user_requests=0.1, user_burst=1, cluster_requests=None)
    assert granted(kept, CountRequest(ADA, "alpha"), 3.0)
    assert kept.acquire(CountRequest(ADA, "alpha"), 5.5) == refusal("quotas.user_requests", 8)
    assert granted(kept, CountRequest(ADA, "alpha"), 13.5)


def test_no_limit_is_none() -> None:
    kept = quotas(user_requests=None, cluster_requests=None, cluster_sockets=None, user_sockets=99)
    assert all(granted(kept, CountRequest(ADA, "alpha")) for _ in range(1000))
    assert all(granted(kept, WebSocketPermit(ADA, "alpha")) for _ in range(99))
    assert len(kept) == 2


def test_failed_logins_of_one_address_only() -> None:
    kept = quotas()
    for now in (0.0, 1.0, 2.0):
        assert granted(kept, CountFailedLogin("a"), now)
    assert kept.acquire(CountFailedLogin("a"), 2.5) == refusal("logins.failures", 8)
    assert granted(kept, CountFailedLogin("b"), 2.5)
    # What was refused does not make it last longer.
    assert granted(kept, CountFailedLogin("a"), 10.0)
    assert kept.acquire(CountFailedLogin("a"), 10.0) == refusal("logins.failures", 1)


def test_nothing_is_remembered_for_ever() -> None:
    kept = quotas()
    for number in range(50):
        granted(kept, CountFailedLogin(str(number)), 0.0)
        granted(kept, CountRequest(str(number), "alpha"), 0.0)
    assert len(kept) > 50
    granted(kept, CountRequest(ADA, "alpha"), 60.0)
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("wanted", "most", "setting"),
    [
        (ConnectionPermit("a"), 3, "connections.per_address"),
        (AddressPermit("a"), 3, "connections.per_address"),
        (WebSocketPermit(ADA, "alpha"), 2, "quotas.user_sockets"),
        (CountRequest(ADA, "alpha"), 4, "quotas.user_requests"),
        (CountFailedLogin("a"), 3, "logins.failures"),
    ],
)
def test_the_service_grants_what_there_is(wanted: QuotaRequest, most: int, setting: str) -> None:
    kept, now = quotas(), 5.0
    service = quotas_service(kept, lambda: now)
    read, handler = service.read(Raw(msgspec.msgpack.encode(wanted)))
    assert read == wanted
    assert [handler.answer(read) for _ in range(most)] == [None] * most
    assert handler.answer(read).code == setting
    if handler.release is not None:
        handler.release(read)
    else:
        now += 10.0
    assert handler.answer(read) is None


TIMES = st.lists(st.floats(0, 3, allow_subnormal=False), min_size=1, max_size=60)


@given(TIMES, st.floats(0.1, 5), st.integers(1, 5))
def test_never_more_requests_than_rate_and_burst(
    pauses: list[float], rate: float, burst: int
) -> None:
    kept = quotas(user_requests=rate, user_burst=burst, cluster_requests=None)
    now, taken = 0.0, []
    for pause in pauses:
        now += pause
        refused = kept.acquire(CountRequest(ADA, "alpha"), now)
        if refused is None:
            taken.append(now)
        else:
            assert refused.retry_after >= 1
    for first, begin in enumerate(taken):
        for count, end in enumerate(taken[first:], 1):
            assert count <= burst + rate * (end - begin) + 1e-6


@given(TIMES, st.integers(1, 5), st.floats(0.5, 20))
def test_never_more_failures_than_in_any_window(
    pauses: list[float], most: int, window: float
) -> None:
    kept = quotas(failures=most, window=window)
    now, taken = 0.0, []
    for pause in pauses:
        now += pause
        refused = kept.acquire(CountFailedLogin("a"), now)
        if refused is None:
            taken.append(now)
        else:
            later = math.nextafter(now + refused.retry_after, math.inf)
            assert later >= taken[-most] + window
    for begin, end in zip(taken, taken[most:], strict=False):
        assert end - begin >= window - 1e-9
    assert all(one <= other for one, other in pairwise(taken))


STEPS = st.lists(
    st.one_of(
        st.builds(ConnectionPermit, st.sampled_from(["a", "b", None])),
        st.builds(AddressPermit, st.sampled_from(["a", "b"])),
        st.builds(WebSocketPermit, st.sampled_from([ADA, BOB]), st.sampled_from(["alpha", "beta"])),
        st.integers(0, 20),
    )
)


@given(STEPS)
def test_never_over_and_never_leaking(steps: list[QuotaPermit | int]) -> None:
    """A number frees one of what is held; the counts are recounted after every step."""
    kept, held = quotas(), list[QuotaPermit]()
    for step in steps:
        if isinstance(step, int):
            if held:
                kept.release(held.pop(step % len(held)))
        elif kept.acquire(step, 0.0) is None:
            held.append(step)
        else:
            assert not fits([*held, step]), "refused though there was room"
        assert fits(held)
    for request in held:
        kept.release(request)
    assert len(kept) == 0


def fits(held: list[QuotaPermit]) -> bool:
    connections = [request for request in held if isinstance(request, ConnectionPermit)]
    sockets = [request for request in held if isinstance(request, WebSocketPermit)]
    addresses = Counter(
        request.address
        for request in held
        if not isinstance(request, WebSocketPermit) and request.address is not None
    )
    users = Counter(request.principal for request in sockets)
    clusters = Counter(request.cluster for request in sockets)
    return (
        len(connections) <= 5
        and max(addresses.values(), default=0) <= 3
        and max(users.values(), default=0) <= 2
        and max(clusters.values(), default=0) <= 3
    )
