from __future__ import annotations

import pytest

from relay.client.backoff import Backoff
from relay.client.errors import ConnectionLost, GaveUp
from relay.client.settings import Settings
from relay.errors import AgentUnavailable

LOST = ConnectionLost("lost")


def test_pauses_grow_up_to_a_bound() -> None:
    backoff = Backoff(Settings(retry_at_most=2.0), lambda: 1.0)
    assert [backoff.delay(0.0, LOST) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_pauses_are_thrown_by_dice() -> None:
    rolls = iter([0.5, 0.0, 0.25])
    backoff = Backoff(Settings(), lambda: next(rolls))
    assert [backoff.delay(0.0, LOST) for _ in range(3)] == [0.05, 0.0, 0.1]


def test_what_the_relay_asks_for_is_waited() -> None:
    backoff = Backoff(Settings(), lambda: 0.0)
    assert backoff.delay(0.0, AgentUnavailable("away", retry_after=3)) == 3.0


def test_giving_up_comes_after_a_last_try_at_the_end() -> None:
    backoff = Backoff(Settings(give_up_after=10.0, retry_at_most=4.0), lambda: 1.0)
    assert backoff.delay(100.0, LOST) == 0.1
    assert backoff.delay(109.9, AgentUnavailable("away", retry_after=60)) == pytest.approx(0.1)
    with pytest.raises(GaveUp, match=r"10 s \(give_up_after\). lost"):
        backoff.delay(110.0, LOST)


def test_each_outage_has_its_own_time() -> None:
    backoff = Backoff(Settings(give_up_after=10.0), lambda: 1.0)
    backoff.delay(0.0, LOST)
    backoff.succeeded()
    assert backoff.delay(1000.0, LOST) == 0.1


def test_a_thousand_tries_are_no_trouble() -> None:
    backoff = Backoff(Settings(), lambda: 1.0)
    assert [backoff.delay(0.0, LOST) for _ in range(2000)][-1] == 5.0
