from __future__ import annotations

import itertools

import pytest

from relay.bridge.control import Attach, Disconnect
from relay.bridge.events import ClientAttached, ClientDetached, Event, StartReading
from relay.bridge.session import ClientSessions
from relay.bridge.session_table import SessionLimits
from relay.bridge.transitions import TRANSITIONS, SessionState, SessionTrigger, Step
from tools import session_diagram

UNKNOWN, ATTACHED, AWAY = SessionState.UNKNOWN, SessionState.ATTACHED, SessionState.AWAY
ATTACH = Attach(link="l", principal="token:ada", session_id="s")
UNNAMED = Attach(link="l", principal="token:ada")


def test_the_page_shows_the_table_that_the_code_goes_by() -> None:
    assert session_diagram.PAGE.read_text() == session_diagram.page()


def test_every_state_can_be_reached_and_left() -> None:
    before = {state for state, _ in TRANSITIONS}
    after = {transition.state for transition in TRANSITIONS.values()}
    assert before == after == set(SessionState)


def test_everything_that_can_happen_or_be_done_is_in_the_table() -> None:
    assert {trigger for _, trigger in TRANSITIONS} == set(SessionTrigger)
    steps = itertools.chain.from_iterable(each.steps for each in TRANSITIONS.values())
    assert set(steps) == set(Step)


def test_only_a_session_that_is_attached_can_be_left() -> None:
    leaving = {state for (state, _), each in TRANSITIONS.items() if Step.LEAVE in each.steps}
    assert leaving == {ATTACHED}


@pytest.mark.parametrize(
    ("attach", "events", "state"),
    [
        (ATTACH, [], ATTACHED),
        (ATTACH, [ClientDetached(1)], AWAY),
        (ATTACH, [ClientDetached(1, Disconnect.ABNORMAL)], AWAY),
        (ATTACH, [ClientDetached(1, Disconnect.CLEAN)], AWAY),
        (UNNAMED, [ClientDetached(1)], AWAY),
        (UNNAMED, [ClientDetached(1, Disconnect.CLEAN)], UNKNOWN),
        (ATTACH, [ClientAttached(2, ATTACH), ClientDetached(1)], ATTACHED),
    ],
)
def test_sessions_go_the_way_that_the_table_says(
    attach: Attach, events: list[Event], state: SessionState
) -> None:
    limits = SessionLimits(
        sessions=2, requests=2, repeats=2, lifetime=10.0, anonymous_lifetime=10.0
    )
    sessions = ClientSessions("e", limits)
    (begun,) = sessions.handle(ClientAttached(1, attach), 0.0)
    assert isinstance(begun, StartReading)
    for event in events:
        sessions.handle(event, 0.0)
    found = [sessions._table.state(each) for each in sessions._table]
    assert found == ([] if state is UNKNOWN else [state])
