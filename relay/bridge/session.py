"""Sessions: who hears what of a kernel, from where, and whose request a reply answers.

Sans I/O: `Sessions.handle` takes one event and returns the actions to perform, in order. The
holder performs them (``holder/hub.py``); nothing here knows of sockets, files or clocks.

Every kernel→client message gets one ``seq``, in one order over all channels. A reply belongs to
the session that sent the request it answers; iopub belongs to everybody.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import Final

import msgspec

from relay.bridge.messages import Channel
from relay.bridge.records import Attach, Position

EVERYBODY: Final = b""
_KEY_BYTES: Final = 8
_UNANSWERED: Final = frozenset({"comm_open", "comm_msg", "comm_close"})
"""Message types that no kernel replies to, and of which widgets send very many."""
_REPLACED_LINKS: Final = 64
"""WebSockets remembered, per session, that a newer one has replaced."""
REPLACED: Final = (1000, "replaced by a newer connection of this session")


# Events: what happened.


class Attached(msgspec.Struct, frozen=True):
    """A connection (the holder's own number for it) asks for a session."""

    connection: int
    attach: Attach


class Detached(msgspec.Struct, frozen=True):
    """A connection ended; ``clean`` when the client said goodbye."""

    connection: int
    clean: bool


class Submitted(msgspec.Struct, frozen=True):
    """A client's message ``number``, with the ids from its header."""

    connection: int
    number: int
    channel: Channel
    msg_id: str
    session: str
    msg_type: str = ""


class Published(msgspec.Struct, frozen=True):
    """A kernel's message, with the ids from its parent header."""

    channel: Channel
    parent_msg_id: str
    parent_session: str


class Proved(msgspec.Struct, frozen=True):
    """The client of this connection has received everything up to ``seq``."""

    connection: int
    seq: int


class KernelLost(msgspec.Struct, frozen=True):
    """The kernel process is gone: what was asked of it stays unanswered."""


_Request = tuple[Channel, str, str]
"""Where a request went, and its ``msg_id`` and ``session``: clients may share the latter two."""

Event = Attached | Detached | Submitted | Published | Proved | KernelLost


# Actions: what to do about it.


class Start(msgspec.Struct, frozen=True):
    """Let the connection read from ``position`` on what is addressed to ``audience``."""

    connection: int
    audience: bytes
    position: Position
    acknowledged: int


class End(msgspec.Struct, frozen=True):
    """Close the connection with a code and a reason."""

    connection: int
    code: int
    reason: str


class Forward(msgspec.Struct, frozen=True):
    """Send the submitted message to the kernel."""


class Acknowledge(msgspec.Struct, frozen=True):
    """Tell the connection that ``number`` needs no repeating."""

    connection: int
    number: int


class Append(msgspec.Struct, frozen=True):
    """Write the published message to the journal."""

    seq: int
    audience: bytes


class Discard(msgspec.Struct, frozen=True):
    """The published message answers nobody that is known here."""


Action = Start | End | Forward | Acknowledge | Append | Discard


class _Session:
    """One client on one kernel. ``cursor``: up to here its client has everything for certain."""

    __slots__ = ("anonymous", "connection", "cursor", "key", "link", "received", "replaced")

    def __init__(self, key: bytes, cursor: int, *, anonymous: bool) -> None:
        self.key = key
        self.cursor = cursor
        self.anonymous = anonymous
        self.link = ""
        self.received = 0
        self.replaced: deque[str] = deque(maxlen=_REPLACED_LINKS)
        self.connection: int | None = None


class Sessions:
    """The sessions of one kernel.

    ``limit`` sessions and ``request_limit`` unanswered requests are kept; past that the oldest
    detached session, or the oldest request, is forgotten.
    """

    def __init__(self, epoch: str, seq: int = 0, *, limit: int, request_limit: int) -> None:
        self.epoch = epoch
        self.seq = seq
        self._limit = limit
        self._request_limit = request_limit
        self._sessions: dict[bytes, _Session] = {}
        self._connections: dict[int, _Session] = {}
        self._requests: dict[_Request, deque[bytes]] = {}
        self._unanswered = 0

    @property
    def connections(self) -> int:
        """How many connections are attached."""
        return len(self._connections)

    @property
    def remembered(self) -> int:
        """How many sessions there are, attached or not."""
        return len(self._sessions)

    def handle(self, event: Event) -> list[Action]:
        """Take one event; perform what it returns, in order."""
        match event:
            case Published():
                return [self._published(event)]
            case Submitted():
                return self._submitted(event)
            case Attached():
                return self._attached(event)
            case Detached():
                self._detached(event)
            case Proved():
                self._proved(event)
            case KernelLost():
                self._requests.clear()
                self._unanswered = 0
        return []

    def _attached(self, event: Attached) -> list[Action]:
        attach = event.attach
        session = self._session(attach)
        position = self._start(session, attach.position)
        if attach.link in session.replaced:
            # While nobody reads it, a WebSocket cannot be told that it was replaced. Once it
            # asks again, for a link that it lost, it must not take the session back.
            start = Start(event.connection, session.key, position, 0)
            return [start, End(event.connection, *REPLACED)]
        actions: list[Action] = []
        if session.connection is not None:
            actions.append(End(session.connection, *REPLACED))
            self._connections.pop(session.connection, None)
        if session.link != attach.link:
            if session.link:
                session.replaced.append(session.link)
            # Numbers of client messages are counted per link.
            session.link, session.received = attach.link, 0
        session.connection = event.connection
        self._connections[event.connection] = session
        actions.append(Start(event.connection, session.key, position, session.received))
        return actions

    def _start(self, session: _Session, asked: Position | None) -> Position:
        if asked is not None and asked.epoch == self.epoch and asked.seq <= self.seq:
            return asked
        return Position(self.epoch, session.cursor)

    def _session(self, attach: Attach) -> _Session:
        # Without an id of its own a session is just this one WebSocket of the edge.
        name = f"s {attach.session_id}" if attach.session_id else f"l {attach.link}"
        key = session_key(attach.principal, name)
        # Taken out and put back, so that the dictionary's order is the order of last use.
        session = self._sessions.pop(key, None)
        if session is None:
            if len(self._sessions) >= self._limit:
                self._forget_oldest_detached()
            session = _Session(key, self.seq, anonymous=not attach.session_id)
        self._sessions[key] = session
        return session

    def _forget_oldest_detached(self) -> None:
        for key, session in self._sessions.items():
            if session.connection is None:
                del self._sessions[key]
                return

    def _detached(self, event: Detached) -> None:
        session = self._connections.pop(event.connection, None)
        if session is None:
            # Replaced by a newer one.
            return
        session.connection = None
        # Leaving is the last use: who left first is forgotten first.
        del self._sessions[session.key]
        if not (event.clean and session.anonymous):
            # The others can be named again.
            self._sessions[session.key] = session

    def _submitted(self, event: Submitted) -> list[Action]:
        session = self._connections.get(event.connection)
        if session is None:
            return []
        acknowledge = Acknowledge(event.connection, event.number)
        if event.number <= session.received:
            return [acknowledge]
        session.received = event.number
        if event.channel is Channel.IOPUB:
            # A kernel's iopub takes nothing.
            return [acknowledge]
        if event.channel is not Channel.STDIN and event.msg_type not in _UNANSWERED:
            self._remember(event, session)
        return [Forward(), acknowledge]

    def _remember(self, event: Submitted, session: _Session) -> None:
        self._wait_for((event.channel, event.msg_id, event.session), session.key)

    def _wait_for(self, request: _Request, asker: bytes) -> None:
        self._requests.setdefault(request, deque()).append(asker)
        self._unanswered += 1
        if self._unanswered > self._request_limit:
            oldest = next(iter(self._requests))
            self._unanswered -= len(self._requests.pop(oldest))

    def asker(self, channel: Channel, msg_id: str, session: str) -> bytes | None:
        """The key of the session that sent the newest such request which is unanswered."""
        waiting = self._requests.get((channel, msg_id, session))
        return waiting[-1] if waiting else None

    def expect(self, channel: Channel, msg_id: str, session: str, asker: bytes) -> None:
        """Know of a request that the kernel was sent by an earlier holder."""
        self._wait_for((channel, msg_id, session), asker)

    def _published(self, event: Published) -> Action:
        audience: bytes | None = EVERYBODY
        if event.channel is not Channel.IOPUB:
            audience = self._asker(event)
        if audience is None:
            return Discard()
        self.seq += 1
        return Append(self.seq, audience)

    def _asker(self, event: Published) -> bytes | None:
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
            del self._requests[event.channel, event.parent_msg_id, event.parent_session]
        return asker

    def _waiting(self, channel: Channel, event: Published) -> deque[bytes] | None:
        return self._requests.get((channel, event.parent_msg_id, event.parent_session))

    def _proved(self, event: Proved) -> None:
        session = self._connections.get(event.connection)
        if session is not None and session.cursor < event.seq <= self.seq:
            session.cursor = event.seq


def session_key(principal: str, name: str) -> bytes:
    """The key of a principal's session: 8 bytes, the same in every process that computes it."""
    text = f"{len(principal)} {principal} {name}".encode(errors="surrogatepass")
    return blake2b(text, digest_size=_KEY_BYTES).digest()
