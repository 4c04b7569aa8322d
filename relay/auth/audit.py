"""The audit log: one line per decision that matters, linked to the line before by a hash.

A line is a JSON object with its number and the SHA-256 of everything since the line before it
began. A line that was changed, removed, added or moved is therefore detected. Everybody who may
write the file can still write all of it anew, or cut off its end; keep the newest line's hash
elsewhere to detect that.

A line that was cut off (a full disk, a host that died) stays as it is. The line after it says so,
and its hash covers the remains too.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, NamedTuple, Self

import msgspec

from relay.model import Identity, jupyter_time

LINE_BYTES: Final = 64 * 1024
"""Bytes of the longest line."""


class AuditEvent(enum.StrEnum):
    """What an entry is about."""

    CHAIN_BEGUN = "chain-begun"
    """The first line of a chain."""
    CHAIN_CONTINUED = "chain-continued"
    """The first line of a file that continues the chain of another file."""
    LINE_TORN = "line-torn"
    """The text before this line is the beginning of a line that was never finished."""
    LINES_LOST = "lines-lost"
    """Some lines could not be written; ``reason`` has their number."""
    EDGE_STARTED = "edge-started"
    LOGIN_REFUSED = "login-refused"
    REFUSED = "refused"
    """Not granted, or over a quota; ``reason`` has the details, ``kind`` the request."""
    FAILED = "failed"
    """Granted, but failed."""
    KERNEL_STARTED = "kernel-started"
    KERNEL_STOPPED = "kernel-stopped"
    KERNEL_INTERRUPTED = "kernel-interrupted"
    KERNEL_RESTARTED = "kernel-restarted"
    SESSION_STARTED = "session-started"
    SESSION_CHANGED = "session-changed"
    SESSION_ENDED = "session-ended"
    CHANNELS_OPENED = "channels-opened"
    CHANNELS_ENDED = "channels-ended"
    """Closed by the relay, since its client's access was revoked or has expired."""
    GRANTED = "granted"
    GRANT_TAKEN = "grant-taken"


_FIRST: Final = frozenset({AuditEvent.CHAIN_BEGUN, AuditEvent.CHAIN_CONTINUED})

_BEGINNING: Final = b'{"seq":0,"prev":"'
"""The first bytes of every chain, even where its first line is incomplete."""

_DENIED: Final = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})


class AuditNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry before it gets its place in the chain; a text is empty where it does not apply."""

    time: float
    """Unix time in seconds."""
    event: AuditEvent
    principal: str = ""
    via: str = ""
    """The authenticator that identified the principal."""
    credential: str = ""
    """The credential's name, never the credential itself."""
    address: str = ""
    """The client's address."""
    method: str = ""
    cluster: str = ""
    kind: str = ""
    kernel_id: str = ""
    kernelspec: str = ""
    session_id: str = ""
    """A Jupyter session's id."""
    user: str = ""
    """The user to whom a kernel is granted, or no longer granted."""
    request_id: str = ""
    status: int = 0
    """The response's HTTP status, or a WebSocket's close code; 0 where there is none."""
    reason: str = ""


def event_for(act: AuditEvent | None, status: int, *, outside: bool = False) -> AuditEvent | None:
    """Return the event that a request's answer is logged as, or ``None``.

    ``act`` is what the request does when it succeeds; ``None`` for one that only reads, or that was
    refused before it was known. ``outside`` tells that the caller is known and may do nothing on
    the cluster: the answer is 404 then, as if there were none.
    """
    if status == HTTPStatus.UNAUTHORIZED:
        return AuditEvent.LOGIN_REFUSED
    if status in _DENIED or (outside and status == HTTPStatus.NOT_FOUND):
        return AuditEvent.REFUSED
    if act is None or status < HTTPStatus.BAD_REQUEST:
        return act
    return AuditEvent.REFUSED if status < HTTPStatus.INTERNAL_SERVER_ERROR else AuditEvent.FAILED


def identity_fields(identity: Identity | None) -> dict[str, str]:
    """Return the fields of an `AuditNote` that identify the client."""
    if identity is None:
        return {}
    return {
        "principal": str(identity.principal),
        "via": identity.via,
        "credential": identity.credential,
    }


class _Line(msgspec.Struct):
    """The fields of a line that are read; a newer relay may write more."""

    seq: int
    prev: str
    time: str
    event: str


class _Hash:
    """SHA-256 of everything since the newest line began, without the last line feed."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._empty = True

    def begin(self, line: bytes) -> None:
        """Start anew with a complete line."""
        self._digest, self._empty = hashlib.sha256(line), False

    def add_remains(self, remains: bytes) -> None:
        """Add the beginning of a line that was never finished."""
        self._digest.update(remains if self._empty else b"\n" + remains)
        self._empty = False

    def __str__(self) -> str:
        return self._digest.hexdigest()


class HashChain:
    """The state that the next line of a chain depends on: its number and its hash."""

    def __init__(self) -> None:
        self.seq = -1
        """The number of the newest line; -1 where there is none."""
        self.torn = False
        """Whether the file's end is an unfinished line, which the next line must report."""
        self._hash = _Hash()

    @classmethod
    def after(cls, tail: bytes) -> Self | None:
        """Continue a chain after ``tail``, the end of a file; ``None`` where it has no line.

        The last line may lack its line feed, or more; the chain is then ``torn``.
        """
        if not tail:
            return cls()
        chain = cls()
        for line in tail.removesuffix(b"\n").split(b"\n"):
            parsed = _read(line)
            if parsed is None:
                chain.add_remains(line)
            else:
                chain.seq, chain.torn = parsed.seq, False
                chain._hash.begin(line)
        begun = chain.seq >= 0 or _BEGINNING.startswith(tail[: len(_BEGINNING)])
        return chain if begun else None

    @property
    def hash(self) -> str:
        """The hash that the next line will contain, as 64 hex digits."""
        return str(self._hash)

    def format(self, note: AuditNote, clean: Callable[[str], str]) -> bytes:
        """Return the line for ``note``, with its line feed; the chain does not advance.

        ``clean`` bounds and escapes each text.
        """
        fields: dict[str, object] = {"seq": self.seq + 1, "prev": self.hash}
        for name in note.__struct_fields__:
            value = getattr(note, name)
            if name == "time":
                fields[name] = jupyter_time(value)
            elif value:
                fields[name] = clean(value) if isinstance(value, str) else value
        return msgspec.json.encode(fields) + b"\n"

    def advance(self, line: bytes) -> None:
        """Continue after ``line``, which `format` made and which is in the file now."""
        self.seq, self.torn = self.seq + 1, False
        self._hash.begin(line.removesuffix(b"\n"))

    def add_remains(self, remains: bytes) -> None:
        """Continue after the beginning of a line that was not finished."""
        self.torn = True
        self._hash.add_remains(remains)


class ChainBroken(NamedTuple):
    """The first mistake in a chain."""

    line: int
    """Number of the first wrong line, counted from 1 in its file."""
    reason: str


class ChainVerifier:
    """Verifies a chain file by file, the oldest first."""

    def __init__(self, expected_hash: str = "") -> None:
        """``expected_hash`` was the newest line's hash once, and must be found again."""
        self.lines = 0
        """Lines that are correct."""
        self.torn = 0
        """Unfinished lines that the next line reports as such."""
        self.first = -1
        """The number of the first line; not 0 where older files were left out."""
        self.begins = ""
        """The time of the first line."""
        self.ends = ""
        """The time of the newest line."""
        self.found_expected = False
        """Whether a line has the expected hash."""
        self._expected = expected_hash
        self._last = -1
        self._hash = _Hash()

    @property
    def hash(self) -> str:
        """The hash that the next line would contain, as 64 hex digits; to be kept elsewhere."""
        return str(self._hash)

    def read(self, lines: Iterable[bytes]) -> ChainBroken | None:
        """Verify a file's lines; return the first mistake."""
        number = remains = 0
        for number, written in enumerate(lines, 1):
            line = written.removesuffix(b"\n")
            found = _read(line)
            if found is None:
                remains += 1
                self._hash.add_remains(line)
                continue
            broken = self._check(found, number, remains)
            if broken is not None:
                return broken
            self._advance(found, line, remains)
            remains = 0
        if remains:
            return ChainBroken(number - remains + 1, "this is not a complete line of an audit log")
        return None

    def _check(self, found: _Line, number: int, remains: int) -> ChainBroken | None:
        if remains and found.event != AuditEvent.LINE_TORN:
            return ChainBroken(number - remains, "this is not a line of an audit log")
        if self.first < 0 and not remains and found.event not in _FIRST:
            return ChainBroken(number, "the lines before this one are missing")
        if self.first < 0 and found.seq > 0:
            # The file before it was not given, so there is nothing to compare with.
            return None
        if found.seq != self._last + 1:
            where = f"this is line {found.seq} of its chain; expected line {self._last + 1}"
            return ChainBroken(number, f"{where}: lines were removed, added or moved")
        if found.prev == self.hash:
            return None
        before = number - remains - 1
        if before < 1:
            return ChainBroken(number, "this does not follow the end of the file before it")
        return ChainBroken(before, "this line was changed, or its hash in the next line was")

    def _advance(self, found: _Line, line: bytes, remains: int) -> None:
        if self.first < 0:
            self.first, self.begins = found.seq, found.time
        self._last, self.ends = found.seq, found.time
        self._hash.begin(line)
        self.lines += 1
        self.torn += remains
        self.found_expected = self.found_expected or self.hash == self._expected


def line_number(line: bytes) -> int | None:
    """Return a line's number in its chain; ``None`` where it is not a line of an audit log."""
    found = _read(line)
    return None if found is None else found.seq


def _read(line: bytes) -> _Line | None:
    try:
        return msgspec.json.decode(line, type=_Line)
    except ValueError:  # UnicodeDecodeError is one too
        return None
