from __future__ import annotations

import pytest

from relay.bridge.control import Attach
from relay.bridge.session_table import (
    _REPLACED_LINKS,
    _UNNAMED_AWAY,
    ClientSession,
    SessionLimits,
    SessionTable,
)
from relay.bridge.transitions import SessionState

LIMITS = SessionLimits(sessions=2, requests=10, repeats=10, lifetime=100.0, anonymous_lifetime=10.0)


@pytest.fixture
def table() -> SessionTable:
    return SessionTable(LIMITS)


def find(table: SessionTable, session_id: str, link: str = "l", head: int = 0) -> ClientSession:
    attach = Attach(link=link, principal="token:ada", session_id=session_id)
    session = table.find(attach, head)
    table.use(session)
    return session


def test_a_session_is_found_by_its_name_and_begins_where_it_was_made(table: SessionTable) -> None:
    first = find(table, "s", head=7)
    assert find(table, "s", "other", head=9) is first
    assert (first.cursor, find(table, "t", head=9).cursor) == (7, 9)


def test_states_follow_from_what_is_known(table: SessionTable) -> None:
    session = table.find(Attach(link="l", principal="p", session_id="s"), 0)
    states = [table.state(session)]
    table.use(session)
    states.append(table.state(session))
    session.connection = 1
    states.append(table.state(session))
    assert states == [SessionState.UNKNOWN, SessionState.AWAY, SessionState.ATTACHED]


def test_the_one_used_last_is_forgotten_last(table: SessionTable) -> None:
    for name in "abc":
        find(table, name)
    assert table.is_over_limit
    find(table, "a")
    oldest = table.oldest_away()
    assert oldest is find(table, "b")


@pytest.mark.parametrize(("session_id", "lifetime"), [("s", 100.0), ("", 10.0)])
def test_lifetimes_count_from_the_last_connections_end(
    table: SessionTable, session_id: str, lifetime: float
) -> None:
    session = find(table, session_id)
    session.left = 5.0
    assert table.expired(5.0 + lifetime) == []
    assert table.expired(5.1 + lifetime) == [session]
    session.connection = 1
    assert table.expired(1e9) == []


def test_of_a_principals_unnamed_sessions_the_first_go(table: SessionTable) -> None:
    made = []
    for number in range(_UNNAMED_AWAY + 2):
        session = find(table, "", f"l{number}")
        # It is taken, so the next client is another one.
        session.connection = number
        session.link = f"l{number}"
        made.append(session)
    for session in made:
        session.connection = None
    assert table.unnamed_beyond_limit("token:ada") == made[:2]
    assert table.unnamed_beyond_limit("token:bob") == []


def test_client_messages_are_numbered_on_their_link() -> None:
    session = _session()
    session.use_link("a")
    session.received = 3
    session.use_link("a")
    assert (session.received, session.replaced) == (3, [])
    session.use_link("b")
    assert (session.received, session.replaced) == (0, ["a"])
    for number in range(2 * _REPLACED_LINKS):
        session.use_link(str(number))
    assert len(session.replaced) == _REPLACED_LINKS


def test_failures_in_a_row_at_one_place_are_poison() -> None:
    session = _session()
    poisoned = []
    for moved in (0, 0, 1, 1, 1, 1, 2):
        session.move(moved)
        session.count_failure()
        poisoned.append(session.is_poisoned)
    # Counted anew behind what it has taken.
    assert poisoned == [False] * 4 + [True, True, False]


def _session() -> ClientSession:
    return ClientSession(
        key=b"k", principal="p", unnamed=False, cursor=0, audiences=frozenset((b"k",))
    )
