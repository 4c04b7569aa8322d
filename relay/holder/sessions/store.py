"""The log of what happens to clients and their requests: what a holder knows outlives it.

Each event is written down before anything is done about it, so that the next holder makes the same
table out of the same events: cursors, unfinished requests, and which of a client's messages have
been taken. The first line is a table, the others are events. Nothing is synced: the log survives
any process, not the host.

A message to clients counts only if the journal has it: a request is unfinished until its reply and
idle status are there.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from relay.bridge.events import (
    Action,
    Event,
    HolderLost,
    KernelLaunched,
    KernelLost,
    MessagePublished,
)
from relay.bridge.session import ClientSessions, SessionsSnapshot
from relay.bridge.session_table import SessionLimits
from relay.files import write_atomic
from relay.holder.sessions import version1

log = structlog.get_logger(__name__)

_REWRITE: Final = 1024 * 1024
"""Bytes of events after which the log is written anew, as a table, unless that is larger."""


class _Line(msgspec.Struct, frozen=True):
    """One event, when it happened, and the newest seq before it."""

    seq: int
    now: float
    event: Event


_LINE: Final = msgspec.json.Decoder(_Line)
_TABLE: Final = msgspec.json.Decoder(SessionsSnapshot)


class SessionStore:
    """A kernel's sessions and unfinished requests, logged as they change; made by ``open``.

    Disk trouble never raises: the table goes on in memory, and is written down once it is over.
    """

    def __init__(self, path: Path, sessions: ClientSessions) -> None:
        self.sessions = sessions
        self.failed: OSError | None = None
        """Why the log is behind; ``None`` while all is well."""
        self._path = path
        self._file: int | None = None
        self._table_size = 0
        self._size = 0
        """Bytes of events behind the table."""
        self._in_journal = sessions.seq

    @classmethod
    def open(
        cls,
        path: Path,
        limits: SessionLimits,
        seq: int,
        now: float,
        left: Sequence[version1.LeftRequest] = (),
    ) -> Self:
        """The table of a log, or a new one, with a new epoch, where there is none.

        ``seq`` is the journal's newest, ``left`` what a folder of version 1 knows of requests.
        No client is connected; those that were can come back.
        """
        sessions = _read(path, limits, seq, left)
        if sessions is None:
            sessions = ClientSessions(uuid.uuid4().hex[:12], limits, seq)
            version1.join(sessions.submissions.requests, left)
        sessions.seq = max(sessions.seq, seq)
        sessions.handle(HolderLost(), now)
        store = cls(path, sessions)
        store._rewrite()
        return store

    def handle(self, event: Event, now: float) -> list[Action]:
        """Write down an event and take it; perform what it returns, in order."""
        if self.sessions.is_noted(event):
            self._rewrite_if_due()
            self._note(_Line(self.sessions.seq, now, event))
        return self.sessions.handle(event, now)

    def in_journal(self, seq: int) -> None:
        """Note that the journal has all messages up to ``seq``."""
        self._in_journal = seq
        self._rewrite_if_due()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _rewrite_if_due(self) -> None:
        """Begin the log anew where it is long or broken.

        Never while messages are on their way to the journal: the table counts them as written.
        """
        is_due = self._file is None or self._size > max(_REWRITE, self._table_size)
        if is_due and self.sessions.seq <= self._in_journal:
            self._rewrite()

    def _note(self, line: _Line) -> None:
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
        data = msgspec.json.encode(self.sessions.dump()) + b"\n"
        try:
            write_atomic(self._path, data)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            self._fail(error)
        else:
            self.failed = None
        self._size, self._table_size = 0, len(data)

    def _fail(self, error: OSError) -> None:
        if self.failed is None:
            log.error("sessions_write_failed", problem=str(error))
        self.failed = error


def _read(
    path: Path, limits: SessionLimits, in_journal: int, left: Sequence[version1.LeftRequest]
) -> ClientSessions | None:
    """The table that a log makes, up to a last line that was cut off.

    ``in_journal`` is the journal's newest seq: what was to follow it never reached a client.
    """
    try:
        first, *lines = path.read_bytes().split(b"\n")
        snapshot = _TABLE.decode(first)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("sessions_damaged", problem=str(error))
        return None
    sessions = ClientSessions.restore(snapshot, limits)
    is_version1 = snapshot.requests is None
    requests = sessions.submissions.requests
    if is_version1:
        version1.add_waiting(requests, snapshot)
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        for each in lines:
            line = _LINE.decode(each)
            sessions.seq = max(sessions.seq, line.seq)
            if isinstance(line.event, MessagePublished) and line.seq >= in_journal:
                continue
            sessions.handle(line.event, line.now)
            if is_version1 and isinstance(line.event, KernelLost):
                # Version 1 does not note launches.
                sessions.handle(KernelLaunched(), line.now)
    if is_version1:
        version1.join(requests, left)
    return sessions
