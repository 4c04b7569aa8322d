"""The audit log: one line per decision that matters, each bound to the line before it.

A line is a JSON object that holds its number and the SHA-256 of everything since the line before
it began. So a line that was changed, taken out, put in or moved shows. Who may write the file can
of course write all of it anew, or cut its end off: note the newest line's hash elsewhere.

A line that was cut off in the middle (a full disk, a host that died) stays as it is. The line after
it says so, and its hash covers the remains too.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Self

import msgspec

from relay.model import Identity, jupyter_time

LINE_BYTES: Final = 64 * 1024
"""Bytes of one line at the most."""


class AuditEvent(enum.StrEnum):
    """What a line is about."""

    CHAIN_BEGUN = "chain-begun"
    """The first line of all."""
    CHAIN_CONTINUED = "chain-continued"
    """The first line of a file that goes on where another one ended."""
    LINE_TORN = "line-torn"
    """What stands before this line is the beginning of one that was never finished."""
    LINES_LOST = "lines-lost"
    """Some lines could not be written and are not there; how many is in ``reason``."""
    EDGE_STARTED = "edge-started"
    LOGIN_REFUSED = "login-refused"
    REFUSED = "refused"
    """Not granted, or over a quota: ``reason`` says which, ``kind`` what was asked for."""
    FAILED = "failed"
    """Granted, and did not come about."""
    KERNEL_STARTED = "kernel-started"
    KERNEL_STOPPED = "kernel-stopped"
    KERNEL_INTERRUPTED = "kernel-interrupted"
    KERNEL_RESTARTED = "kernel-restarted"
    SESSION_STARTED = "session-started"
    SESSION_CHANGED = "session-changed"
    SESSION_ENDED = "session-ended"
    CHANNELS_OPENED = "channels-opened"
    CHANNELS_ENDED = "channels-ended"
    """Closed by the relay, since what let their client in no longer does."""
    GRANTED = "granted"
    GRANT_TAKEN = "grant-taken"


_ACTS: Final = {
    "start": AuditEvent.KERNEL_STARTED,
    "stop": AuditEvent.KERNEL_STOPPED,
    "interrupt": AuditEvent.KERNEL_INTERRUPTED,
    "restart": AuditEvent.KERNEL_RESTARTED,
    "channels": AuditEvent.CHANNELS_OPENED,
    "grant": AuditEvent.GRANTED,
    "revoke": AuditEvent.GRANT_TAKEN,
    "new-session": AuditEvent.SESSION_STARTED,
    "change-session": AuditEvent.SESSION_CHANGED,
    "end-session": AuditEvent.SESSION_ENDED,
}
"""By the values of ``routing.routes.Kind``. Who only reads changes nothing, and leaves no line."""

_FIRST: Final = frozenset({AuditEvent.CHAIN_BEGUN, AuditEvent.CHAIN_CONTINUED})

_BEGINNING: Final = b'{"seq":0,"prev":"'
"""What every chain begins with, be it torn as early as its first line."""

UNAUTHORIZED: Final = 401
_DENIED: Final = frozenset({UNAUTHORIZED, 403, 429})


class AuditNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened: a line before it has its place. A text is empty where there is none."""

    time: float
    """Unix time in seconds."""
    event: AuditEvent
    principal: str = ""
    via: str = ""
    """The authenticator that vouched for the principal."""
    credential: str = ""
    """The credential's name, never the credential."""
    address: str = ""
    """Where the request came from."""
    method: str = ""
    cluster: str = ""
    kind: str = ""
    kernel_id: str = ""
    kernelspec: str = ""
    session_id: str = ""
    """A Jupyter session's id."""
    user: str = ""
    """To whom a kernel is granted, or is no longer."""
    request_id: str = ""
    status: int = 0
    """The answer's HTTP status, or the close code of a WebSocket; 0: there is none."""
    reason: str = ""


def act(kind: str) -> AuditEvent | None:
    """What a request of this kind does, where that leaves a line."""
    return _ACTS.get(kind)


def judge(kind: str, status: int, *, outside: bool = False) -> AuditEvent | None:
    """What the answer to a request of this kind says, where that leaves a line.

    ``kind`` is empty for a request that did not come so far. ``outside`` is one whose sender is
    known, on a cluster that is not for them: they read 404, as if there were none.
    """
    if status == UNAUTHORIZED:
        return AuditEvent.LOGIN_REFUSED
    if status in _DENIED or (outside and status == 404):  # noqa: PLR2004
        return AuditEvent.REFUSED
    event = act(kind)
    if event is None or status < 400:  # noqa: PLR2004
        return event
    return AuditEvent.REFUSED if status < 500 else AuditEvent.FAILED  # noqa: PLR2004


def who(identity: Identity | None) -> dict[str, str]:
    """The fields of a `AuditNote` that say who it was."""
    if identity is None:
        return {}
    return {
        "principal": str(identity.principal),
        "via": identity.via,
        "credential": identity.credential,
    }


class _Line(msgspec.Struct):
    """What is read of a line; a newer relay may write more."""

    seq: int
    prev: str
    time: str
    event: str


class _Hash:
    """SHA-256 of everything since the newest line began, but for the last line feed."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._empty = True

    def begin(self, line: bytes) -> None:
        """A whole line."""
        self._digest, self._empty = hashlib.sha256(line), False

    def tear(self, remains: bytes) -> None:
        """The beginning of a line that was never finished."""
        self._digest.update(remains if self._empty else b"\n" + remains)
        self._empty = False

    def __str__(self) -> str:
        return self._digest.hexdigest()


class HashChain:
    """Where the next line goes: after whatever stands in the file."""

    def __init__(self) -> None:
        self.seq = -1
        """The number of the newest line; -1 where there is none."""
        self.torn = False
        """Whether the end is torn, which the next line must say."""
        self._hash = _Hash()

    @classmethod
    def after(cls, tail: bytes) -> Self | None:
        """A chain that goes on after ``tail``, the end of a file; ``None`` where no line is in it.

        Of the last line its line feed may be missing, or more: it is torn then.
        """
        if not tail:
            return cls()
        chain = cls()
        for line in tail.removesuffix(b"\n").split(b"\n"):
            place = _read(line)
            if place is None:
                chain.tear(line)
            else:
                chain.seq, chain.torn = place.seq, False
                chain._hash.begin(line)
        begun = chain.seq >= 0 or _BEGINNING.startswith(tail[: len(_BEGINNING)])
        return chain if begun else None

    @property
    def hash(self) -> str:
        """What the next line will name, as 64 hex digits."""
        return str(self._hash)

    def seal(self, note: AuditNote, clean: Callable[[str], str]) -> bytes:
        """The line for ``note``, line feed and all.

        ``clean`` bounds and escapes each text. The chain stays where it is until `take`.
        """
        fields: dict[str, object] = {"seq": self.seq + 1, "prev": self.hash}
        for name in note.__struct_fields__:
            value = getattr(note, name)
            if name == "time":
                fields[name] = jupyter_time(value)
            elif value:
                fields[name] = clean(value) if isinstance(value, str) else value
        return msgspec.json.encode(fields) + b"\n"

    def take(self, line: bytes) -> None:
        """Go on after ``line``, which `seal` made and which is in the file now."""
        self.seq, self.torn = self.seq + 1, False
        self._hash.begin(line.removesuffix(b"\n"))

    def tear(self, remains: bytes) -> None:
        """Go on after the beginning of a line that was not finished."""
        self.torn = True
        self._hash.tear(remains)


class ChainBroken(NamedTuple):
    """Where a chain is not as it was written."""

    line: int
    """The first line that is wrong, counted from 1 in its file."""
    reason: str


class ChainVerifier:
    """Reads a chain file by file, the oldest first."""

    def __init__(self, noted: str = "") -> None:
        """``noted`` is a hash that was the newest once."""
        self.lines = 0
        """Lines that are in order."""
        self.torn = 0
        """Remains of lines that were never finished, and are noted as such."""
        self.first = -1
        """The number of the first line; not 0 where older files were left out."""
        self.begins = ""
        """The time of the first line."""
        self.ends = ""
        """The time of the newest line."""
        self.noted = False
        """Whether the noted hash was come across."""
        self._wanted = noted
        self._last = -1
        self._hash = _Hash()

    @property
    def hash(self) -> str:
        """What the next line would name, as 64 hex digits: to be noted elsewhere."""
        return str(self._hash)

    def read(self, lines: Iterable[bytes]) -> ChainBroken | None:
        """Go through a file's lines; returns the first that is wrong."""
        number = remains = 0
        for number, written in enumerate(lines, 1):
            line = written.removesuffix(b"\n")
            found = _read(line)
            if found is None:
                remains += 1
                self._hash.tear(line)
                continue
            broken = self._judge(found, number, remains)
            if broken is not None:
                return broken
            self._go_on(found, line, remains)
            remains = 0
        if remains:
            return ChainBroken(
                number - remains + 1, "this is no line of an audit log, or half of one"
            )
        return None

    def _judge(self, found: _Line, number: int, remains: int) -> ChainBroken | None:
        if remains and found.event != AuditEvent.LINE_TORN:
            return ChainBroken(number - remains, "this is no line of an audit log")
        if self.first < 0 and not remains and found.event not in _FIRST:
            return ChainBroken(number, "the lines before this one are missing")
        if self.first < 0 and found.seq > 0:
            # It goes on after a file that is not here to compare with.
            return None
        if found.seq != self._last + 1:
            where = f"this is line {found.seq} of its chain, and {self._last + 1} should be here"
            return ChainBroken(number, f"{where}: lines were taken out, put in or moved")
        if found.prev == self.hash:
            return None
        before = number - remains - 1
        if before < 1:
            return ChainBroken(number, "this is not what followed the end of the file before it")
        return ChainBroken(
            before, "this line was changed, or the hash of it that the next one names"
        )

    def _go_on(self, found: _Line, line: bytes, remains: int) -> None:
        if self.first < 0:
            self.first, self.begins = found.seq, found.time
        self._last, self.ends = found.seq, found.time
        self._hash.begin(line)
        self.lines += 1
        self.torn += remains
        self.noted = self.noted or self.hash == self._wanted


def number(line: bytes) -> int | None:
    """A line's number in its chain; ``None`` for what is no line."""
    found = _read(line)
    return None if found is None else found.seq


def _read(line: bytes) -> _Line | None:
    try:
        return msgspec.json.decode(line, type=_Line)
    except ValueError:  # UnicodeDecodeError is one too
        return None
