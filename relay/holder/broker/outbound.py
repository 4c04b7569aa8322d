"""The way from the kernel to its clients: into the journal, then readers are woken.

Every message is in the journal before any reader learns of it; readers then read from the journal,
each at its own pace, so that the slowest of them delays no other and costs no memory.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Protocol

import structlog

from relay import limits
from relay.bridge.events import Append, StartReading
from relay.bridge.messages import Message
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Batch, Journal, JournalEntry

log = structlog.get_logger(__name__)


class JournalSubscriber(Protocol):
    """A connection as the broker sees it."""

    def start(self, action: StartReading) -> None:
        """Begin to read."""

    def end(self, code: int, reason: str) -> None:
        """Close the client's WebSocket, once it has read what is in the journal."""

    def acknowledge(self, number: int) -> None:
        """Tell the edge that a client message arrived."""

    def wake(self) -> None:
        """There is more in the journal."""

    def cut(self, reason: str) -> None:
        """Close the client's WebSocket, whatever it has not read yet: it may not any more."""


class Keep(enum.Enum):
    """Whether a message is kept for longer than output (`ReplyJournal`)."""

    NEVER = enum.auto()
    REPLIES = enum.auto()
    """If it is for one session."""
    ALWAYS = enum.auto()


class Outbound:
    """Writes the journal in batches, and wakes its readers.

    ``on_written`` is called with the newest seq after each batch, ``on_trouble`` when the journal
    cannot be written, and when it can again.
    """

    def __init__(
        self,
        journal: Journal,
        replies: ReplyJournal,
        on_written: Callable[[int], None],
        on_trouble: Callable[[], None],
    ) -> None:
        self.journal = journal
        self.replies = replies
        self.readers: dict[int, JournalSubscriber] = {}
        """By the holder's number for each connection."""
        self.gaps = 0
        self.gap_messages = 0
        self._on_written = on_written
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._unwritten: list[JournalEntry] = []
        self._unwritten_replies: list[JournalEntry] = []
        self._disk_failed = False

    def append(self, action: Append, message: Message, keep: Keep) -> None:
        """Write a message with the next batch, in this turn of the event loop."""
        parts = tuple(map(bytes, message.parts))
        entry = JournalEntry(action.seq, message.channel, action.audience, parts)
        self._unwritten.append(entry)
        if keep is Keep.ALWAYS or (keep is Keep.REPLIES and action.audience):
            self._unwritten_replies.append(entry)
        if len(self._unwritten) == 1:
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what there is at once."""
        if not self._unwritten:
            return
        entries, self._unwritten = self._unwritten, []
        self.journal.append(entries)
        replies, self._unwritten_replies = self._unwritten_replies, []
        self.replies.keep(replies)
        self._on_written(entries[-1].seq)
        self._note_disk()
        for reader in self.readers.values():
            reader.wake()

    def _note_disk(self) -> None:
        """Log when the journal cannot be written, and when it can again; not every message."""
        failed = self.journal.failed is not None
        if failed != self._disk_failed:
            self._disk_failed = failed
            if failed:
                log.error("journal_write_failed", problem=str(self.journal.failed))
            else:
                log.info("journal_write_recovered", unsaved=self.journal.unsaved)
            self._on_trouble()

    def read(self, after: int, max_bytes: int) -> Batch:
        """What a session is to read behind ``after``: the journal, and replies in its gaps."""
        return self.replies.read(self.journal, after, max_bytes)

    def note_gap(self, messages: int, setting: str | None = "journal.bytes") -> None:
        """A reader misses messages, because of ``setting`` or, without one, of the disk."""
        log.warning("journal_gap", messages=messages, setting=setting)
        self.gaps += 1
        self.gap_messages += messages
        if setting is not None:
            limits.record(setting)

    def end_all(self, code: int, reason: str) -> None:
        """Close every client's WebSocket once it has read what is in the journal."""
        self.flush()
        for reader in list(self.readers.values()):
            reader.end(code, reason)

    def close(self) -> None:
        """Let go of the files."""
        self.journal.close()
        self.replies.close()
