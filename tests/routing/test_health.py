from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.routing.health import MEMORY, AgentHealth, ClusterAgents

A, B, C = "http://a:1", "http://b:2", "http://c:3"


def test_an_agent_is_thought_up_until_it_fails() -> None:
    health = AgentHealth()
    assert health.down_since is None
    assert not health.is_suspect(0.0)


def test_an_outage_begins_with_its_first_failure_and_ends_with_a_success() -> None:
    health = AgentHealth()
    seen = []
    for note, now in [
        (health.failed, 10.0),
        (health.failed, 11.0),
        (health.succeeded, 12.0),
        (health.failed, 13.0),
    ]:
        note(now)
        seen.append(health.down_since)
    assert seen == [10.0, 10.0, None, 13.0]


def test_a_failure_after_a_long_silence_is_a_new_outage() -> None:
    health = AgentHealth()
    health.failed(10.0)
    health.failed(10.0 + MEMORY)
    assert health.down_since == 10.0
    health.failed(10.0 + MEMORY * 2 + 0.1)
    assert health.down_since == 10.0 + MEMORY * 2 + 0.1


def test_agents_are_first_tried_in_the_configured_order() -> None:
    assert ClusterAgents([B, A, C]).candidates(0.0) == [B, A, C]


def test_the_last_good_one_comes_first() -> None:
    agents = ClusterAgents([A, B, C])
    agents.succeeded(B, 1.0)
    assert agents.candidates(2.0) == [B, A, C]
    agents.succeeded(C, 2.0)
    assert agents.candidates(3.0) == [C, B, A]


def test_those_that_are_down_come_last_the_longest_untried_before_the_others() -> None:
    agents = ClusterAgents([A, B, C])
    agents.succeeded(A, 0.0)
    agents.failed(A, 1.0)
    assert agents.candidates(1.0) == [B, C, A]
    agents.failed(B, 2.0)
    agents.failed(C, 3.0)
    assert agents.candidates(3.0) == [A, B, C]
    agents.failed(A, 4.0)
    assert agents.candidates(4.0) == [B, C, A]


def test_an_old_failure_counts_no_longer() -> None:
    agents = ClusterAgents([A, B])
    agents.succeeded(A, 0.0)
    agents.failed(A, 1.0)
    assert agents.candidates(1.0 + MEMORY) == [B, A]
    assert agents.candidates(1.1 + MEMORY) == [A, B]


def test_a_cluster_is_down_when_its_last_agent_is() -> None:
    agents = ClusterAgents([A, B])
    seen = []
    for note, url, now in [
        (agents.failed, A, 1.0),
        (agents.failed, B, 5.0),
        (agents.succeeded, A, 6.0),
    ]:
        note(url, now)
        seen.append(agents.down_since)
    assert seen == [None, 5.0, None]


def test_requests_are_held_from_the_moment_the_cluster_went_down() -> None:
    agents = ClusterAgents([A])
    agents.failed(A, 100.0)
    assert agents.hold_deadline(100.0, 2.0) == 102.0
    agents.failed(A, 101.0)
    assert agents.hold_deadline(101.0, 2.0) == 102.0


def test_requests_to_a_long_dead_cluster_are_not_held() -> None:
    agents = ClusterAgents([A, B])
    for second in range(100, 130, 4):
        agents.failed(A, second)
        agents.failed(B, second)
    assert agents.hold_deadline(130.0, 10.0) < 130.0


def test_one_agent_that_may_be_up_is_worth_waiting_for() -> None:
    agents = ClusterAgents([A, B])
    agents.failed(A, 100.0)
    assert agents.hold_deadline(500.0, 2.0) == 502.0


def test_a_hold_of_nothing_is_over_at_once() -> None:
    agents = ClusterAgents([A])
    agents.failed(A, 100.0)
    assert agents.hold_deadline(100.0, 0.0) <= 100.0


def test_a_cluster_without_agents() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ClusterAgents([])


def test_an_agent_named_twice_is_one() -> None:
    assert ClusterAgents([A, B, A]).candidates(0.0) == [A, B]


def test_a_foreign_agent() -> None:
    agents = ClusterAgents([A])
    with pytest.raises(KeyError):
        agents.succeeded(B, 0.0)
    with pytest.raises(KeyError):
        agents.failed(B, 0.0)
    assert agents.candidates(0.0) == [A]


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.booleans(), st.floats(0.1, 100))))
def test_whatever_happens_every_agent_remains_a_candidate(
    events: list[tuple[str, bool, float]],
) -> None:
    agents = ClusterAgents([A, B, C])
    now = 0.0
    last: dict[str, bool] = {}
    for url, good, later in events:
        now += later
        (agents.succeeded if good else agents.failed)(url, now)
        last[url] = good
    assert sorted(agents.candidates(now)) == [A, B, C]
    assert (agents.down_since is not None) == (last == {A: False, B: False, C: False})
    if events and events[-1][1]:
        assert agents.candidates(now)[0] == events[-1][0]
