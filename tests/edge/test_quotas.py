from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import ConnectionSettings, LoginSettings, QuotaSettings
from relay.edge.quotas import (
    Address,
    Claim,
    Connection,
    FailedLogin,
    Lasting,
    Quotas,
    Refusal,
    Request,
    Socket,
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


def granted(kept: Quotas, claim: Claim, now: float = 0.0) -> bool:
    return kept.take(claim, now) is None


@pytest.mark.parametrize(
    ("claims", "next_one", "setting"),
    [
        ([Connection("a"), Connection("b")] * 2 + [Connection("c")], "d", "connections.total"),
        ([Connection("a")] * 3, "a", "connections.per_address"),
        ([Connection(None)] * 5, None, "connections.total"),
    ],
)
def test_connections_at_the_limit_and_past_it(
    claims: list[Lasting], next_one: str | None, setting: str
) -> None:
    kept = quotas()
    assert all(granted(kept, claim) for claim in claims)
    assert kept.take(Connection(next_one), 0.0) == Refusal(setting)
    kept.free(claims[0])
    assert granted(kept, Connection(next_one))


def test_what_a_proxy_brings_counts_for_its_client_not_for_the_proxy() -> None:
    kept = quotas(total=9)
    for address in ["a", "a", "a", "b"]:
        assert granted(kept, Connection(None))
        assert granted(kept, Address(address))
    assert kept.take(Address("a"), 0.0) == Refusal("connections.per_address")
    # Wherever the connection came from, it is one of that client's.
    assert kept.take(Connection("a"), 0.0) == Refusal("connections.per_address")


def test_sockets_at_the_limit_and_past_it() -> None:
    kept = quotas()
    assert granted(kept, Socket(ADA, "alpha"))
    assert granted(kept, Socket(ADA, "beta"))
    assert kept.take(Socket(ADA, "alpha"), 0.0) == Refusal("quotas.user_sockets")
    assert granted(kept, Socket(BOB, "alpha"))
    assert granted(kept, Socket("x", "alpha"))
    assert kept.take(Socket("y", "alpha"), 0.0) == Refusal("quotas.cluster_sockets")
    # What was refused for the cluster's sake has not been counted for the user's.
    assert granted(kept, Socket("y", "beta"))
    assert granted(kept, Socket("y", "beta"))


def test_a_refused_claim_counts_nowhere() -> None:
    kept = quotas(total=2)
    assert granted(kept, Connection("a"))
    assert granted(kept, Connection("b"))
    assert not granted(kept, Connection("c"))
    kept.free(Connection("a"))
    kept.free(Connection("b"))
    # The sweep has nothing to do with counts.
    assert len(kept) == 0


def test_requests_at_the_rate_and_past_it() -> None:
    kept = quotas()
    assert all(granted(kept, Request(ADA, "alpha")) for _ in range(4))
    assert kept.take(Request(ADA, "alpha"), 0.0) == Refusal("quotas.user_requests", 1)
    assert not granted(kept, Request(ADA, "alpha"), 0.49)
    assert granted(kept, Request(ADA, "alpha"), 0.5)
    assert not granted(kept, Request(ADA, "alpha"), 0.5)


def test_a_clusters_rate_is_everybodys() -> None:
    kept = quotas()
    for user in (ADA, ADA, BOB, BOB, "x", "x"):
        assert granted(kept, Request(user, "alpha"))
    assert kept.take(Request("y", "alpha"), 0.0) == Refusal("quotas.cluster_requests", 1)
    assert granted(kept, Request("y", "beta"))
    # Nor did the refused one cost its user anything.
    assert [granted(kept, Request("y", "beta")) for _ in range(4)] == [True] * 3 + [False]


def test_retry_after_is_when_one_may_be_taken_again() -> None:
    kept = quotas(user_requests=0.1, user_burst=1, cluster_requests=None)
    assert granted(kept, Request(ADA, "alpha"), 3.0)
    assert kept.take(Request(ADA, "alpha"), 5.5) == Refusal("quotas.user_requests", 8)
    assert granted(kept, Request(ADA, "alpha"), 13.5)


def test_no_limit_is_none() -> None:
    kept = quotas(user_requests=None, cluster_requests=None, cluster_sockets=None, user_sockets=99)
    assert all(granted(kept, Request(ADA, "alpha")) for _ in range(1000))
    assert all(granted(kept, Socket(ADA, "alpha")) for _ in range(99))
    assert len(kept) == 2


def test_failed_logins_of_one_address_only() -> None:
    kept = quotas()
    for now in (0.0, 1.0, 2.0):
        assert granted(kept, FailedLogin("a"), now)
    assert kept.take(FailedLogin("a"), 2.5) == Refusal("logins.failures", 8)
    assert granted(kept, FailedLogin("b"), 2.5)
    # What was refused does not make it last longer.
    assert granted(kept, FailedLogin("a"), 10.0)
    assert kept.take(FailedLogin("a"), 10.0) == Refusal("logins.failures", 1)


def test_nothing_is_remembered_for_ever() -> None:
    kept = quotas()
    for number in range(50):
        granted(kept, FailedLogin(str(number)), 0.0)
        granted(kept, Request(str(number), "alpha"), 0.0)
    assert len(kept) > 50
    granted(kept, Request(ADA, "alpha"), 60.0)
    assert len(kept) == 2


TIMES = st.lists(st.floats(0, 3, allow_subnormal=False), min_size=1, max_size=60)


@given(TIMES, st.floats(0.1, 5), st.integers(1, 5))
def test_never_more_requests_than_rate_and_burst(
    pauses: list[float], rate: float, burst: int
) -> None:
    kept = quotas(user_requests=rate, user_burst=burst, cluster_requests=None)
    now, taken = 0.0, []
    for pause in pauses:
        now += pause
        refusal = kept.take(Request(ADA, "alpha"), now)
        if refusal is None:
            taken.append(now)
        else:
            assert refusal.retry_after >= 1
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
        refusal = kept.take(FailedLogin("a"), now)
        if refusal is None:
            taken.append(now)
        else:
            later = math.nextafter(now + refusal.retry_after, math.inf)
            assert later >= taken[-most] + window
    for begin, end in zip(taken, taken[most:], strict=False):
        assert end - begin >= window - 1e-9
    assert all(one <= other for one, other in pairwise(taken))


STEPS = st.lists(
    st.one_of(
        st.builds(Connection, st.sampled_from(["a", "b", None])),
        st.builds(Address, st.sampled_from(["a", "b"])),
        st.builds(Socket, st.sampled_from([ADA, BOB]), st.sampled_from(["alpha", "beta"])),
        st.integers(0, 20),
    )
)


@given(STEPS)
def test_never_over_and_never_leaking(steps: list[Lasting | int]) -> None:
    """A number frees one of what is held; the counts are recounted after every step."""
    kept, held = quotas(), list[Lasting]()
    for step in steps:
        if isinstance(step, int):
            if held:
                kept.free(held.pop(step % len(held)))
        elif kept.take(step, 0.0) is None:
            held.append(step)
        else:
            assert not fits([*held, step]), "refused though there was room"
        assert fits(held)
    for claim in held:
        kept.free(claim)
    assert len(kept) == 0


def fits(held: list[Lasting]) -> bool:
    connections = [claim for claim in held if isinstance(claim, Connection)]
    sockets = [claim for claim in held if isinstance(claim, Socket)]
    addresses = Counter(
        claim.address
        for claim in held
        if not isinstance(claim, Socket) and claim.address is not None
    )
    users = Counter(claim.principal for claim in sockets)
    clusters = Counter(claim.cluster for claim in sockets)
    return (
        len(connections) <= 5
        and max(addresses.values(), default=0) <= 3
        and max(users.values(), default=0) <= 2
        and max(clusters.values(), default=0) <= 3
    )
