"""The sessions that a kernel's holder remembers, and which of them a client means.

Part of the table in `bridge.session`; sans I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

import msgspec

from relay.bridge.control import Attach
from relay.bridge.requests import RequestIds
from relay.bridge.transitions import SessionState

BROADCAST: Final = b""
"""The audience of what is for every session."""
_KEY_BYTES: Final = 8
_REPLACED_LINKS: Final = 64
"""WebSockets remembered, per session, that a newer one has replaced."""
_UNNAMED_AWAY: Final = 16
"""Clients of one principal without a ``session_id`` that are away and remembered."""
_FAILURES: Final = 3
"""Connections in a row that must have ended on one message until it is left out."""


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is remembered at the most; ``*lifetime`` in seconds, of sessions that are away."""

    sessions: int
    requests: int
    repeats: int
    lifetime: float
    anonymous_lifetime: float


class ClientSession(msgspec.Struct, kw_only=True):
    """One client on one kernel. Names on disk are those of version 1."""

    key: bytes
    principal: str
    unnamed: bool = msgspec.field(name="anonymous")
    """Whether its client has no ``session_id``."""
    cursor: int
    """Up to here its client has everything for certain."""
    audiences: frozenset[bytes]
    """Whose messages it receives: everybody's, its own, and of those it cannot be told from."""
    resumes: bool = msgspec.field(default=False, name="asks")
    """Whether its client says where it stands, and repeats what it does not know to be done."""
    views_only: bool = False
    """Whether nothing that its present connection sends gets to the kernel."""
    link: str = ""
    received: int = 0
    """The last of its client's messages on this link."""
    replaced: list[str] = []
    recent_ids: dict[str, RequestIds] = msgspec.field(default_factory=dict, name="known")
    """The requests of a client that repeats them, the one it sent least lately first."""
    connection: int | None = None
    left: float = 0.0
    """When its last connection ended."""
    consecutive_failures: int = msgspec.field(default=0, name="strikes")
    """Connections that ended in a row with the cursor where it is."""
    failed_at: int = msgspec.field(default=-1, name="struck")
    """The cursor at which they ended."""

    @property
    def is_poisoned(self) -> bool:
        """Whether the client cannot take the message behind its cursor."""
        # A client that counts what it has shall have everything; it says itself where it stands.
        return self.consecutive_failures >= _FAILURES and not self.resumes

    def use_link(self, link: str) -> None:
        """Go over to the link of a new connection, on which client messages are numbered."""
        if self.link == link:
            return
        if self.link:
            self.replaced = [*self.replaced, self.link][-_REPLACED_LINKS:]
        self.link, self.received = link, 0

    def move(self, seq: int) -> None:
        """Note that the client has everything up to ``seq``."""
        if self.cursor < seq:
            self.cursor = seq
            self.consecutive_failures = 0

    def count_failure(self) -> None:
        """Count a connection that ended before anything more was proved."""
        repeated = self.failed_at == self.cursor
        self.consecutive_failures = self.consecutive_failures + 1 if repeated else 1
        self.failed_at = self.cursor


class SessionTable:
    """Sessions by key, in the order of their last use."""

    def __init__(self, limits: SessionLimits) -> None:
        self._limits = limits
        self._sessions: dict[bytes, ClientSession] = {}

    def __iter__(self) -> Iterator[ClientSession]:
        return iter(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def is_over_limit(self) -> bool:
        """Whether there are more than may be remembered."""
        return len(self._sessions) > self._limits.sessions

    def state(self, session: ClientSession) -> SessionState:
        """Where a session is in the table of transitions."""
        if session.connection is not None:
            return SessionState.ATTACHED
        known = session.key in self._sessions
        return SessionState.AWAY if known else SessionState.UNKNOWN

    def use(self, session: ClientSession) -> None:
        """Put a session behind all others: it is the one that was used last."""
        self._sessions.pop(session.key, None)
        self._sessions[session.key] = session

    def forget(self, session: ClientSession) -> None:
        """Take a session out."""
        del self._sessions[session.key]

    def find(self, attach: Attach, head: int) -> ClientSession:
        """The session that a client means; a new one begins at ``head``, the newest seq."""
        if not attach.session_id:
            return self._unnamed(attach, head)
        key = session_key(attach.principal, f"s {attach.session_id}")
        return self._sessions.get(key) or _new(key, attach, head)

    def _unnamed(self, attach: Attach, head: int) -> ClientSession:
        """The session of a client without a ``session_id``, of which the principal is known only.

        It takes the place of one that broke off and is away. If there are several, all resume at
        the lowest cursor: output may repeat, none is lost.
        """
        mine = [each for each in self if each.unnamed and each.principal == attach.principal]
        for session in mine:
            if session.link == attach.link:
                return session
        own = session_key(attach.principal, f"l {attach.link}")
        if attach.position is not None:
            # An edge goes on with a WebSocket whose place was taken meanwhile.
            session = _new(session_key(attach.principal, f"r {attach.link}"), attach, head)
            session.audiences |= {own}
            return session
        away = [each for each in mine if each.connection is None]
        if not away:
            return _new(own, attach, head)
        cursor = min(each.cursor for each in away)
        audiences = frozenset[bytes]().union(*(each.audiences for each in away))
        for each in away:
            each.cursor, each.audiences = cursor, audiences
        return away[0]

    def expired(self, now: float) -> list[ClientSession]:
        """The sessions that have been away for longer than their lifetime."""
        limits = self._limits
        lifetimes = {True: limits.anonymous_lifetime, False: limits.lifetime}
        return [
            each
            for each in self
            if each.connection is None and now - each.left > lifetimes[each.unnamed]
        ]

    def oldest_away(self) -> ClientSession | None:
        """The session that left first; None where all but the one used last are attached."""
        *others, _ = self
        return next((each for each in others if each.connection is None), None)

    def unnamed_beyond_limit(self, principal: str) -> list[ClientSession]:
        """Of a principal's unnamed sessions that are away, all but the last: each costs all."""
        away = [
            each
            for each in self
            if each.unnamed and each.principal == principal and each.connection is None
        ]
        return away[:-_UNNAMED_AWAY]


def _new(key: bytes, attach: Attach, head: int) -> ClientSession:
    return ClientSession(
        key=key,
        principal=attach.principal,
        unnamed=not attach.session_id,
        cursor=head,
        audiences=frozenset((BROADCAST, key)),
    )


def session_key(principal: str, name: str) -> bytes:
    """The key of a principal's session: 8 bytes, the same in every process that computes it."""
    text = f"{len(principal)} {principal} {name}".encode(errors="surrogatepass")
    return blake2b(text, digest_size=_KEY_BYTES).digest()
