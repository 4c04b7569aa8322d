"""What becomes of clients' messages: sent, deferred, answered here, refused, or dropped."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.bridge.control import Attach
from relay.bridge.events import (
    Acknowledge,
    Action,
    AnswerInfo,
    Append,
    ClientAttached,
    ClientDetached,
    Defer,
    Discard,
    Drop,
    Event,
    Forward,
    HolderLost,
    KernelAdopted,
    KernelInfoLearnt,
    KernelLaunched,
    KernelLost,
    KernelRecovered,
    MessagePublished,
    MessageSubmitted,
    Refuse,
    SendDeferred,
)
from relay.bridge.messages import Channel
from relay.bridge.session import ClientSessions, SessionsSnapshot
from relay.bridge.session_table import BROADCAST, SessionLimits, session_key
from relay.bridge.submissions import KernelPresence
from tests.playbook import Playbook

SHELL, IOPUB, STDIN, CONTROL = Channel.SHELL, Channel.IOPUB, Channel.STDIN, Channel.CONTROL
LIMITS = SessionLimits(
    sessions=10, requests=1000, repeats=10, lifetime=1000.0, anonymous_lifetime=100.0
)
INFO = "kernel_info_request"


def new() -> ClientSessions:
    return ClientSessions("e", LIMITS)


def play(sessions: ClientSessions | None = None) -> Playbook[Event, Action]:
    played = new() if sessions is None else sessions
    return Playbook(lambda event: played.handle(event, 0.0))


def come(connection: int, session: str = "s", *, views_only: bool = False) -> ClientAttached:
    attach = Attach(link=f"l{connection}", principal="token:ada", session_id=session)
    return ClientAttached(connection, attach, views_only)


def ask(
    connection: int,
    number: int = 1,
    msg_type: str = "execute_request",
    channel: Channel = SHELL,
    msg_id: str = "m",
    **more: str | bool,
) -> MessageSubmitted:
    event = MessageSubmitted(connection, number, channel, msg_id, "k", msg_type)
    return msgspec.structs.replace(event, **more)


def idle(msg_id: str = "m") -> MessagePublished:
    return MessagePublished(IOPUB, msg_id, "k", idle=True)


# Without a kernel


@pytest.mark.parametrize("before", [[], [KernelLaunched(), KernelLost()]])
def test_without_a_kernel_a_request_is_dropped_and_nobody_waits(before: list[Event]) -> None:
    book = play()
    for event in before:
        book >> event << []
    (
        book
        >> come(1)
        >> ask(1)
        << [Drop(), Acknowledge(1, 1)]
        >> KernelLaunched()
        << []
        >> MessagePublished(SHELL, "m", "k")
        << [Discard()]
    )


# Recovery


def test_the_main_shell_waits_until_the_kernel_has_recovered() -> None:
    sub, control = ask(1, 2, subshell="x"), ask(1, 3, channel=CONTROL)
    (
        play()
        >> come(1)
        >> KernelAdopted()
        << []
        >> ask(1)
        << [Defer(), Acknowledge(1, 1)]
        # Other queues are their own.
        >> sub
        << [Forward(), Acknowledge(1, 2)]
        >> control
        << [Forward(), Acknowledge(1, 3)]
        >> KernelRecovered()
        << [SendDeferred()]
        >> ask(1, 4)
        << [Forward(), Acknowledge(1, 4)]
        >> KernelRecovered()
        << []
    )


def test_a_kernel_that_is_lost_in_recovery_takes_what_was_deferred_along() -> None:
    (
        play()
        >> come(1)
        >> KernelAdopted()
        >> ask(1)
        >> KernelLost()
        << []
        >> KernelRecovered()
        << []
        >> KernelLaunched()
        >> MessagePublished(SHELL, "m", "k")
        << [Discard()]
    )


def test_what_was_deferred_is_unfinished_for_the_next_holder() -> None:
    sessions = new()
    play(sessions) >> come(1) >> KernelAdopted() >> ask(1) >> HolderLost()
    assert [each.msg_id for each in sessions.unfinished] == ["m"]
    assert sessions.submissions.kernel is KernelPresence.NONE


# kernel_info


def test_a_busy_kernel_is_not_asked_what_it_has_answered() -> None:
    request = ask(1, 2, INFO, busy=True)
    (
        play()
        >> come(1)
        >> KernelLaunched()
        # It has not answered yet.
        >> ask(1, 1, INFO, busy=True)
        << [Forward(), Acknowledge(1, 1)]
        >> KernelInfoLearnt()
        << []
        >> request
        << [AnswerInfo(1, request), Acknowledge(1, 2)]
        # One that is idle answers itself, and so do control and subshells.
        >> ask(1, 3, INFO)
        << [Forward(), Acknowledge(1, 3)]
        >> ask(1, 4, INFO, CONTROL, busy=True)
        << [Forward(), Acknowledge(1, 4)]
        >> ask(1, 5, INFO, subshell="x", busy=True)
        << [Forward(), Acknowledge(1, 5)]
        # The next process may be another kernel.
        >> KernelLost()
        >> KernelLaunched()
        >> ask(1, 6, INFO, busy=True)
        << [Forward(), Acknowledge(1, 6)]
    )


# Viewers


@pytest.mark.parametrize(
    ("channel", "msg_type"), [(STDIN, "input_reply"), (SHELL, "comm_msg"), (SHELL, "comm_open")]
)
def test_what_has_no_answer_is_ignored_of_a_viewer(channel: Channel, msg_type: str) -> None:
    book = play() >> KernelLaunched() >> come(1, views_only=True)
    book >> ask(1, 1, msg_type, channel) << [Acknowledge(1, 1)]


def test_a_viewers_request_is_refused_and_takes_nobodys_reply() -> None:
    refused = ask(2)
    (
        play()
        >> KernelLaunched()
        >> come(1, "owner")
        >> come(2, "viewer", views_only=True)
        >> refused
        << [Refuse(2, refused), Acknowledge(2, 1)]
        >> refused
        << [Acknowledge(2, 1)]
        >> ask(1)
        << [Forward(), Acknowledge(1, 1)]
        >> MessagePublished(SHELL, "m", "k")
        << [Append(1, session_key("token:ada", "s owner"))]
    )


def test_a_viewer_that_is_too_early_is_answered_once_it_is_known() -> None:
    early, gone, late = ask(1, 1, INFO), ask(2, 1, INFO), ask(1, 2, INFO, CONTROL)
    (
        play()
        >> KernelLaunched()
        >> come(1, "a", views_only=True)
        >> come(2, "b", views_only=True)
        >> early
        << [Acknowledge(1, 1)]
        >> gone
        << [Acknowledge(2, 1)]
        >> ClientDetached(2)
        >> KernelInfoLearnt()
        << [AnswerInfo(1, early)]
        >> KernelInfoLearnt()
        << []
        # What any process has answered will do.
        >> KernelLost()
        >> late
        << [AnswerInfo(1, late), Acknowledge(1, 2)]
    )


def test_a_client_may_come_back_with_other_rights() -> None:
    refused = ask(2)
    (
        play()
        >> KernelLaunched()
        >> come(1)
        >> ask(1)
        << [Forward(), Acknowledge(1, 1)]
        >> ClientDetached(1)
        >> come(2, views_only=True)
        >> refused
        << [Refuse(2, refused), Acknowledge(2, 1)]
        >> ClientDetached(2)
        >> come(3)
        >> ask(3)
        << [Forward(), Acknowledge(3, 1)]
    )


# What is noted


@pytest.mark.parametrize(
    ("event", "noted"),
    [
        (MessagePublished(IOPUB, "m", "k"), False),
        (idle("other"), False),
        (idle(), True),
        (MessagePublished(IOPUB, "", "", close_trigger=True), True),
        (MessagePublished(SHELL, "m", "k"), True),
        (KernelInfoLearnt(), True),
        (KernelLost(), True),
        (ClientDetached(1), True),
    ],
)
def test_only_what_changes_the_table_is_noted(event: Event, noted: bool) -> None:
    sessions = new()
    play(sessions) >> KernelLaunched() >> come(1) >> ask(1)
    assert sessions.is_noted(event) is noted


def test_what_is_known_already_is_not_noted_again() -> None:
    sessions = new()
    play(sessions) >> KernelLaunched() >> KernelInfoLearnt() >> come(1) >> ask(1) >> idle()
    assert not sessions.is_noted(KernelInfoLearnt())
    assert not sessions.is_noted(idle())


class Kernels(RuleBasedStateMachine):
    """Any traffic, beside a model of what is unfinished; the log always makes the same table."""

    clients = st.sampled_from([1, 2])
    ids = st.sampled_from(["m", "n"])
    queues = st.sampled_from([(SHELL, ""), (SHELL, "x"), (CONTROL, "")])

    def __init__(self) -> None:
        super().__init__()
        self.sessions = new()
        self.log: list[tuple[int, Event]] = []
        self.numbers = {1: 0, 2: 0}
        self.kernel = "none"
        self.deferred = 0
        self.model: list[list[object]] = []
        """Channel, subshell, id, asker, answered, idle."""
        self.attach_all()

    def attach_all(self) -> None:
        for connection in (1, 2):
            self._do(come(connection, str(connection), views_only=False))

    @rule(client=clients, queue=queues, msg_id=ids, busy=st.booleans())
    def ask(self, client: int, queue: tuple[Channel, str], msg_id: str, busy: bool) -> None:
        self.numbers[client] += 1
        number, (channel, subshell) = self.numbers[client], queue
        event = ask(client, number, channel=channel, msg_id=msg_id, subshell=subshell, busy=busy)
        first, *rest = self._do(event)
        assert rest == [Acknowledge(client, number)]
        if self.kernel == "none":
            assert first == Drop()
            return
        waits = self.kernel == "recovering" and queue == (SHELL, "")
        assert first == (Defer() if waits else Forward())
        self.model.append([channel, subshell, msg_id, client, False, False])

    @rule(queue=queues, msg_id=ids)
    def reply(self, queue: tuple[Channel, str], msg_id: str) -> None:
        channel, subshell = queue
        (action,) = self._do(MessagePublished(channel, msg_id, "k", subshell))
        found = [each for each in self.model if each[:3] == [*queue, msg_id] and not each[4]]
        if not found:
            assert action == Discard()
            return
        found[0][4] = True
        assert isinstance(action, Append)
        assert action.audience == session_key("token:ada", f"s {found[0][3]}")
        self._drop_finished()

    @rule(msg_id=ids)
    def go_idle(self, msg_id: str) -> None:
        (action,) = self._do(idle(msg_id))
        assert isinstance(action, Append)
        assert action.audience == BROADCAST
        found = [each for each in self.model if each[2] == msg_id and not each[5]]
        if found:
            found[0][5] = True
        self._drop_finished()

    def _drop_finished(self) -> None:
        self.model = [each for each in self.model if not (each[4] and each[5])]

    @precondition(lambda self: self.kernel == "none")
    @rule(adopt=st.booleans())
    def get_a_kernel(self, adopt: bool) -> None:
        assert self._do(KernelAdopted() if adopt else KernelLaunched()) == []
        self.kernel = "recovering" if adopt else "running"

    @precondition(lambda self: self.kernel != "none")
    @rule()
    def lose_the_kernel(self) -> None:
        assert self._do(KernelLost()) == []
        self.kernel = "none"
        self.model.clear()

    @rule()
    def recover(self) -> None:
        waits = self.kernel == "recovering"
        assert self._do(KernelRecovered()) == ([SendDeferred()] if waits else [])
        self.kernel = "running" if waits else self.kernel

    @rule()
    def learn_info(self) -> None:
        assert self._do(KernelInfoLearnt()) == []

    @rule()
    def lose_the_holder(self) -> None:
        """The next one reads the log."""
        self.sessions = self._replayed()
        self._do(HolderLost())
        self.kernel = "none"
        self.attach_all()

    @rule()
    def rewrite(self) -> None:
        """The log begins anew, with a table."""
        self.sessions = _written_down(self.sessions)
        self.log.clear()
        self.table = _written_down(self.sessions)

    @invariant()
    def what_is_unfinished_is_known(self) -> None:
        found = [
            [each.channel, each.subshell, each.msg_id, each.answered, each.idle]
            for each in self.sessions.unfinished
        ]
        assert found == [[*each[:3], *each[4:]] for each in self.model]

    @invariant()
    def the_log_makes_the_same_table(self) -> None:
        assert self._replayed().dump() == self.sessions.dump()

    def _replayed(self) -> ClientSessions:
        made = _written_down(self.table)
        for seq, event in self.log:
            made.seq = max(made.seq, seq)
            made.handle(_decoded(event), 0.0)
        # What is not noted the journal has.
        made.seq = max(made.seq, self.sessions.seq)
        return made

    table = new()

    def _do(self, event: Event) -> list[Action]:
        if self.sessions.is_noted(event):
            self.log.append((self.sessions.seq, event))
        return self.sessions.handle(event, 0.0)


def _written_down(sessions: ClientSessions) -> ClientSessions:
    table = msgspec.json.decode(msgspec.json.encode(sessions.dump()), type=SessionsSnapshot)
    return ClientSessions.restore(table, LIMITS)


def _decoded(event: Event) -> Event:
    decoded: Event = msgspec.json.decode(msgspec.json.encode(event), type=Event)
    return decoded


TestKernels = Kernels.TestCase
