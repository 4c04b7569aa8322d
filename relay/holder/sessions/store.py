"""The holder's memory of its clients, in a file: what a holder knows outlives it.

Each event is written down before anything is done about it, so that whoever holds the kernel next
makes the same sessions out of the same events: cursors, unanswered requests, and which of a
client's messages have been taken. Nothing is synced: it survives any process, not the host.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from relay.bridge.events import Action, Event, HolderLost, MessagePublished
from relay.bridge.messages import Channel
from relay.bridge.session import ClientSessions, SessionLimits, SessionsSnapshot
from relay.files import write_atomic

log = structlog.get_logger(__name__)

_REWRITE: Final = 1024 * 1024
"""Bytes of events after which the file is written anew, as a table."""


class _Line(msgspec.Struct, frozen=True):
    """One event, when it happened, and the newest seq before it."""

    seq: int
    now: float
    event: Event


_LINE: Final = msgspec.json.Decoder(_Line)
_TABLE: Final = msgspec.json.Decoder(SessionsSnapshot)


class SessionStore:
    """A kernel's sessions, written down as they change; made by ``open``.

    Disk trouble never raises: the sessions go on in memory, and are written down once it is over.
    """

    def __init__(self, path: Path, sessions: ClientSessions) -> None:
        self.sessions = sessions
        self.failed: OSError | None = None
        """Why the file is behind; ``None`` while all is well."""
        self._path = path
        self._file: int | None = None
        self._size = 0

    @classmethod
    def open(cls, path: Path, limits: SessionLimits, seq: int, now: float) -> Self:
        """The sessions in a file, or new ones, with a new epoch, where there are none.

        ``seq`` is the journal's newest. Nobody is connected: those who were can come back.
        """
        sessions = _read(path, limits, seq) or ClientSessions(uuid.uuid4().hex[:12], limits, seq)
        sessions.seq = max(sessions.seq, seq)
        sessions.handle(HolderLost(), now)
        memory = cls(path, sessions)
        memory._rewrite()
        return memory

    def handle(self, event: Event, now: float) -> list[Action]:
        """Write down an event and take it; perform what it returns, in order."""
        output = isinstance(event, MessagePublished) and event.channel is Channel.IOPUB
        if not output or (isinstance(event, MessagePublished) and event.farewell):
            # Other output changes nothing but the seq, which the journal knows.
            self._note(_Line(self.sessions.seq, now, event))
        return self.sessions.handle(event, now)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _note(self, line: _Line) -> None:
        if self._file is None or self._size > _REWRITE:
            self._rewrite()
        if self._file is None:
            return
        data = msgspec.json.encode(line) + b"\n"
        try:
            written = os.write(self._file, data)
        except OSError as error:
            written = 0
            self._fail(error)
        self._size += written
        if written < len(data):
            # Half a line: what follows it could not be read. The next event starts a new file.
            self.close()

    def _rewrite(self) -> None:
        self.close()
        try:
            write_atomic(self._path, msgspec.json.encode(self.sessions.dump()) + b"\n")
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            self._fail(error)
        else:
            self.failed = None
        self._size = 0

    def _fail(self, error: OSError) -> None:
        if self.failed is None:
            log.error("sessions_write_failed", problem=str(error))
        self.failed = error


def _read(path: Path, limits: SessionLimits, written: int) -> ClientSessions | None:
    """The sessions that a file tells of, up to a last line that was cut off.

    ``written`` is the journal's newest seq: what was to follow it never reached a client.
    """
    try:
        first, *lines = path.read_bytes().split(b"\n")
        sessions = ClientSessions.restore(_TABLE.decode(first), limits)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("sessions_damaged", problem=str(error))
        return None
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        for each in lines:
            line = _LINE.decode(each)
            sessions.seq = max(sessions.seq, line.seq)
            if not (isinstance(line.event, MessagePublished) and line.seq >= written):
                sessions.handle(line.event, line.now)
    return sessions
