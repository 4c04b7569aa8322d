from __future__ import annotations

from collections import defaultdict, deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from relay.bridge.control import Attach, Disconnect, Position
from relay.bridge.events import (
    Acknowledge,
    Action,
    AnswerInfo,
    Append,
    ClientAttached,
    ClientDetached,
    CloseConnection,
    DeliveryProved,
    Discard,
    Event,
    Evicted,
    Forward,
    HolderLost,
    KernelInfoLearnt,
    KernelLaunched,
    KernelLost,
    MessagePublished,
    MessageSubmitted,
    StartReading,
)
from relay.bridge.messages import Channel
from relay.bridge.session import REPLACED, ClientSessions, SessionsSnapshot
from relay.bridge.session_table import BROADCAST, SessionLimits, session_key
from tests.playbook import Playbook

EPOCH = "e1"
SHELL, IOPUB, STDIN, CONTROL = Channel.SHELL, Channel.IOPUB, Channel.STDIN, Channel.CONTROL
ADA, BOB = "token:ada", "token:bob"


def attach(
    session: str = "s",
    link: str = "l1",
    principal: str = ADA,
    position: Position | None = None,
) -> Attach:
    return Attach(link=link, principal=principal, session_id=session, position=position)


def key(session: str = "s", principal: str = ADA) -> bytes:
    return session_key(principal, f"s {session}")


def key_of_link(link: str, principal: str = ADA) -> bytes:
    return session_key(principal, f"l {link}")


def at(seq: int, fragment: int = 0, epoch: str = EPOCH) -> Position:
    return Position(epoch, seq, fragment)


def start(
    connection: int,
    own: bytes,
    position: Position,
    acknowledged: int,
    *others: bytes,
    poison: bool = False,
) -> StartReading:
    audiences = frozenset((BROADCAST, own, *others))
    return StartReading(connection, audiences, position, acknowledged, poison)


def limits(sessions: int = 10, requests: int = 10, repeats: int = 10) -> SessionLimits:
    return SessionLimits(
        sessions=sessions,
        requests=requests,
        repeats=repeats,
        lifetime=1000.0,
        anonymous_lifetime=100.0,
    )


def play(seq: int = 0, limit: int = 10, request_limit: int = 10) -> Playbook[Event, Action]:
    return played(launched(limits(limit, request_limit), seq))


def launched(bounds: SessionLimits, seq: int = 0) -> ClientSessions:
    """The sessions of a kernel that is up."""
    sessions = ClientSessions(EPOCH, bounds, seq)
    assert sessions.handle(KernelLaunched(), 0.0) == []
    return sessions


def played(sessions: ClientSessions, now: float = 0.0) -> Playbook[Event, Action]:
    return Playbook(lambda event: sessions.handle(event, now))


def ask(connection: int, number: int, msg_id: str = "m", session: str = "k") -> MessageSubmitted:
    return MessageSubmitted(connection, number, SHELL, msg_id, session, "execute_request")


def reply(msg_id: str = "m", session: str = "k") -> MessagePublished:
    return MessagePublished(SHELL, msg_id, session)


PRINT = MessagePublished(IOPUB, "m", "k")


def test_iopub_goes_to_everybody_and_a_reply_to_who_asked() -> None:
    (
        play()
        >> ClientAttached(1, attach("a"))
        << [start(1, key("a"), at(0), 0)]
        >> ClientAttached(2, attach("b", link="l2"))
        << [start(2, key("b"), at(0), 0)]
        >> ask(2, 1)
        << [Forward(), Acknowledge(2, 1)]
        >> PRINT
        << [Append(1, BROADCAST)]
        >> reply()
        << [Append(2, key("b"))]
        >> PRINT
        << [Append(3, BROADCAST)]
    )


def test_a_reply_on_control_goes_to_who_asked() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> MessageSubmitted(1, 1, CONTROL, "i", "k", "interrupt_request")
        << [Forward(), Acknowledge(1, 1)]
        >> MessagePublished(CONTROL, "i", "k")
        << [Append(1, key())]
    )


def test_what_answers_nobody_is_discarded_and_takes_no_seq() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> ask(1, 1, "m", "k")
        >> reply("other", "k")
        << [Discard()]
        >> reply("m", "other")
        << [Discard()]
        >> reply("", "")
        << [Discard()]
        >> MessagePublished(STDIN, "other", "k")
        << [Discard()]
        >> reply("m", "k")
        << [Append(1, key())]
        >> reply("m", "k")
        << [Discard()]
    )


def test_two_clients_that_send_the_same_ids_are_answered_in_turn() -> None:
    (
        play()
        >> ClientAttached(1, attach("a"))
        >> ClientAttached(2, attach("b", link="l2"))
        >> ask(1, 1)
        >> ask(2, 1)
        >> reply()
        << [Append(1, key("a"))]
        >> reply()
        << [Append(2, key("b"))]
        >> reply()
        << [Discard()]
    )


def test_a_reply_finds_a_session_that_is_away() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> ask(1, 1)
        >> ClientDetached(1)
        << []
        >> reply()
        << [Append(1, key())]
        >> ClientAttached(2, attach(link="l2"))
        << [start(2, key(), at(0), 0)]
    )


def test_an_empty_session_in_the_header_is_a_session_like_others() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> ask(1, 1, "m", "")
        << [Forward(), Acknowledge(1, 1)]
        >> reply("m", "")
        << [Append(1, key())]
    )


def test_a_question_on_stdin_goes_to_who_runs_the_cell() -> None:
    (
        play()
        >> ClientAttached(1, attach("a"))
        >> ClientAttached(2, attach("b", link="l2"))
        >> ask(1, 1)
        >> ask(2, 1)
        >> MessagePublished(STDIN, "m", "k")
        << [Append(1, key("a"))]
        >> MessagePublished(STDIN, "m", "k")
        << [Append(2, key("a"))]
        # The answer is no request: the execute_reply is still the first client's.
        >> MessageSubmitted(1, 2, STDIN, "m", "k", "input_reply")
        << [Forward(), Acknowledge(1, 2)]
        >> reply()
        << [Append(3, key("a"))]
        >> MessagePublished(STDIN, "m", "k")
        << [Append(4, key("b"))]
        >> reply()
        << [Append(5, key("b"))]
        >> reply()
        << [Discard()]
    )


def test_nothing_is_sent_to_a_kernels_iopub() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> MessageSubmitted(1, 1, IOPUB, "m", "k", "execute_request")
        << [Acknowledge(1, 1)]
        >> reply()
        << [Discard()]
    )


@pytest.mark.parametrize("msg_type", ["comm_open", "comm_msg", "comm_close"])
def test_what_no_kernel_replies_to_forgets_no_request(msg_type: str) -> None:
    book = play(request_limit=2) >> ClientAttached(1, attach()) >> ask(1, 1)
    for number in range(2, 10):
        event = MessageSubmitted(1, number, SHELL, f"c{number}", "k", msg_type)
        book >> event << [Forward(), Acknowledge(1, number)]
    book >> reply() << [Append(1, key())]


def test_repeats_on_the_same_link_are_acknowledged_and_dropped() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> ask(1, 1)
        >> ask(1, 2, "n")
        << [Forward(), Acknowledge(1, 2)]
        >> ClientDetached(1)
        # The same link through another agent, which repeats what was not acknowledged.
        >> ClientAttached(2, attach(position=at(0)))
        << [start(2, key(), at(0), 2)]
        >> ask(2, 1)
        << [Acknowledge(2, 1)]
        >> ask(2, 2, "n")
        << [Acknowledge(2, 2)]
        >> ask(2, 3, "o")
        << [Forward(), Acknowledge(2, 3)]
        >> reply("m")
        << [Append(1, key())]
        >> reply("m")
        << [Discard()]
    )


def test_a_new_link_of_the_same_session_counts_from_one() -> None:
    (
        play()
        >> ClientAttached(1, attach(link="l1"))
        >> ask(1, 1)
        >> ClientDetached(1, Disconnect.CLEAN)
        >> ClientAttached(2, attach(link="l2"))
        << [start(2, key(), at(0), 0)]
        >> ask(2, 1, "n")
        << [Forward(), Acknowledge(2, 1)]
    )


def test_the_newest_connection_of_a_session_wins() -> None:
    (
        play()
        >> ClientAttached(1, attach(link="l1"))
        >> ask(1, 1)
        >> ClientAttached(2, attach(link="l2"))
        << [CloseConnection(1, *REPLACED), start(2, key(), at(0), 0)]
        # What the old one still sends is for nobody, and so is its proof.
        >> ask(1, 2, "n")
        << []
        >> PRINT
        >> DeliveryProved(1, 1)
        << []
        >> ClientDetached(1, Disconnect.CLEAN)
        << []
        >> ask(2, 1, "o")
        << [Forward(), Acknowledge(2, 1)]
        # A reply to what the old one asked is the session's all the same.
        >> reply("m")
        << [Append(2, key())]
        >> ClientAttached(3, attach(link="l3"))
        << [CloseConnection(2, *REPLACED), start(3, key(), at(0), 0)]
    )


def test_a_replaced_link_that_comes_again_takes_nothing_back() -> None:
    (
        play()
        >> ClientAttached(1, attach(link="l1"))
        >> ask(1, 1)
        >> ClientAttached(2, attach(link="l2"))
        >> PRINT
        >> ClientAttached(3, attach(link="l1", position=at(1)))
        << [start(3, key(), at(1), 0), CloseConnection(3, *REPLACED)]
        >> ask(3, 2, "n")
        << []
        >> ClientDetached(3)
        << []
        >> ask(2, 1, "n")
        << [Forward(), Acknowledge(2, 1)]
        # The newest may come again as often as it likes.
        >> ClientAttached(4, attach(link="l2", position=at(1)))
        << [CloseConnection(2, *REPLACED), start(4, key(), at(1), 1)]
    )


def test_the_old_connection_of_a_link_is_ended_when_it_comes_again() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> ask(1, 1)
        >> ClientAttached(2, attach(position=at(0)))
        << [CloseConnection(1, *REPLACED), start(2, key(), at(0), 1)]
    )


def test_sessions_of_two_principals_are_two() -> None:
    assert key("s", ADA) != key("s", BOB)
    (
        play()
        >> ClientAttached(1, attach("s", principal=ADA))
        >> ClientAttached(2, attach("s", principal=BOB))
        << [start(2, key("s", BOB), at(0), 0)]
    )


def test_principal_and_session_are_told_apart_wherever_they_are_cut() -> None:
    names = ["a", "a s", "a s b", "s", "l", "1 a", "a 1"]
    keys = {session_key(one, two) for one in names for two in names}
    assert len(keys) == len(names) ** 2
    assert {len(k) for k in keys} == {8}


def test_a_key_is_the_same_in_every_process() -> None:
    # Journals on disk are read by it.
    assert session_key("token:ada", "s x").hex() == "ca27b9e2aa66407e"


def test_a_session_id_that_is_no_unicode_has_a_key() -> None:
    assert session_key(ADA, "s \ud800") != session_key(ADA, "s \ud801")


def test_without_a_session_id_each_link_is_a_session() -> None:
    (
        play()
        >> ClientAttached(1, attach("", "l1"))
        << [start(1, key_of_link("l1"), at(0), 0)]
        >> ClientAttached(2, attach("", "l2"))
        << [start(2, key_of_link("l2"), at(0), 0)]
        >> ask(2, 1)
        >> reply()
        << [Append(1, key_of_link("l2"))]
    )


def test_a_session_id_cannot_name_somebodys_link() -> None:
    assert key("l l1") != key_of_link("l1")
    assert key("l1") != key_of_link("l1")


def test_a_link_without_session_id_lives_on_when_it_breaks_off() -> None:
    (
        play()
        >> ClientAttached(1, attach("", "l1"))
        >> PRINT
        >> DeliveryProved(1, 1)
        >> PRINT
        >> ClientDetached(1)
        >> ClientAttached(2, attach("", "l1"))
        << [start(2, key_of_link("l1"), at(1), 0)]
        >> ClientDetached(2, Disconnect.CLEAN)
        # Nobody can mean it now: a new one begins at the head.
        >> ClientAttached(3, attach("", "l1"))
        << [start(3, key_of_link("l1"), at(2), 0)]
    )


def test_a_named_session_outlives_a_goodbye() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> PRINT
        >> ClientDetached(1, Disconnect.CLEAN)
        >> ClientAttached(2, attach(link="l2"))
        << [start(2, key(), at(0), 0)]
    )


def test_a_new_session_begins_at_the_head() -> None:
    play(seq=41) >> PRINT >> ClientAttached(1, attach()) << [start(1, key(), at(42), 0)]


def test_the_cursor_moves_only_on_proof_and_only_forwards() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> PRINT
        >> PRINT
        >> PRINT
        >> ClientAttached(2, attach(link="l2"))
        << [CloseConnection(1, *REPLACED), start(2, key(), at(0), 0)]
        >> DeliveryProved(2, 2)
        << []
        >> DeliveryProved(2, 1)
        << []
        >> ClientAttached(3, attach(link="l3"))
        << [CloseConnection(2, *REPLACED), start(3, key(), at(2), 0)]
        # Of what has not been printed yet there is no proof.
        >> DeliveryProved(3, 4)
        << []
        >> ClientAttached(4, attach(link="l4"))
        << [CloseConnection(3, *REPLACED), start(4, key(), at(2), 0)]
        >> DeliveryProved(4, 3)
        >> ClientAttached(5, attach(link="l5"))
        << [CloseConnection(4, *REPLACED), start(5, key(), at(3), 0)]
    )


@pytest.mark.parametrize("connection", [1, 7])
def test_no_proof_comes_from_a_connection_that_is_not_attached(connection: int) -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> PRINT
        >> ClientDetached(1)
        >> DeliveryProved(connection, 1)
        << []
        >> ClientAttached(2, attach(link="l2"))
        << [start(2, key(), at(0), 0)]
    )


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (at(2), at(2)),
        (at(3), at(3)),
        (at(0), at(0)),
        (at(2, 5), at(2, 5)),
        # The cursor, where the position means nothing here.
        (None, at(1)),
        (at(4), at(1)),
        (at(2, epoch="e0"), at(1)),
        (at(2, 5, epoch="e0"), at(1)),
        (at(2, epoch=""), at(1)),
    ],
)
def test_a_position_counts_within_its_epoch_only(asked: Position | None, given: Position) -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> PRINT
        >> PRINT
        >> PRINT
        >> DeliveryProved(1, 1)
        >> ClientDetached(1)
        >> ClientAttached(2, attach(position=asked))
        << [start(2, key(), given, 0)]
    )


def test_a_lost_kernel_takes_its_requests_along() -> None:
    (
        play()
        >> ClientAttached(1, attach())
        >> ask(1, 1)
        >> KernelLost()
        << []
        >> reply()
        << [Discard()]
        >> KernelLaunched()
        # Sessions, numbers and seqs are the holder's and stay.
        >> ask(1, 1)
        << [Acknowledge(1, 1)]
        >> ask(1, 2)
        << [Forward(), Acknowledge(1, 2)]
        >> reply()
        << [Append(1, key())]
    )


def test_past_the_limit_the_reply_to_the_oldest_request_finds_nobody() -> None:
    (
        play(request_limit=2)
        >> ClientAttached(1, attach())
        >> ask(1, 1, "a")
        >> ask(1, 2, "b")
        >> ask(1, 3, "c")
        << [Forward(), Acknowledge(1, 3), Evicted("sessions.requests")]
        >> reply("a")
        << [Discard()]
        >> reply("b")
        << [Append(1, key())]
        >> reply("c")
        << [Append(2, key())]
    )


def test_requests_with_the_same_ids_count_each() -> None:
    sessions = launched(limits(requests=3))
    book = played(sessions) >> ClientAttached(1, attach())
    book >> ask(1, 1, "a")
    for number in range(2, 50):
        book >> ask(1, number, "same")
    assert len(sessions.unfinished) <= 3
    book >> reply("a") << [Discard()]


def test_forgotten_requests_make_room_for_as_many() -> None:
    book = play(request_limit=3) >> ClientAttached(1, attach())
    for number, msg_id in enumerate(["same", "same", "same", "x", "y", "z"], 1):
        book >> ask(1, number, msg_id)
    book >> reply("same") << [Discard()]
    for seq, msg_id in enumerate("xyz", 1):
        book >> reply(msg_id) << [Append(seq, key())]


def test_a_lost_kernel_makes_room_for_requests() -> None:
    book = play(request_limit=2) >> ClientAttached(1, attach())
    book >> ask(1, 1, "a") >> ask(1, 2, "b") >> KernelLost() >> KernelLaunched()
    book >> ask(1, 3, "c") >> ask(1, 4, "d")
    book >> reply("c") << [Append(1, key())] >> reply("d") << [Append(2, key())]


def test_answered_requests_make_room() -> None:
    book = play(request_limit=1) >> ClientAttached(1, attach())
    for number in range(1, 5):
        book >> ask(1, number, str(number)) >> reply(str(number)) << [Append(number, key())]


def test_past_the_limit_the_session_that_left_first_is_forgotten() -> None:
    (
        play(limit=3)
        >> ClientAttached(1, attach("a"))
        >> ClientAttached(2, attach("b"))
        >> ClientAttached(3, attach("c"))
        >> PRINT
        >> ClientDetached(2)
        >> ClientDetached(1)
        >> ClientAttached(4, attach("d"))
        << [Evicted("sessions.sessions"), start(4, key("d"), at(1), 0)]
        # a came first but left last: it is still known.
        >> ClientAttached(5, attach("a"))
        << [start(5, key("a"), at(0), 0)]
        >> ClientAttached(6, attach("b"))
        << [start(6, key("b"), at(1), 0)]
    )


def test_a_session_that_is_attached_is_never_forgotten() -> None:
    (
        play(limit=1)
        >> ClientAttached(1, attach("a"))
        >> PRINT
        # One too many, but whom to send away?
        >> ClientAttached(2, attach("", "l2"))
        << [start(2, key_of_link("l2"), at(1), 0)]
        >> PRINT
        >> ClientDetached(2)
        >> ClientAttached(3, attach("", "l2"))
        << [start(3, key_of_link("l2"), at(1), 0)]
        >> ClientDetached(3, Disconnect.CLEAN)
        << []
        >> ClientAttached(4, attach("a", "l4"))
        << [CloseConnection(1, *REPLACED), start(4, key("a"), at(0), 0)]
    )


def test_connections_are_counted() -> None:
    sessions = launched(limits())
    counts = []
    for event in (
        ClientAttached(1, attach("a")),
        ClientAttached(2, attach("b")),
        ClientAttached(3, attach("a", "l2")),
        ClientDetached(1),
        ClientDetached(1),
        ClientDetached(3, Disconnect.CLEAN),
        ClientDetached(2, Disconnect.CLEAN),
    ):
        sessions.handle(event, 0.0)
        counts.append(sessions.connections)
    assert counts == [1, 2, 2, 2, 2, 1, 0]


class Traffic(RuleBasedStateMachine):
    """Any traffic: seqs without a hole, replies to who asked, proofs that never go back.

    Beside the sessions runs a model that knows nothing of links, limits or connections' ends.
    """

    open_connections = Bundle("open_connections")
    names = st.sampled_from(["a", "b", "c"])
    ids = st.sampled_from(["m", "n", ""])

    def __init__(self) -> None:
        super().__init__()
        self.sessions = launched(limits(1000, 1000))
        self.connections = 0
        self.seq = 0
        self.keys: dict[int, bytes] = {}
        self.links: dict[int, str] = {}
        self.newest: dict[bytes, str] = {}
        """The last new link of each session."""
        self.numbers: dict[int, int] = {}
        self.attached: dict[bytes, int] = {}
        self.cursors: dict[bytes, int] = {}
        self.waiting: dict[tuple[str, str], deque[bytes]] = defaultdict(deque)

    @rule(target=open_connections, session=names)
    def attach(self, session: str) -> int:
        self.connections += 1
        return self._attach(session, f"link {self.connections}", acknowledged=0)

    @rule(target=open_connections, old=consumes(open_connections))
    def attach_again(self, old: int) -> int:
        """The same link, after its agent died."""
        self.connections += 1
        link, audience = self.links[old], self.keys[old]
        session = next(name for name in "abc" if key(name) == audience)
        if self.newest[audience] == link:
            return self._attach(session, link, acknowledged=self.numbers[old])
        connection = self.connections
        actions = self.sessions.handle(ClientAttached(connection, attach(session, link)), 0.0)
        started = start(connection, audience, at(self.cursors[audience]), 0)
        assert actions == [started, CloseConnection(connection, *REPLACED)]
        self.keys[connection], self.links[connection] = audience, link
        self.numbers[connection] = 0
        return connection

    def _attach(self, session: str, link: str, acknowledged: int) -> int:
        connection = self.connections
        audience = key(session)
        actions = self.sessions.handle(ClientAttached(connection, attach(session, link)), 0.0)
        cursor = self.cursors.setdefault(audience, self.seq)
        started = start(connection, audience, at(cursor), acknowledged)
        replaced = self.attached.get(audience)
        assert actions == ([CloseConnection(replaced, *REPLACED)] if replaced else []) + [started]
        self.keys[connection], self.links[connection] = audience, link
        self.newest[audience] = link
        self.numbers[connection] = acknowledged
        self.attached[audience] = connection
        return connection

    @rule(connection=consumes(open_connections))
    def detach(self, connection: int) -> None:
        assert self.sessions.handle(ClientDetached(connection), 0.0) == []
        if self._is_attached(connection):
            del self.attached[self.keys[connection]]

    @rule(connection=open_connections, msg_id=ids, session=ids, repeat=st.booleans())
    def submit(self, connection: int, msg_id: str, session: str, repeat: bool) -> None:
        repeat = repeat and self.numbers[connection] > 0
        number = self.numbers[connection] + (not repeat)
        actions = self.sessions.handle(ask(connection, number, msg_id, session), 0.0)
        if not self._is_attached(connection):
            assert actions == []
            return
        self.numbers[connection] = number
        assert actions == ([] if repeat else [Forward()]) + [Acknowledge(connection, number)]
        if not repeat:
            self.waiting[msg_id, session].append(self.keys[connection])

    @rule(msg_id=ids, session=ids)
    def reply(self, msg_id: str, session: str) -> None:
        waiting = self.waiting[msg_id, session]
        actions = self.sessions.handle(reply(msg_id, session), 0.0)
        assert actions == ([self._append(waiting.popleft())] if waiting else [Discard()])

    @rule(msg_id=ids, session=ids)
    def ask_for_input(self, msg_id: str, session: str) -> None:
        waiting = self.waiting[msg_id, session]
        actions = self.sessions.handle(MessagePublished(STDIN, msg_id, session), 0.0)
        assert actions == ([self._append(waiting[0])] if waiting else [Discard()])

    @rule()
    def print(self) -> None:
        assert self.sessions.handle(PRINT, 0.0) == [self._append(BROADCAST)]

    @rule(connection=open_connections, back=st.integers(-2, 5))
    def prove(self, connection: int, back: int) -> None:
        seq = max(0, self.seq - back)
        assert self.sessions.handle(DeliveryProved(connection, seq), 0.0) == []
        if self._is_attached(connection) and seq <= self.seq:
            audience = self.keys[connection]
            self.cursors[audience] = max(self.cursors[audience], seq)

    @rule()
    def lose_the_kernel(self) -> None:
        assert self.sessions.handle(KernelLost(), 0.0) == []
        assert self.sessions.handle(KernelLaunched(), 0.0) == []
        self.waiting.clear()

    @invariant()
    def counts_agree(self) -> None:
        assert self.sessions.seq == self.seq
        assert self.sessions.connections == len(self.attached)

    def _append(self, audience: bytes) -> Append:
        self.seq += 1
        return Append(self.seq, audience)

    def _is_attached(self, connection: int) -> bool:
        return self.attached.get(self.keys[connection]) == connection


TestTraffic = Traffic.TestCase


# Clients without a session_id.


def test_a_client_without_a_name_takes_the_place_of_one_that_broke_off() -> None:
    (
        play()
        >> ClientAttached(1, attach("", "l1"))
        >> PRINT
        >> DeliveryProved(1, 1)
        >> PRINT
        >> ask(1, 1)
        >> ClientDetached(1)
        >> reply()
        << [Append(3, key_of_link("l1"))]
        >> ClientAttached(2, attach("", "l2"))
        << [start(2, key_of_link("l1"), at(1), 0)]
        # The place is taken: the next one is new.
        >> ClientAttached(3, attach("", "l3"))
        << [start(3, key_of_link("l3"), at(3), 0)]
    )


def test_the_place_of_somebody_else_is_not_to_be_had() -> None:
    (
        play()
        >> ClientAttached(1, attach("", "l1", ADA))
        >> PRINT
        >> ClientDetached(1, Disconnect.ABNORMAL)
        >> ClientAttached(2, attach("", "l2", BOB))
        << [start(2, key_of_link("l2", BOB), at(1), 0)]
    )


def test_of_two_that_broke_off_neither_misses_what_it_has_not_had() -> None:
    both = key_of_link("l1"), key_of_link("l2")
    (
        play()
        >> ClientAttached(1, attach("", "l1"))
        >> ClientAttached(2, attach("", "l2"))
        >> PRINT
        >> PRINT
        >> DeliveryProved(1, 2)
        >> DeliveryProved(2, 1)
        >> ClientDetached(1)
        >> ClientDetached(2)
        >> ClientAttached(3, attach("", "l3"))
        << [start(3, both[0], at(1), 0, both[1])]
        >> ClientAttached(4, attach("", "l4"))
        << [start(4, both[1], at(1), 0, both[0])]
    )


def test_whose_place_was_taken_goes_on_where_it_was() -> None:
    # It lost its agent, not its edge, and comes again for the same WebSocket.
    (
        play()
        >> ClientAttached(1, attach("", "l1"))
        >> PRINT
        >> ClientDetached(1)
        >> ClientAttached(2, attach("", "l2"))
        << [start(2, key_of_link("l1"), at(0), 0)]
        >> ClientAttached(3, attach("", "l1", position=at(1, 4)))
        << [start(3, session_key(ADA, "r l1"), at(1, 4), 0, key_of_link("l1"))]
        # Neither replaced the other.
        >> ask(2, 1)
        << [Forward(), Acknowledge(2, 1)]
        >> ask(3, 1, "n")
        << [Forward(), Acknowledge(3, 1)]
    )


def test_however_often_it_breaks_off_it_costs_no_more() -> None:
    sessions = launched(limits())
    book = played(sessions)
    for number in range(1, 200):
        book >> ClientAttached(number, attach("", f"l{number}")) >> PRINT >> ClientDetached(number)
    assert sessions.remembered == 1
    assert len(msgspec.json.encode(sessions.dump())) < 20_000
    for number in range(200, 400):
        book >> ClientAttached(number, attach("", f"l{number}"))
    for number in range(200, 400):
        book >> ClientDetached(number)
    assert sessions.remembered < 20


def test_what_breaks_a_client_without_a_name_is_left_out_too() -> None:
    book = play() >> ClientAttached(9, attach("", "l9")) >> ClientDetached(9) >> PRINT
    for connection in range(1, 4):
        book >> ClientAttached(connection, attach("", f"l{connection}"))
        book >> ClientDetached(connection, Disconnect.ABNORMAL, 1)
    (
        book
        >> ClientAttached(4, attach("", "l4"))
        << [start(4, key_of_link("l9"), at(0), 0, poison=True)]
    )


def test_a_reply_in_a_subshell_answers_nothing_in_the_main_shell() -> None:
    # They need not come in the order of the requests, and ids are no secret.
    (
        play()
        >> ClientAttached(1, attach("a"))
        >> ClientAttached(2, attach("b", "l2"))
        >> ask(1, 1)
        >> MessageSubmitted(2, 1, SHELL, "m", "k", "kernel_info_request", "sub")
        << [Forward(), Acknowledge(2, 1)]
        >> MessagePublished(SHELL, "m", "k", "sub")
        << [Append(1, key("b"))]
        >> MessagePublished(STDIN, "m", "k")
        << [Append(2, key("a"))]
        >> reply()
        << [Append(3, key("a"))]
    )


def test_what_the_holder_answers_itself_takes_nobodys_reply() -> None:
    info_request = MessageSubmitted(2, 1, SHELL, "m", "k", "kernel_info_request", busy=True)
    (
        play()
        >> ClientAttached(1, attach("a"))
        >> ClientAttached(2, attach("b", "l2"))
        >> ask(1, 1)
        >> KernelInfoLearnt()
        >> info_request
        << [AnswerInfo(2, info_request), Acknowledge(2, 1)]
        >> MessagePublished(SHELL, "m", "k", connection=2)
        << [Append(1, key("b"))]
        >> MessagePublished(STDIN, "m", "k")
        << [Append(2, key("a"))]
        >> reply()
        << [Append(3, key("a"))]
    )


@pytest.mark.parametrize(("session", "lifetime"), [("s", 1000.0), ("", 100.0)])
def test_who_stays_away_for_too_long_is_forgotten(session: str, lifetime: float) -> None:
    for away, begins in ((lifetime, 0), (lifetime + 1, 1)):
        sessions = launched(limits())
        played(sessions) >> ClientAttached(1, attach(session, "l1")) >> PRINT
        # While it is there, it may take its time.
        played(sessions, 5000.0) >> ClientAttached(2, attach("other")) >> ClientDetached(1)
        ((*_, came),) = ([*sessions.handle(ClientAttached(3, attach(session)), 5000.0 + away)],)
        assert isinstance(came, StartReading)
        assert came.position == at(begins)


# Goodbyes and messages that nobody can take.

CLOSE_TRIGGER = MessagePublished(IOPUB, "", "", close_trigger=True)


def test_a_goodbye_says_that_what_clients_leave_on_was_heard() -> None:
    # JupyterLab closes and comes back on a restarting status: told once more it would do so again.
    (
        play()
        >> ClientAttached(1, attach())
        >> PRINT
        >> CLOSE_TRIGGER
        >> PRINT
        >> ClientDetached(1, Disconnect.CLEAN, sent=3)
        >> ClientAttached(2, attach(link="l2"))
        << [start(2, key(), at(2), 0)]
        # A later one that had not been sent yet was not what it left on.
        >> CLOSE_TRIGGER
        >> ClientDetached(2, Disconnect.CLEAN, sent=3)
        >> ClientAttached(3, attach(link="l3"))
        << [start(3, key(), at(2), 0)]
        # Broken off is no goodbye.
        >> ClientDetached(3, Disconnect.ABNORMAL, sent=4)
        >> ClientAttached(4, attach(link="l4"))
        << [start(4, key(), at(2), 0)]
    )


def break_off(book: Playbook[Event, Action], times: int, sent: int = 1, **how: bool) -> None:
    for connection in range(1, times + 1):
        book >> ClientAttached(connection, attach(link=f"l{connection}"))
        book >> ClientDetached(connection, Disconnect.ABNORMAL, sent, **how)


def test_a_message_on_which_three_connections_ended_is_left_out() -> None:
    book = play() >> ClientAttached(9, attach()) >> ClientDetached(9) >> PRINT >> PRINT
    break_off(book, 2)
    book >> ClientAttached(7, attach(link="l7")) << [start(7, key(), at(0), 0)]
    book >> ClientDetached(7, Disconnect.ABNORMAL, 0, begun=True)
    (
        book
        >> ClientAttached(8, attach(link="l8"))
        << [start(8, key(), at(0), 0, poison=True)]
        # The notice in its place arrived: so much for that one.
        >> DeliveryProved(8, 1)
        >> ClientDetached(8, Disconnect.ABNORMAL, 1)
        >> ClientAttached(9, attach(link="l9"))
        << [start(9, key(), at(1), 0)]
    )


def test_who_says_where_it_stands_gets_everything() -> None:
    book = play() >> ClientAttached(9, asking("l9")) >> ClientDetached(9) >> PRINT
    break_off(book, 9)
    book >> ClientAttached(10, asking("l10")) << [start(10, key(), at(0), 0)]


@pytest.mark.parametrize(
    "end",
    [
        ClientDetached(0),
        ClientDetached(0, Disconnect.CLEAN, 1),
        ClientDetached(0, Disconnect.ABNORMAL, 0),
    ],
    ids=["the edge died", "goodbye", "nothing was sent"],
)
def test_other_ends_are_no_ones_fault(end: ClientDetached) -> None:
    book = play() >> ClientAttached(9, attach()) >> ClientDetached(9) >> PRINT
    for connection in range(1, 9):
        book >> ClientAttached(connection, attach(link=f"l{connection}"))
        book << [start(connection, key(), at(0), 0)]
        book >> ClientDetached(connection, end.disconnect, end.sent)


def test_ends_on_different_messages_do_not_add_up() -> None:
    book = (
        play()
        >> ClientAttached(9, attach())
        >> PRINT
        >> PRINT
        >> PRINT
        >> PRINT
        >> ClientDetached(9)
    )
    for connection in range(1, 5):
        book >> ClientAttached(connection, attach(link=f"l{connection}"))
        book << [start(connection, key(), at(connection - 1), 0)]
        book >> DeliveryProved(connection, connection)
        book >> ClientDetached(connection, Disconnect.ABNORMAL, 4)


# Clients that say where they stand.


def asking(
    link: str = "l1", last_seq: Position | None = None, position: Position | None = None
) -> Attach:
    return msgspec.structs.replace(
        attach("s", link, position=position), resumes=True, last_seq=last_seq
    )


@pytest.mark.parametrize(
    ("asks", "begins"),
    [
        (asking("l2"), 2),
        (asking("l2", at(3)), 3),
        (asking("l2", at(1)), 1),
        (asking("l2", at(99)), 4),
        (asking("l2", at(3, epoch="e0")), 0),
        (asking("l2", at(1), position=at(4)), 4),
    ],
    ids=["says nothing", "has more", "has less", "cannot be", "of another kernel", "sent on"],
)
def test_a_client_that_says_where_it_stands_goes_on_from_there(asks: Attach, begins: int) -> None:
    book = (
        play()
        >> ClientAttached(1, asking())
        >> PRINT
        >> PRINT
        >> PRINT
        >> PRINT
        >> DeliveryProved(1, 2)
    )
    book >> ClientDetached(1) >> ClientAttached(2, asks)
    book << [start(2, key(), at(begins), 0)]


def test_what_a_client_says_it_has_is_proved_and_what_an_edge_has_sent_is_not() -> None:
    book = play() >> ClientAttached(1, asking()) >> PRINT >> PRINT >> ClientDetached(1)
    book >> ClientAttached(2, asking("l1", position=at(2))) >> ClientDetached(2)
    book >> ClientAttached(3, attach(link="l3")) << [start(3, key(), at(0), 0)]
    book >> ClientAttached(4, asking("l4", at(1))) >> ClientAttached(5, attach(link="l5"))
    book << [CloseConnection(4, *REPLACED), start(5, key(), at(1), 0)]


def test_what_it_repeats_runs_once() -> None:
    (
        play()
        >> ClientAttached(1, asking())
        >> ask(1, 1, "m")
        << [Forward(), Acknowledge(1, 1)]
        >> ClientDetached(1)
        >> ClientAttached(2, asking("l2"))
        << [start(2, key(), at(0), 0)]
        >> ask(2, 1, "m")
        << [Acknowledge(2, 1)]
        # On another channel, or of another session, it is another one.
        >> MessageSubmitted(2, 2, CONTROL, "m", "k", "interrupt_request")
        << [Forward(), Acknowledge(2, 2)]
        >> ask(2, 3, "m", "other")
        << [Forward(), Acknowledge(2, 3)]
        >> reply("m")
        << [Append(1, key())]
        # Long answered, and a new kernel: it ran.
        >> KernelLost()
        >> ask(2, 4, "m")
        << [Acknowledge(2, 4)]
    )


def test_past_the_limit_it_is_not_known_any_more() -> None:
    sessions = launched(limits(repeats=2))
    book = played(sessions) >> ClientAttached(1, asking())
    for number, msg_id in enumerate("abc", 1):
        book >> ask(1, number, msg_id) >> reply(msg_id)
    book >> ask(1, 4, "b") << [Acknowledge(1, 4)] >> ask(1, 5, "a")
    book << [Forward(), Acknowledge(1, 5)]


def test_what_is_not_answered_yet_is_known_for_longer() -> None:
    sessions = launched(limits(repeats=3))
    book = played(sessions) >> ClientAttached(1, asking()) >> ask(1, 1, "waits")
    for number in range(2, 20):
        book >> ask(1, number, str(number)) >> reply(str(number))
    book >> ask(1, 20, "waits") << [Acknowledge(1, 20)]
    for number in range(21, 40):
        book >> ask(1, number, str(number))
    # Nothing of this is answered: then the one that was sent least lately goes.
    book >> ask(1, 40, "waits")
    book << [Forward(), Acknowledge(1, 40), Evicted("sessions.requests")]


def test_a_client_that_does_not_ask_may_use_an_id_twice() -> None:
    book = play() >> ClientAttached(1, attach()) >> ask(1, 1, "m")
    book >> ask(1, 2, "m") << [Forward(), Acknowledge(1, 2)]


def test_what_is_meant_for_one_connection_reaches_its_session_only() -> None:
    (
        play()
        >> ClientAttached(1, attach("a"))
        >> ClientAttached(2, attach("b", "l2"))
        >> MessagePublished(IOPUB, "m", "k", connection=2)
        << [Append(1, key("b"))]
        >> ClientDetached(2)
        >> MessagePublished(IOPUB, "m", "k", connection=2)
        << [Discard()]
    )


# What outlives the holder.


def test_all_that_is_known_can_be_written_down() -> None:
    sessions = launched(limits(), 5)
    book = played(sessions, 7.0)
    (
        book
        >> ClientAttached(1, asking())
        >> ask(1, 1)
        >> ask(1, 2, "n")
        >> PRINT
        >> DeliveryProved(1, 6)
    )
    book >> ClientAttached(2, attach("", "l2")) >> ask(2, 1) >> CLOSE_TRIGGER
    break_off(book >> ClientAttached(3, attach("b", "l3")) >> PRINT, 1, sent=8)
    table = msgspec.json.decode(msgspec.json.encode(sessions.dump()), type=SessionsSnapshot)
    again = ClientSessions.restore(table, limits())
    assert again.dump() == sessions.dump()
    (
        played(again, 8.0)
        >> HolderLost()
        >> ClientAttached(4, attach(link="l4"))
        << [start(4, key(), at(6), 0)]
        >> reply()
        << [Append(9, key())]
        >> reply()
        << [Append(10, key_of_link("l2"))]
        >> ClientAttached(5, asking("l5"))
        << [CloseConnection(4, *REPLACED), start(5, key(), at(6), 0)]
        >> ask(5, 1, "n")
        << [Acknowledge(5, 1)]
    )
    assert again.connections == 1


class Delivery(RuleBasedStateMachine):
    """Any way to lose and find a kernel again: nobody misses anything, whatever dies.

    Clients read what they are sent in order. The model keeps what each of them has had, and looks
    at where it is let in again: before the first that it lacks. Cursors move on proof alone.
    """

    clients = st.sampled_from(["a", "b", "x", "y"])

    def __init__(self) -> None:
        super().__init__()
        self.sessions = launched(limits(1000, 1000))
        self.journal: list[bytes] = []
        self.connections = 0
        self.reading: dict[str, StartReading] = {}
        self.links: dict[str, str] = {}
        self.sent: dict[str, int] = {}
        """The last that each client was sent, and reads if its connection lasts."""
        self.had: dict[str, int] = {}
        self.proved: dict[str, int] = {}
        self.owed: dict[str, set[int]] = defaultdict(set)
        """Replies that a client has not had."""
        self.asked: dict[str, str] = {}

    @rule(client=clients)
    def come(self, client: str) -> None:
        """A new WebSocket; a second one without a name would be a second client."""
        named = client in "ab"
        away = [each for each in "xy" if each in self.had and each not in self.reading]
        if not named and (client in self.reading or (client not in self.had and away)):
            # Somebody new without a name takes the place of who is away: nobody can tell them.
            return
        self.connections += 1
        self.links[client] = f"link {self.connections}"
        self._begin(client, None)

    @rule(client=clients)
    def lose_the_agent(self, client: str) -> None:
        if client in self.reading:
            before = at(self.sent[client])
            self._handle(ClientDetached(self.reading.pop(client).connection))
            self.connections += 1
            self._begin(client, before)

    def _begin(self, client: str, position: Position | None) -> None:
        session = client if client in "ab" else ""
        request = attach(session, self.links[client], position=position)
        *_, begun = self._handle(ClientAttached(self.connections, request))
        assert isinstance(begun, StartReading)
        if position is not None:
            assert begun.position == position
        had = self.had.setdefault(client, begun.position.seq)
        self.proved.setdefault(client, begun.position.seq)
        # Not one message that it had not had lies before, not one of its replies is hidden.
        assert begun.position.seq <= had
        for seq in self.owed[client]:
            assert begun.position.seq < seq
            assert self.journal[seq - 1] in begun.audiences
        if session:
            assert position or begun.position.seq == self.proved[client]
        self.reading[client] = begun
        self.sent[client] = begun.position.seq

    @rule(client=clients, count=st.integers(1, 5))
    def read(self, client: str, count: int) -> None:
        if client in self.reading:
            self.sent[client] = min(self.sent[client] + count, len(self.journal))
            self.had[client] = max(self.had[client], self.sent[client])
            self.owed[client] -= set(range(self.sent[client] + 1))

    @rule(client=clients)
    def prove(self, client: str) -> None:
        if client in self.reading:
            self._handle(DeliveryProved(self.reading[client].connection, self.sent[client]))
            self.proved[client] = max(self.proved[client], self.sent[client])

    @rule(client=clients)
    def ask(self, client: str) -> None:
        if client in self.reading and client not in self.asked:
            number = len(self.journal) + 1000
            self._handle(ask(self.reading[client].connection, number, client))
            self.asked[client] = client

    @rule(client=clients)
    def reply(self, client: str) -> None:
        if self.asked.pop(client, None):
            self._handle(reply(client))
            self.owed[client].add(len(self.journal))

    @rule(times=st.integers(1, 4))
    def print(self, times: int) -> None:
        for _ in range(times):
            self._handle(PRINT)

    @rule(client=clients)
    def break_off(self, client: str) -> None:
        if client in self.reading:
            gone = ClientDetached(self.reading.pop(client).connection, Disconnect.ABNORMAL, 0)
            self._handle(gone)

    @rule()
    def lose_the_edge(self) -> None:
        for client in list(self.reading):
            self._handle(ClientDetached(self.reading.pop(client).connection))

    @rule()
    def lose_the_holder(self) -> None:
        table = msgspec.json.decode(
            msgspec.json.encode(self.sessions.dump()), type=SessionsSnapshot
        )
        self.sessions = ClientSessions.restore(table, limits(1000, 1000))
        self._handle(HolderLost())
        self._handle(KernelLaunched())
        self.reading.clear()

    def _handle(self, event: Event) -> list[Action]:
        actions = self.sessions.handle(event, 0.0)
        for action in actions:
            if isinstance(action, Append):
                self.journal.append(action.audience)
                assert action.seq == len(self.journal)
        return actions


TestDelivery = Delivery.TestCase


# Keys


@given(
    one=st.tuples(st.text(max_size=12), st.text(max_size=12)),
    other=st.tuples(st.text(max_size=12), st.text(max_size=12)),
)
def test_no_two_principals_share_a_session(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (session_key(*one) == session_key(*other)) is (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("token:a", "b s x"), ("token:a b", "s x")),
        (("token:a b", "s x"), ("token:a", "b s x")),
        (("7 token:a", "x"), ("7", "token:a x")),
        (("token:a", "s s"), ("token:as", "s")),
        (("token:a:s x", "s"), ("token:a", ":s x s")),
        (("", "token:a s x"), ("token:a", "s x")),
    ],
)
def test_what_is_written_alike_is_not_the_same(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert session_key(*one) != session_key(*other)
