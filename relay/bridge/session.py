"""Sessions: who receives what of a kernel, from where, and what becomes of clients' messages.

Sans I/O: `ClientSessions.handle` takes one event and the time, and returns the actions to perform,
in order. The holder performs them (``holder/broker/broker.py``); nothing here knows of sockets,
files or clocks. The same events always make the same table, so that the log of these events
(``holder/sessions/store.py``) can make it again.

Every message to clients gets one ``seq``, in one order over all channels. A reply belongs to the
session that sent the request it answers (`submissions`); iopub belongs to every session.

A session's cursor says how far its client has come for certain: it moves on proof only. A client
that comes back reads on from there, whatever became of its connection. What happens when clients
come and go is the table in `transitions`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from relay.bridge.control import Attach, Disconnect, Position
from relay.bridge.events import (
    Acknowledge,
    Action,
    Append,
    ClientAttached,
    ClientDetached,
    CloseConnection,
    DeliveryProved,
    Discard,
    Event,
    Evicted,
    HolderLost,
    KernelInfoLearnt,
    MessagePublished,
    MessageSubmitted,
    StartReading,
)
from relay.bridge.messages import Channel
from relay.bridge.requests import KernelRequest, RequestIds
from relay.bridge.session_table import BROADCAST, ClientSession, SessionLimits, SessionTable
from relay.bridge.submissions import KernelPresence, Submissions, request_ids
from relay.bridge.transitions import TRANSITIONS, SessionState, SessionTrigger, Step

_CLOSE_TRIGGERS: Final = 16
"""Messages remembered on which clients close their WebSocket."""
REPLACED: Final = (1000, "replaced by a newer connection of this session")


class WaitingRequests(msgspec.Struct, frozen=True):
    """Of version 1: requests with the same ids, and the keys of those who sent them, in order."""

    request: RequestIds
    keys: list[bytes]


class SessionsSnapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that `ClientSessions` knows, to be written down."""

    epoch: str
    seq: int
    sessions: list[ClientSession]
    close_triggers: list[int] = msgspec.field(name="farewells")
    requests: list[KernelRequest] | None = None
    """None in version 1, which has ``waiting`` instead."""
    kernel: KernelPresence = KernelPresence.RUNNING
    informed: bool = False
    info_known: bool = False
    waiting: list[WaitingRequests] = []


class ClientSessions:
    """The sessions of one kernel, and what it was asked."""

    def __init__(self, epoch: str, limits: SessionLimits, seq: int = 0) -> None:
        self.epoch = epoch
        self.seq = seq
        """The newest message's."""
        self.submissions = Submissions(limits.requests)
        self._limits = limits
        self._table = SessionTable(limits)
        self._connections: dict[int, ClientSession] = {}
        self._close_triggers: deque[int] = deque(maxlen=_CLOSE_TRIGGERS)

    @classmethod
    def restore(cls, snapshot: SessionsSnapshot, limits: SessionLimits) -> ClientSessions:
        """The sessions that `dump` wrote down."""
        made = cls(snapshot.epoch, limits, snapshot.seq)
        made._close_triggers.extend(snapshot.close_triggers)
        for session in snapshot.sessions:
            made._table.use(session)
            if session.connection is not None:
                made._connections[session.connection] = session
        submissions = made.submissions
        for request in snapshot.requests or ():
            submissions.requests.add(request)
        submissions.kernel = snapshot.kernel
        submissions.informed, submissions.info_known = snapshot.informed, snapshot.info_known
        return made

    def dump(self) -> SessionsSnapshot:
        """Everything that outlives the holder, as it is now; it changes with the next event."""
        return SessionsSnapshot(
            epoch=self.epoch,
            seq=self.seq,
            sessions=list(self._table),
            close_triggers=list(self._close_triggers),
            requests=list(self.submissions.requests),
            kernel=self.submissions.kernel,
            informed=self.submissions.informed,
            info_known=self.submissions.info_known,
        )

    @property
    def connections(self) -> int:
        """How many connections are attached."""
        return len(self._connections)

    @property
    def remembered(self) -> int:
        """How many sessions there are, attached or not."""
        return len(self._table)

    @property
    def unfinished(self) -> Sequence[KernelRequest]:
        """The requests that the kernel has not finished, oldest first."""
        return list(self.submissions.requests)

    def is_noted(self, event: Event) -> bool:
        """Whether an event changes more than the newest seq, which the journal knows."""
        if isinstance(event, MessagePublished) and event.channel is Channel.IOPUB:
            if not event.idle:
                return event.close_trigger
            requests = self.submissions.requests
            return requests.waits_for_idle(event.parent_msg_id, event.parent_session)
        if isinstance(event, KernelInfoLearnt):
            return self.submissions.info_changes()
        return True

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event, ``now`` in seconds; perform what it returns, in order."""
        match event:
            case MessagePublished():
                return [self._publish(event)]
            case MessageSubmitted():
                return self._submit(event)
            case DeliveryProved():
                session = self._connections.get(event.connection)
                if session is not None and event.seq <= self.seq:
                    session.move(event.seq)
            case ClientAttached():
                return self._attach(event, now)
            case ClientDetached():
                self._detach(event, now)
            case HolderLost():
                for connection in list(self._connections):
                    self._detach(ClientDetached(connection), now)
                self.submissions.holder_lost()
            case _:
                return self.submissions.change_kernel(event)
        return []

    # Connections.

    def _attach(self, event: ClientAttached, now: float) -> list[Action]:
        for session in self._table.expired(now):
            self._enter(session, SessionTrigger.EXPIRE)
        session = self._table.find(event.attach, self.seq)
        is_replaced = event.attach.link in session.replaced
        trigger = SessionTrigger.ATTACH_REPLACED if is_replaced else SessionTrigger.ATTACH
        steps = self._enter(session, trigger)
        self._table.use(session)
        actions = self._evict_session()
        session.resumes = session.resumes or event.attach.resumes
        position = self._start_position(session, event.attach)
        for step in steps:
            actions += self._perform_attach(step, session, event, position)
        return actions

    def _enter(self, session: ClientSession, trigger: SessionTrigger) -> tuple[Step, ...]:
        """Take a session to its next state; the steps are to be performed."""
        transition = TRANSITIONS[self._table.state(session), trigger]
        if transition.state is SessionState.UNKNOWN:
            self._table.forget(session)
        return transition.steps

    def _evict_session(self) -> list[Action]:
        oldest = self._table.oldest_away() if self._table.is_over_limit else None
        if oldest is None:
            return []
        self._enter(oldest, SessionTrigger.EVICT)
        return [Evicted("sessions.sessions")]

    def _perform_attach(
        self, step: Step, session: ClientSession, event: ClientAttached, position: Position
    ) -> list[Action]:
        connection = event.connection
        match step:
            case Step.CLOSE_REPLACED:
                assert session.connection is not None  # noqa: S101 -- it is ATTACHED
                self._connections.pop(session.connection, None)
                self.submissions.disconnected(session.connection)
                return [CloseConnection(session.connection, *REPLACED)]
            case Step.REJECT:
                # While nobody reads it, a WebSocket cannot be told that it was replaced. Once it
                # attaches again, for a link that it lost, it must not take the session back.
                start = StartReading(connection, session.audiences, position, 0)
                return [start, CloseConnection(connection, *REPLACED)]
        session.use_link(event.attach.link)
        session.connection, session.views_only = connection, event.views_only
        self._connections[connection] = session
        poison = session.is_poisoned and position == Position(self.epoch, session.cursor)
        return [StartReading(connection, session.audiences, position, session.received, poison)]

    def _start_position(self, session: ClientSession, attach: Attach) -> Position:
        sent, has = attach.position, attach.last_seq
        if has is not None and has.epoch == self.epoch and has.seq <= self.seq:
            # Nobody knows better than the client itself; of an edge's word for it this is proof.
            session.move(has.seq)
        if sent is not None and sent.epoch == self.epoch and sent.seq <= self.seq:
            return sent
        if has is None:
            return Position(self.epoch, session.cursor)
        if has.epoch != self.epoch:
            # Of this kernel it has nothing.
            return Position(self.epoch, 0)
        return Position(self.epoch, min(has.seq, self.seq))

    def _detach(self, event: ClientDetached, now: float) -> None:
        session = self._connections.pop(event.connection, None)
        if session is None:
            # Replaced by a newer one.
            return
        self.submissions.disconnected(event.connection)
        steps = self._enter(session, _trigger(event, session))
        session.connection = None
        for step in steps:
            self._perform_detach(step, session, event, now)

    def _perform_detach(
        self, step: Step, session: ClientSession, event: ClientDetached, now: float
    ) -> None:
        match step:
            case Step.LEAVE:
                session.left = now
                # Leaving is the last use: the session that left first is forgotten first.
                self._table.use(session)
                if session.unnamed:
                    for each in self._table.unnamed_beyond_limit(session.principal):
                        self._enter(each, SessionTrigger.EVICT)
            case Step.SKIP_CLOSE_TRIGGER:
                # What a client had not read when it decided to leave, it has not had. But on what
                # made it leave it must not meet again, or it would leave and come back for ever.
                sent = (seq for seq in self._close_triggers if seq <= event.sent)
                session.move(max(sent, default=0))
            case Step.COUNT_FAILURE:
                if event.sent > session.cursor or event.begun:
                    session.count_failure()

    # Messages.

    def _submit(self, event: MessageSubmitted) -> list[Action]:
        session = self._connections.get(event.connection)
        if session is None:
            return []
        acknowledge = Acknowledge(event.connection, event.number)
        if event.number <= session.received:
            return [acknowledge]
        session.received = event.number
        if event.channel is Channel.IOPUB or (session.resumes and self._repeats(event, session)):
            # A kernel's iopub takes nothing.
            return [acknowledge]
        decided = self.submissions.decide(event, session)
        return [*decided[:1], acknowledge, *decided[1:]]

    def _repeats(self, event: MessageSubmitted, session: ClientSession) -> bool:
        """Whether a session has sent a message before; notes its ids."""
        name = f"{event.channel:d} {len(event.msg_id)} {event.msg_id} {event.session}"
        recent = session.recent_ids
        repeated = recent.pop(name, None) is not None
        recent[name] = request_ids(event)
        if len(recent) > self._limits.repeats:
            # What is answered is not repeated by a client that has the answer.
            waiting = self.submissions.requests.waiting
            answered = (each for each, ids in recent.items() if waiting(ids) is None)
            del recent[next(answered, next(iter(recent)))]
        return repeated

    def _publish(self, event: MessagePublished) -> Action:
        audience = self._audience(event)
        if audience is None:
            return Discard()
        self.seq += 1
        if event.close_trigger:
            self._close_triggers.append(self.seq)
        return Append(self.seq, audience)

    def _audience(self, event: MessagePublished) -> bytes | None:
        if event.connection is not None:
            session = self._connections.get(event.connection)
            return session.key if session else None
        if event.channel is not Channel.IOPUB:
            return self.submissions.receiver(event)
        if event.idle:
            self.submissions.requests.note_idle(event.parent_msg_id, event.parent_session)
        return BROADCAST


def _trigger(event: ClientDetached, session: ClientSession) -> SessionTrigger:
    match event.disconnect:
        case None:
            return SessionTrigger.CONNECTION_LOST
        case Disconnect.ABNORMAL:
            return SessionTrigger.DISCONNECT_ABNORMAL
    if session.unnamed:
        # No client can mean this session any more; the others can be told apart again.
        return SessionTrigger.DISCONNECT_CLEAN_UNNAMED
    return SessionTrigger.DISCONNECT_CLEAN
