"""The journal: every message of a kernel in files, the newest ones in memory too.

Append-only segments in one folder, bounded by bytes: the oldest go first, and a reader who still
wanted them is told exactly how many entries it missed. There is one owner, who alone writes and
reads (whoever holds the kernel folder's lock), in one thread. Nothing is synced: what was written
survives the death of any process, not of the host.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from relay.holder.journal.segments import Collector, JournalEntry, Segment, pack, write_all

__all__ = ["Batch", "Journal", "JournalEntry"]

_POSITIONS: Final = 256
"""Readers whose place in a file is remembered."""
_ENTRY_OVERHEAD: Final = 250
_PART_OVERHEAD: Final = 50
"""Bytes of memory that an entry and each of its parts take beyond what they hold, about."""


class Batch(NamedTuple):
    """What a read found."""

    entries: tuple[JournalEntry, ...]
    """In order, and without a gap between them; empty when there is nothing newer."""
    gap: int
    """How many entries are missing between what was asked for and the first one here."""


class Journal:
    """One kernel's journal; made by ``open``.

    Disk trouble never raises out of ``append``: the entries are in memory for readers that keep
    up, ``failed`` holds the error until a later append gets through, and ``unsaved`` counts what
    readers of the past will miss.
    """

    def __init__(self, folder: Path, max_bytes: int, segment_bytes: int, tail_bytes: int) -> None:
        self.failed: OSError | None = None
        """Why the latest entries are not on disk; ``None`` while all is well."""
        self.unsaved = 0
        """Entries that never reached the disk, since ``open``."""
        self.last_seq = 0
        """The newest entry's seq, 0 before the first."""
        self.size = 0
        """Bytes on disk."""
        self.dropped = 0
        """The last seq that went to make room; what is missing beyond it was never written."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []
        self._file: int | None = None
        self._tail = _Tail(tail_bytes)
        self._positions: OrderedDict[int, tuple[Segment, int]] = OrderedDict()

    @classmethod
    def open(cls, folder: Path, *, max_bytes: int, segment_bytes: int, tail_bytes: int) -> Self:
        """The journal in ``folder``, made if it is not there; an unfinished last record is cut.

        ``max_bytes`` bounds the files together, ``segment_bytes`` one file (a single append may
        exceed it), ``tail_bytes`` the memory for the newest entries (one of them is kept even if
        it is larger). Raises ``OSError``.
        """
        journal = cls(folder, max_bytes, segment_bytes, tail_bytes)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal._segments.extend(Segment.all_in(folder))
        journal._resume()
        journal.size = sum(segment.size for segment in journal._segments)
        journal._note_dropped()
        journal._drop_oldest()
        return journal

    @property
    def first_seq(self) -> int:
        """The oldest entry's seq; ``last_seq + 1`` when there is none."""
        oldest = [segment.first_seq for segment in self._segments[:1]]
        newest = [] if self._tail.first is None else [self._tail.first]
        return min([self.last_seq + 1, *oldest, *newest])

    def append(self, entries: Sequence[JournalEntry]) -> None:
        """Keep ``entries``, whose seqs rise from beyond ``last_seq``.

        One write for all of them. Raises ``ValueError``, and keeps nothing, where they do not
        rise or do not fit the format; never ``OSError`` (see ``failed``).
        """
        pieces: list[bytes] = []
        last = self.last_seq
        for entry in entries:
            if entry.seq <= last:
                raise ValueError(f"entry {entry.seq} after {last}")
            last = entry.seq
            pieces += pack(entry)
        if not pieces:
            return
        self.last_seq = last
        self._tail.add(entries)
        try:
            self._write(pieces, entries[0].seq)
        except OSError as error:
            self.failed = error
            self.unsaved += len(entries)
        else:
            self.failed = None
            self._drop_oldest()

    def read(self, after: int, max_bytes: int, max_entries: int = 4096) -> Batch:
        """The entries that follow ``after``, as many as the bounds allow, but one in any case.

        ``max_bytes`` counts the parts' bytes. What follows a gap is left to the next read, so that
        ``gap`` is all that is missing. Raises ``OSError`` when a file cannot be read.
        """
        if after >= self.last_seq:
            return Batch((), 0)
        collector = Collector(after, max_bytes, max_entries)
        first = self._tail.first
        if first is None or after + 1 < first:
            collector.before = first
            self._read_files(collector)
            collector.before = None
        if not collector.entries:
            self._tail.read(collector)
        entries = tuple(collector.entries)
        return Batch(entries, entries[0].seq - after - 1 if entries else 0)

    def close(self) -> None:
        """Let go of the file; reading and appending are over."""
        self._close_file()

    # Writing.

    def _resume(self) -> None:
        """Find where the last owner stopped, and make sure that appending goes on right there."""
        while self._segments:
            segment = self._segments[-1]
            last = segment.repair()
            # The name alone tells that everything before it had been written once.
            self.last_seq = max(self.last_seq, segment.first_seq - 1, last or 0)
            if last is not None:
                self._file = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                return
            segment.path.unlink()
            self._segments.pop()

    def _write(self, pieces: list[bytes], seq: int) -> None:
        size = sum(map(len, pieces))
        segment = self._segment_for(size, seq)
        assert self._file is not None  # noqa: S101 -- there is one for the last segment
        try:
            write_all(self._file, pieces, size)
        except OSError:
            self._take_back()
            raise
        segment.grew(seq, size)
        self.size += size

    def _segment_for(self, size: int, seq: int) -> Segment:
        """The last segment if ``size`` more bytes fit into it, else a new one."""
        if self._file is not None and self._segments[-1].size + size <= self._segment_bytes:
            return self._segments[-1]
        self._close_file()
        segment = Segment(self._folder, seq)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(segment.path, flags, 0o600)
        self._segments.append(segment)
        return segment

    def _take_back(self) -> None:
        """Undo half a write, so that what is appended later can be found behind what was."""
        assert self._file is not None  # noqa: S101 -- something was just written to it
        segment = self._segments[-1]
        try:
            os.ftruncate(self._file, segment.size)
        except OSError:
            self._close_file()  # nobody reads beyond segment.size; go on in a new segment
        if segment.size == 0:
            self._close_file()
            self._segments.pop()
            with contextlib.suppress(OSError):
                segment.path.unlink()

    def _drop_oldest(self) -> None:
        """Delete whole segments until the rest fits, but never the last one."""
        while self.size > self._max_bytes and len(self._segments) > 1:
            segment = self._segments.pop(0)
            self.size -= segment.size
            with contextlib.suppress(OSError):
                segment.path.unlink()
            self._note_dropped()

    def _note_dropped(self) -> None:
        if self._segments:
            self.dropped = self._segments[0].first_seq - 1

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # Reading.

    def _read_files(self, collector: Collector) -> None:
        known, start = self._positions.get(collector.after, (None, None))
        index = bisect_right(self._segments, collector.after + 1, key=_first_seq) - 1
        for segment in self._segments[max(index, 0) :]:
            if not collector.wants(max(segment.first_seq, collector.after + 1), 0):
                break
            # If somebody took the file away, that is a gap like any other.
            with contextlib.suppress(FileNotFoundError):
                end = segment.read(collector, start if segment is known else None)
                self._remember(collector.after, segment, end)

    def _remember(self, after: int, segment: Segment, end: int) -> None:
        self._positions[after] = (segment, end)
        self._positions.move_to_end(after)
        if len(self._positions) > _POSITIONS:
            self._positions.popitem(last=False)


def _first_seq(segment: Segment) -> int:
    return segment.first_seq


class _Tail:
    """The newest entries in memory, at least the very newest, else at most ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: dict[int, JournalEntry] = {}
        self._order: deque[tuple[int, int]] = deque()  # seq and cost

    @property
    def first(self) -> int | None:
        """The oldest seq, ``None`` when nothing was ever added."""
        return self._order[0][0] if self._order else None

    def add(self, entries: Sequence[JournalEntry]) -> None:
        for entry in entries:
            cost = entry.size + _ENTRY_OVERHEAD + _PART_OVERHEAD * len(entry.parts)
            self._entries[entry.seq] = entry
            self._order.append((entry.seq, cost))
            self._bytes += cost
        while self._bytes > self._max_bytes and len(self._order) > 1:
            seq, cost = self._order.popleft()
            del self._entries[seq]
            self._bytes -= cost

    def read(self, collector: Collector) -> None:
        seq = collector.after + 1
        if seq not in self._entries:
            seq = next((each for each, _ in self._order if each > seq), seq)
        while (entry := self._entries.get(seq)) and collector.wants(seq, entry.size):
            collector.take(entry)
            seq += 1
