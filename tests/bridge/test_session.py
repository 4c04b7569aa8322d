from __future__ import annotations

from collections import defaultdict, deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from relay.bridge.messages import Channel
from relay.bridge.records import Attach, Position
from relay.bridge.session import (
    EVERYBODY,
    REPLACED,
    Acknowledge,
    Action,
    Append,
    Attached,
    Detached,
    Discard,
    End,
    Event,
    Forward,
    KernelLost,
    Proved,
    Published,
    Sessions,
    Start,
    Submitted,
    session_key,
)
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


def play(seq: int = 0, limit: int = 10, request_limit: int = 10) -> Playbook[Event, Action]:
    return Playbook(Sessions(EPOCH, seq, limit=limit, request_limit=request_limit).handle)


def ask(connection: int, number: int, msg_id: str = "m", session: str = "k") -> Submitted:
    return Submitted(connection, number, SHELL, msg_id, session, "execute_request")


def reply(msg_id: str = "m", session: str = "k") -> Published:
    return Published(SHELL, msg_id, session)


PRINT = Published(IOPUB, "m", "k")


def test_iopub_goes_to_everybody_and_a_reply_to_who_asked() -> None:
    (
        play()
        >> Attached(1, attach("a"))
        << [Start(1, key("a"), at(0), 0)]
        >> Attached(2, attach("b", link="l2"))
        << [Start(2, key("b"), at(0), 0)]
        >> ask(2, 1)
        << [Forward(), Acknowledge(2, 1)]
        >> PRINT
        << [Append(1, EVERYBODY)]
        >> reply()
        << [Append(2, key("b"))]
        >> PRINT
        << [Append(3, EVERYBODY)]
    )


def test_a_reply_on_control_goes_to_who_asked() -> None:
    (
        play()
        >> Attached(1, attach())
        >> Submitted(1, 1, CONTROL, "i", "k", "interrupt_request")
        << [Forward(), Acknowledge(1, 1)]
        >> Published(CONTROL, "i", "k")
        << [Append(1, key())]
    )


def test_what_answers_nobody_is_discarded_and_takes_no_seq() -> None:
    (
        play()
        >> Attached(1, attach())
        >> ask(1, 1, "m", "k")
        >> reply("other", "k")
        << [Discard()]
        >> reply("m", "other")
        << [Discard()]
        >> reply("", "")
        << [Discard()]
        >> Published(STDIN, "other", "k")
        << [Discard()]
        >> reply("m", "k")
        << [Append(1, key())]
        >> reply("m", "k")
        << [Discard()]
    )


def test_two_clients_that_send_the_same_ids_are_answered_in_turn() -> None:
    (
        play()
        >> Attached(1, attach("a"))
        >> Attached(2, attach("b", link="l2"))
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
        >> Attached(1, attach())
        >> ask(1, 1)
        >> Detached(1, clean=False)
        << []
        >> reply()
        << [Append(1, key())]
        >> Attached(2, attach(link="l2"))
        << [Start(2, key(), at(0), 0)]
    )


def test_an_empty_session_in_the_header_is_a_session_like_others() -> None:
    (
        play()
        >> Attached(1, attach())
        >> ask(1, 1, "m", "")
        << [Forward(), Acknowledge(1, 1)]
        >> reply("m", "")
        << [Append(1, key())]
    )


def test_a_question_on_stdin_goes_to_who_runs_the_cell() -> None:
    (
        play()
        >> Attached(1, attach("a"))
        >> Attached(2, attach("b", link="l2"))
        >> ask(1, 1)
        >> ask(2, 1)
        >> Published(STDIN, "m", "k")
        << [Append(1, key("a"))]
        >> Published(STDIN, "m", "k")
        << [Append(2, key("a"))]
        # The answer is no request: the execute_reply is still the first client's.
        >> Submitted(1, 2, STDIN, "m", "k", "input_reply")
        << [Forward(), Acknowledge(1, 2)]
        >> reply()
        << [Append(3, key("a"))]
        >> Published(STDIN, "m", "k")
        << [Append(4, key("b"))]
        >> reply()
        << [Append(5, key("b"))]
        >> reply()
        << [Discard()]
    )


def test_nothing_is_sent_to_a_kernels_iopub() -> None:
    (
        play()
        >> Attached(1, attach())
        >> Submitted(1, 1, IOPUB, "m", "k", "execute_request")
        << [Acknowledge(1, 1)]
        >> reply()
        << [Discard()]
    )


@pytest.mark.parametrize("msg_type", ["comm_open", "comm_msg", "comm_close"])
def test_what_no_kernel_replies_to_forgets_no_request(msg_type: str) -> None:
    book = play(request_limit=2) >> Attached(1, attach()) >> ask(1, 1)
    for number in range(2, 10):
        event = Submitted(1, number, SHELL, f"c{number}", "k", msg_type)
        book >> event << [Forward(), Acknowledge(1, number)]
    book >> reply() << [Append(1, key())]


def test_repeats_on_the_same_link_are_acknowledged_and_dropped() -> None:
    (
        play()
        >> Attached(1, attach())
        >> ask(1, 1)
        >> ask(1, 2, "n")
        << [Forward(), Acknowledge(1, 2)]
        >> Detached(1, clean=False)
        # The same link through another agent, which repeats what was not acknowledged.
        >> Attached(2, attach(position=at(0)))
        << [Start(2, key(), at(0), 2)]
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
        >> Attached(1, attach(link="l1"))
        >> ask(1, 1)
        >> Detached(1, clean=True)
        >> Attached(2, attach(link="l2"))
        << [Start(2, key(), at(0), 0)]
        >> ask(2, 1, "n")
        << [Forward(), Acknowledge(2, 1)]
    )


def test_the_newest_connection_of_a_session_wins() -> None:
    (
        play()
        >> Attached(1, attach(link="l1"))
        >> ask(1, 1)
        >> Attached(2, attach(link="l2"))
        << [End(1, *REPLACED), Start(2, key(), at(0), 0)]
        # What the old one still sends is for nobody, and so is its proof.
        >> ask(1, 2, "n")
        << []
        >> PRINT
        >> Proved(1, 1)
        << []
        >> Detached(1, clean=True)
        << []
        >> ask(2, 1, "o")
        << [Forward(), Acknowledge(2, 1)]
        # A reply to what the old one asked is the session's all the same.
        >> reply("m")
        << [Append(2, key())]
        >> Attached(3, attach(link="l3"))
        << [End(2, *REPLACED), Start(3, key(), at(0), 0)]
    )


def test_a_replaced_link_that_comes_again_takes_nothing_back() -> None:
    (
        play()
        >> Attached(1, attach(link="l1"))
        >> ask(1, 1)
        >> Attached(2, attach(link="l2"))
        >> PRINT
        >> Attached(3, attach(link="l1", position=at(1)))
        << [Start(3, key(), at(1), 0), End(3, *REPLACED)]
        >> ask(3, 2, "n")
        << []
        >> Detached(3, clean=False)
        << []
        >> ask(2, 1, "n")
        << [Forward(), Acknowledge(2, 1)]
        # The newest may come again as often as it likes.
        >> Attached(4, attach(link="l2", position=at(1)))
        << [End(2, *REPLACED), Start(4, key(), at(1), 1)]
    )


def test_the_old_connection_of_a_link_is_ended_when_it_comes_again() -> None:
    (
        play()
        >> Attached(1, attach())
        >> ask(1, 1)
        >> Attached(2, attach(position=at(0)))
        << [End(1, *REPLACED), Start(2, key(), at(0), 1)]
    )


def test_sessions_of_two_principals_are_two() -> None:
    assert key("s", ADA) != key("s", BOB)
    (
        play()
        >> Attached(1, attach("s", principal=ADA))
        >> Attached(2, attach("s", principal=BOB))
        << [Start(2, key("s", BOB), at(0), 0)]
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
        >> Attached(1, attach("", "l1"))
        << [Start(1, key_of_link("l1"), at(0), 0)]
        >> Attached(2, attach("", "l2"))
        << [Start(2, key_of_link("l2"), at(0), 0)]
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
        >> Attached(1, attach("", "l1"))
        >> PRINT
        >> Proved(1, 1)
        >> PRINT
        >> Detached(1, clean=False)
        >> Attached(2, attach("", "l1"))
        << [Start(2, key_of_link("l1"), at(1), 0)]
        >> Detached(2, clean=True)
        # Nobody can mean it now: a new one begins at the head.
        >> Attached(3, attach("", "l1"))
        << [Start(3, key_of_link("l1"), at(2), 0)]
    )


def test_a_named_session_outlives_a_goodbye() -> None:
    (
        play()
        >> Attached(1, attach())
        >> PRINT
        >> Detached(1, clean=True)
        >> Attached(2, attach(link="l2"))
        << [Start(2, key(), at(0), 0)]
    )


def test_a_new_session_begins_at_the_head() -> None:
    play(seq=41) >> PRINT >> Attached(1, attach()) << [Start(1, key(), at(42), 0)]


def test_the_cursor_moves_only_on_proof_and_only_forwards() -> None:
    (
        play()
        >> Attached(1, attach())
        >> PRINT
        >> PRINT
        >> PRINT
        >> Attached(2, attach(link="l2"))
        << [End(1, *REPLACED), Start(2, key(), at(0), 0)]
        >> Proved(2, 2)
        << []
        >> Proved(2, 1)
        << []
        >> Attached(3, attach(link="l3"))
        << [End(2, *REPLACED), Start(3, key(), at(2), 0)]
        # Of what has not been printed yet there is no proof.
        >> Proved(3, 4)
        << []
        >> Attached(4, attach(link="l4"))
        << [End(3, *REPLACED), Start(4, key(), at(2), 0)]
        >> Proved(4, 3)
        >> Attached(5, attach(link="l5"))
        << [End(4, *REPLACED), Start(5, key(), at(3), 0)]
    )


@pytest.mark.parametrize("connection", [1, 7])
def test_no_proof_comes_from_a_connection_that_is_not_attached(connection: int) -> None:
    (
        play()
        >> Attached(1, attach())
        >> PRINT
        >> Detached(1, clean=False)
        >> Proved(connection, 1)
        << []
        >> Attached(2, attach(link="l2"))
        << [Start(2, key(), at(0), 0)]
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
        >> Attached(1, attach())
        >> PRINT
        >> PRINT
        >> PRINT
        >> Proved(1, 1)
        >> Detached(1, clean=False)
        >> Attached(2, attach(position=asked))
        << [Start(2, key(), given, 0)]
    )


def test_a_lost_kernel_takes_its_requests_along() -> None:
    (
        play()
        >> Attached(1, attach())
        >> ask(1, 1)
        >> KernelLost()
        << []
        >> reply()
        << [Discard()]
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
        >> Attached(1, attach())
        >> ask(1, 1, "a")
        >> ask(1, 2, "b")
        >> ask(1, 3, "c")
        << [Forward(), Acknowledge(1, 3)]
        >> reply("a")
        << [Discard()]
        >> reply("b")
        << [Append(1, key())]
        >> reply("c")
        << [Append(2, key())]
    )


def test_requests_with_the_same_ids_count_each() -> None:
    sessions = Sessions(EPOCH, limit=10, request_limit=3)
    book = Playbook(sessions.handle) >> Attached(1, attach())
    book >> ask(1, 1, "a")
    for number in range(2, 50):
        book >> ask(1, number, "same") << [Forward(), Acknowledge(1, number)]
    assert sum(map(len, sessions._requests.values())) <= 3
    book >> reply("a") << [Discard()]


def test_forgotten_requests_make_room_for_as_many() -> None:
    book = play(request_limit=3) >> Attached(1, attach())
    for number, msg_id in enumerate(["same", "same", "same", "x", "y", "z"], 1):
        book >> ask(1, number, msg_id)
    book >> reply("same") << [Discard()]
    for seq, msg_id in enumerate("xyz", 1):
        book >> reply(msg_id) << [Append(seq, key())]


def test_a_lost_kernel_makes_room_for_requests() -> None:
    book = play(request_limit=2) >> Attached(1, attach())
    book >> ask(1, 1, "a") >> ask(1, 2, "b") >> KernelLost() >> ask(1, 3, "c") >> ask(1, 4, "d")
    book >> reply("c") << [Append(1, key())] >> reply("d") << [Append(2, key())]


def test_answered_requests_make_room() -> None:
    book = play(request_limit=1) >> Attached(1, attach())
    for number in range(1, 5):
        book >> ask(1, number, str(number)) >> reply(str(number)) << [Append(number, key())]


def test_past_the_limit_the_session_that_left_first_is_forgotten() -> None:
    (
        play(limit=3)
        >> Attached(1, attach("a"))
        >> Attached(2, attach("b"))
        >> Attached(3, attach("c"))
        >> PRINT
        >> Detached(2, clean=False)
        >> Detached(1, clean=False)
        >> Attached(4, attach("d"))
        << [Start(4, key("d"), at(1), 0)]
        # a came first but left last: it is still known.
        >> Attached(5, attach("a"))
        << [Start(5, key("a"), at(0), 0)]
        >> Attached(6, attach("b"))
        << [Start(6, key("b"), at(1), 0)]
    )


def test_a_session_that_is_attached_is_never_forgotten() -> None:
    (
        play(limit=1)
        >> Attached(1, attach("a"))
        >> PRINT
        # One too many, but whom to send away?
        >> Attached(2, attach("", "l2"))
        << [Start(2, key_of_link("l2"), at(1), 0)]
        >> PRINT
        >> Detached(2, clean=False)
        >> Attached(3, attach("", "l2"))
        << [Start(3, key_of_link("l2"), at(1), 0)]
        >> Detached(3, clean=True)
        << []
        >> Attached(4, attach("a", "l4"))
        << [End(1, *REPLACED), Start(4, key("a"), at(0), 0)]
    )


def test_connections_are_counted() -> None:
    sessions = Sessions(EPOCH, limit=10, request_limit=10)
    counts = []
    for event in (
        Attached(1, attach("a")),
        Attached(2, attach("b")),
        Attached(3, attach("a", "l2")),
        Detached(1, clean=False),
        Detached(1, clean=False),
        Detached(3, clean=True),
        Detached(2, clean=True),
    ):
        sessions.handle(event)
        counts.append(sessions.connections)
    assert counts == [1, 2, 2, 2, 2, 1, 0]


class Traffic(RuleBasedStateMachine):
    """Any traffic: seqs without a hole, replies to who asked, proofs that never go back.

    Beside the sessions runs a model that knows nothing of links, limits or connections' ends.
    """

    open_connections = Bundle("open_connections")
    names = st.sampled_from(["", "a", "b", "c"])
    ids = st.sampled_from(["m", "n", ""])

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions(EPOCH, limit=1000, request_limit=1000)
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
        session = next((s for s in "abc" if key(s) == audience), "")
        if self.newest[audience] == link:
            return self._attach(session, link, acknowledged=self.numbers[old])
        connection = self.connections
        actions = self.sessions.handle(Attached(connection, attach(session, link)))
        start = Start(connection, audience, at(self.cursors[audience]), 0)
        assert actions == [start, End(connection, *REPLACED)]
        self.keys[connection], self.links[connection] = audience, link
        self.numbers[connection] = 0
        return connection

    def _attach(self, session: str, link: str, acknowledged: int) -> int:
        connection = self.connections
        audience = key(session) if session else key_of_link(link)
        actions = self.sessions.handle(Attached(connection, attach(session, link)))
        cursor = self.cursors.setdefault(audience, self.seq)
        start = Start(connection, audience, at(cursor), acknowledged)
        replaced = self.attached.get(audience)
        assert actions == ([End(replaced, *REPLACED)] if replaced else []) + [start]
        self.keys[connection], self.links[connection] = audience, link
        self.newest[audience] = link
        self.numbers[connection] = acknowledged
        self.attached[audience] = connection
        return connection

    @rule(connection=consumes(open_connections))
    def detach(self, connection: int) -> None:
        assert self.sessions.handle(Detached(connection, clean=False)) == []
        if self._is_attached(connection):
            del self.attached[self.keys[connection]]

    @rule(connection=open_connections, msg_id=ids, session=ids, repeat=st.booleans())
    def submit(self, connection: int, msg_id: str, session: str, repeat: bool) -> None:
        repeat = repeat and self.numbers[connection] > 0
        number = self.numbers[connection] + (not repeat)
        actions = self.sessions.handle(ask(connection, number, msg_id, session))
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
        actions = self.sessions.handle(reply(msg_id, session))
        assert actions == ([self._append(waiting.popleft())] if waiting else [Discard()])

    @rule(msg_id=ids, session=ids)
    def ask_for_input(self, msg_id: str, session: str) -> None:
        waiting = self.waiting[msg_id, session]
        actions = self.sessions.handle(Published(STDIN, msg_id, session))
        assert actions == ([self._append(waiting[0])] if waiting else [Discard()])

    @rule()
    def print(self) -> None:
        assert self.sessions.handle(PRINT) == [self._append(EVERYBODY)]

    @rule(connection=open_connections, back=st.integers(-2, 5))
    def prove(self, connection: int, back: int) -> None:
        seq = max(0, self.seq - back)
        assert self.sessions.handle(Proved(connection, seq)) == []
        if self._is_attached(connection) and seq <= self.seq:
            audience = self.keys[connection]
            self.cursors[audience] = max(self.cursors[audience], seq)

    @rule()
    def lose_the_kernel(self) -> None:
        assert self.sessions.handle(KernelLost()) == []
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
