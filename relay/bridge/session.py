"""Sessions: who hears what of a kernel, from where, and whose request a reply answers.

Sans I/O: `ClientSessions.handle` takes one event and the time, and returns the actions to perform,
in order. The holder performs them (``holder/broker/broker.py``); nothing here knows of sockets,
files or clocks. The same events always make the same table, so that the store of these events
(``holder/sessions/store.py``) can make it again.

Every kernel→client message gets one ``seq``, in one order over all channels. A reply belongs to
the session that sent the request it answers; iopub belongs to everybody.

A session's cursor says how far its client has come for certain: it moves on proof only. A client
that comes back reads on from there, whatever became of its connection.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
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
    Forward,
    HolderLost,
    KernelLost,
    MessagePublished,
    MessageSubmitted,
    StartReading,
)
from relay.bridge.messages import Channel

BROADCAST: Final = b""
_KEY_BYTES: Final = 8
_UNANSWERED: Final = frozenset({"comm_open", "comm_msg", "comm_close"})
"""Message types that no kernel replies to, and of which widgets send very many."""
_REPLACED_LINKS: Final = 64
"""WebSockets remembered, per session, that a newer one has replaced."""
_NAMELESS_AWAY: Final = 16
"""Clients of one principal without a ``session_id`` that are away and remembered."""
_FAREWELLS: Final = 16
"""Messages remembered on which clients say goodbye."""
_STRIKES: Final = 3
"""Connections that must have ended on one message until it is left out."""
REPLACED: Final = (1000, "replaced by a newer connection of this session")


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered at the most; seconds for the lifetimes of those who are away."""

    sessions: int
    requests: int
    repeats: int
    lifetime: float
    anonymous_lifetime: float


_Request = tuple[Channel, str, str, str]
"""Where a request queues (channel and subshell), and its ``msg_id`` and ``session``. Clients may
share the latter two; they are answered in turn, but only where they queue in the same place."""


class _Session(msgspec.Struct, kw_only=True):
    """One client on one kernel."""

    key: bytes
    principal: str
    anonymous: bool
    cursor: int
    """Up to here its client has everything for certain."""
    audiences: frozenset[bytes]
    """Whose messages it hears: everybody's, its own, and of those it cannot be told from."""
    asks: bool = False
    """Whether its client says where it stands, and repeats what it does not know to be done."""
    link: str = ""
    received: int = 0
    """The last of its client's messages on this link."""
    replaced: list[str] = []
    known: dict[str, _Request] = {}
    """The requests of a client that repeats them, the one it sent least lately first."""
    connection: int | None = None
    left: float = 0.0
    """When its last connection ended."""
    strikes: int = 0
    """Connections that ended in a row with the cursor where it is."""
    struck: int = -1


class _Waiting(msgspec.Struct, frozen=True):
    """Requests with the same ids, and the keys of those who sent them, in order."""

    request: _Request
    keys: list[bytes]


class SessionsSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that `ClientSessions` knows, to be written down."""

    epoch: str
    seq: int
    sessions: list[_Session]
    waiting: list[_Waiting]
    farewells: list[int]


class ClientSessions:
    """The sessions of one kernel."""

    def __init__(self, epoch: str, limits: SessionLimits, seq: int = 0) -> None:
        self.epoch = epoch
        self.seq = seq
        """The newest message's."""
        self._limits = limits
        self._sessions: dict[bytes, _Session] = {}
        """In the order of their last use."""
        self._connections: dict[int, _Session] = {}
        self._requests: dict[_Request, deque[bytes]] = {}
        self._unanswered = 0
        self._farewells: deque[int] = deque(maxlen=_FAREWELLS)

    @classmethod
    def restore(cls, table: SessionsSnapshot, limits: SessionLimits) -> ClientSessions:
        """The sessions that `dump` wrote down."""
        made = cls(table.epoch, limits, table.seq)
        made._farewells.extend(table.farewells)
        for session in table.sessions:
            made._sessions[session.key] = session
            if session.connection is not None:
                made._connections[session.connection] = session
        for waiting in table.waiting:
            made._requests[waiting.request] = deque(waiting.keys)
            made._unanswered += len(waiting.keys)
        return made

    def dump(self) -> SessionsSnapshot:
        """Everything, as it is now; it changes with the next event."""
        return SessionsSnapshot(
            epoch=self.epoch,
            seq=self.seq,
            sessions=list(self._sessions.values()),
            waiting=[_Waiting(request, list(keys)) for request, keys in self._requests.items()],
            farewells=list(self._farewells),
        )

    @property
    def connections(self) -> int:
        """How many connections are attached."""
        return len(self._connections)

    @property
    def remembered(self) -> int:
        """How many sessions there are, attached or not."""
        return len(self._sessions)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event, ``now`` in seconds; perform what it returns, in order."""
        match event:
            case MessagePublished():
                return [self._published(event)]
            case MessageSubmitted():
                return self._submitted(event)
            case ClientAttached():
                return self._attached(event, now)
            case ClientDetached():
                self._detached(event, now)
            case DeliveryProved():
                self._proved(event)
            case KernelLost():
                self._requests.clear()
                self._unanswered = 0
            case HolderLost():
                for connection in list(self._connections):
                    self._detached(ClientDetached(connection), now)
        return []

    # Connections.

    def _attached(self, event: ClientAttached, now: float) -> list[Action]:
        attach = event.attach
        self._forget_expired(now)
        session = self._session(attach)
        actions: list[Action] = []
        if len(self._sessions) > self._limits.sessions and self._forget_oldest_detached():
            actions.append(Evicted("sessions.sessions"))
        session.asks = session.asks or attach.asks
        position = self._start(session, attach)
        if attach.link in session.replaced:
            # While nobody reads it, a WebSocket cannot be told that it was replaced. Once it
            # asks again, for a link that it lost, it must not take the session back.
            start = StartReading(event.connection, session.audiences, position, 0)
            return [*actions, start, CloseConnection(event.connection, *REPLACED)]
        if session.connection is not None:
            actions.append(CloseConnection(session.connection, *REPLACED))
            self._connections.pop(session.connection, None)
        if session.link != attach.link:
            if session.link:
                session.replaced = [*session.replaced, session.link][-_REPLACED_LINKS:]
            # Numbers of client messages are counted per link.
            session.link, session.received = attach.link, 0
        session.connection = event.connection
        self._connections[event.connection] = session
        # A client that counts what it has shall have everything; it says itself where it stands.
        poison = (
            session.strikes >= _STRIKES
            and not session.asks
            and position == Position(self.epoch, session.cursor)
        )
        actions.append(
            StartReading(event.connection, session.audiences, position, session.received, poison)
        )
        return actions

    def _start(self, session: _Session, attach: Attach) -> Position:
        sent, has = attach.position, attach.last_seq
        if has is not None and has.epoch == self.epoch:
            # Nobody knows better than the client itself; of an edge's word for it this is proof.
            self._move(session, has.seq)
        if sent is not None and sent.epoch == self.epoch and sent.seq <= self.seq:
            return sent
        if has is None:
            return Position(self.epoch, session.cursor)
        if has.epoch != self.epoch:
            # Of this kernel it has nothing.
            return Position(self.epoch, 0)
        return Position(self.epoch, min(has.seq, self.seq))

    def _session(self, attach: Attach) -> _Session:
        session = self._named(attach) if attach.session_id else self._nameless(attach)
        # Taken out and put back, so that the dictionary's order is the order of last use.
        self._sessions.pop(session.key, None)
        self._sessions[session.key] = session
        return session

    def _named(self, attach: Attach) -> _Session:
        key = session_key(attach.principal, f"s {attach.session_id}")
        return self._sessions.get(key) or self._new(key, attach)

    def _nameless(self, attach: Attach) -> _Session:
        """The session of a client without a ``session_id``: who it is, its principal alone says.

        It takes the place of one that broke off and is away. Which of several, nobody can tell:
        so it gets what any of them has not had, and so will the others. Some of it comes twice
        then, but nothing not at all.
        """
        mine = [
            each
            for each in self._sessions.values()
            if each.anonymous and each.principal == attach.principal
        ]
        for session in mine:
            if session.link == attach.link:
                return session
        own = session_key(attach.principal, f"l {attach.link}")
        if attach.position is not None:
            # An edge goes on with a WebSocket whose place was taken meanwhile.
            session = self._new(session_key(attach.principal, f"r {attach.link}"), attach)
            session.audiences |= {own}
            return session
        away = [each for each in mine if each.connection is None]
        if not away:
            return self._new(own, attach)
        cursor = min(each.cursor for each in away)
        audiences = frozenset[bytes]().union(*(each.audiences for each in away))
        for each in away:
            each.cursor, each.audiences = cursor, audiences
        return away[0]

    def _new(self, key: bytes, attach: Attach) -> _Session:
        return _Session(
            key=key,
            principal=attach.principal,
            anonymous=not attach.session_id,
            cursor=self.seq,
            audiences=frozenset((BROADCAST, key)),
        )

    def _forget_oldest_detached(self) -> bool:
        *others, _ = self._sessions.values()
        for session in others:
            if session.connection is None:
                del self._sessions[session.key]
                return True
        return False

    def _forget_oldest_nameless(self, principal: str) -> None:
        """Of a principal's clients without a name, only so many can be away: each costs all."""
        away = [
            each
            for each in self._sessions.values()
            if each.anonymous and each.principal == principal and each.connection is None
        ]
        for session in away[:-_NAMELESS_AWAY]:
            del self._sessions[session.key]

    def _forget_expired(self, now: float) -> None:
        limits = self._limits
        for key, session in list(self._sessions.items()):
            lifetime = limits.anonymous_lifetime if session.anonymous else limits.lifetime
            if session.connection is None and now - session.left > lifetime:
                del self._sessions[key]

    def _detached(self, event: ClientDetached, now: float) -> None:
        session = self._connections.pop(event.connection, None)
        if session is None:
            # Replaced by a newer one.
            return
        session.connection = None
        session.left = now
        # Leaving is the last use: who left first is forgotten first.
        del self._sessions[session.key]
        if session.anonymous and event.departure is Disconnect.GOODBYE:
            # Nobody can mean it any more; the others can be named again.
            return
        self._sessions[session.key] = session
        if session.anonymous:
            self._forget_oldest_nameless(session.principal)
        if event.departure is Disconnect.GOODBYE:
            # What a client had not read when it decided to leave, it has not had. But on what
            # made it leave it must not meet again, or it would leave and come back for ever.
            self._move(session, max((f for f in self._farewells if f <= event.sent), default=0))
        elif event.departure is Disconnect.BROKEN:
            self._strike(session, event)

    def _strike(self, session: _Session, event: ClientDetached) -> None:
        """Count the connections that end before anything more was proved."""
        if event.sent > session.cursor or event.begun:
            session.strikes = session.strikes + 1 if session.struck == session.cursor else 1
            session.struck = session.cursor

    def _proved(self, event: DeliveryProved) -> None:
        session = self._connections.get(event.connection)
        if session is not None:
            self._move(session, event.seq)

    def _move(self, session: _Session, seq: int) -> None:
        if session.cursor < seq <= self.seq:
            session.cursor = seq
            session.strikes = 0

    # Messages.

    def _submitted(self, event: MessageSubmitted) -> list[Action]:
        session = self._connections.get(event.connection)
        if session is None:
            return []
        acknowledge = Acknowledge(event.connection, event.number)
        if event.number <= session.received:
            return [acknowledge]
        session.received = event.number
        if event.channel is Channel.IOPUB or (session.asks and self._is_known(event, session)):
            # A kernel's iopub takes nothing.
            return [acknowledge]
        actions: list[Action] = [Forward(), acknowledge]
        if event.answered or not is_answered(event.channel, event.msg_type):
            return actions
        if self._remember(event, session):
            actions.append(Evicted("sessions.requests"))
        return actions

    def _is_known(self, event: MessageSubmitted, session: _Session) -> bool:
        name = f"{event.channel:d} {len(event.msg_id)} {event.msg_id} {event.session}"
        known = session.known.pop(name, None) is not None
        session.known[name] = _request(event)
        if len(session.known) > self._limits.repeats:
            # What is answered nobody repeats who has the answer.
            answered = (
                each for each, request in session.known.items() if request not in self._requests
            )
            del session.known[next(answered, next(iter(session.known)))]
        return known

    def _remember(self, event: MessageSubmitted, session: _Session) -> bool:
        """Note who asked; whether another request had to be forgotten for it."""
        self._requests.setdefault(_request(event), deque()).append(session.key)
        self._unanswered += 1
        if self._unanswered <= self._limits.requests:
            return False
        oldest = next(iter(self._requests))
        self._unanswered -= len(self._requests.pop(oldest))
        return True

    def _published(self, event: MessagePublished) -> Action:
        audience = self._audience(event)
        if audience is None:
            return Discard()
        self.seq += 1
        if event.farewell:
            self._farewells.append(self.seq)
        return Append(self.seq, audience)

    def _audience(self, event: MessagePublished) -> bytes | None:
        if event.connection is not None:
            session = self._connections.get(event.connection)
            return session.key if session else None
        return BROADCAST if event.channel is Channel.IOPUB else self._asker(event)

    def _asker(self, event: MessagePublished) -> bytes | None:
        if event.channel is Channel.STDIN:
            # input_request: the request it belongs to is still unanswered.
            waiting = self._waiting(Channel.SHELL, event) or self._waiting(Channel.CONTROL, event)
            return waiting[0] if waiting else None
        # A reply comes on its request's channel. Between two channels there is no order, so
        # that ids which two clients share would mix up their replies.
        waiting = self._waiting(event.channel, event)
        if not waiting:
            return None
        asker = waiting.popleft()
        self._unanswered -= 1
        if not waiting:
            del self._requests[_answered_by(event.channel, event)]
        return asker

    def _waiting(self, channel: Channel, event: MessagePublished) -> deque[bytes] | None:
        return self._requests.get(_answered_by(channel, event))


def _request(event: MessageSubmitted) -> _Request:
    return event.channel, event.subshell, event.msg_id, event.session


def _answered_by(channel: Channel, event: MessagePublished) -> _Request:
    return channel, event.subshell, event.parent_msg_id, event.parent_session


def is_answered(channel: Channel, msg_type: str) -> bool:
    """Whether a kernel replies to what a client sends."""
    return channel is not Channel.STDIN and msg_type not in _UNANSWERED


def session_key(principal: str, name: str) -> bytes:
    """The key of a principal's session: 8 bytes, the same in every process that computes it."""
    text = f"{len(principal)} {principal} {name}".encode(errors="surrogatepass")
    return blake2b(text, digest_size=_KEY_BYTES).digest()
