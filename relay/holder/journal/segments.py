"""One file of the journal: what a record looks like on disk, and how a file is read.

A record is a prefix (u32 length of the body, u32 CRC-32 of the body) and its body: u64 seq,
u8 channel, u8 length of the audience, the audience, u32 number of parts, a u32 length for each,
the parts. All numbers are little-endian. Records follow each other without anything between them.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from relay.bridge.messages import Channel

_PREFIX: Final = struct.Struct("<II")
_HEAD: Final = struct.Struct("<QBB")
_SEQ: Final = struct.Struct("<Q")
_COUNT: Final = struct.Struct("<I")
_SMALLEST_BODY: Final = _HEAD.size + _COUNT.size
_LARGEST_BODY: Final = 2**32 - 1
_LARGEST_AUDIENCE: Final = 2**8 - 1
_CHANNELS: Final = tuple(Channel)

_MARK_BYTES: Final = 256 * 1024
"""Bytes between two places of a file whose seq is remembered."""
_WINDOW_BYTES: Final = 256 * 1024
"""Bytes that are read from a file at once at most, unless a record is longer."""


_CHUNK_BYTES: Final = 1024 * 1024
"""Bytes up to which it is cheaper to copy pieces together than to write them one by one."""


class JournalEntry(NamedTuple):
    """One message, kernel to client, as the journal keeps it."""

    seq: int
    """Its number, rising, over all channels of the kernel."""
    channel: Channel
    audience: bytes
    """The session it is for, a key of 8 bytes; empty: every session."""
    parts: tuple[bytes, ...]
    """Header, parent header, metadata, content, then the buffers."""

    @property
    def size(self) -> int:
        """Bytes of all parts together."""
        return sum(map(len, self.parts))


def pack(entry: JournalEntry) -> tuple[bytes, ...]:
    """The record of ``entry``, in pieces that only need joining.

    Raises ``ValueError`` for what does not fit the format: an audience over 255 bytes, a message
    of 4 GiB.
    """
    count = len(entry.parts)
    size = _HEAD.size + len(entry.audience) + _COUNT.size * (count + 1) + entry.size
    if size > _LARGEST_BODY or len(entry.audience) > _LARGEST_AUDIENCE:
        raise ValueError("too large for the journal")
    head = (
        _HEAD.pack(entry.seq, entry.channel, len(entry.audience))
        + entry.audience
        + _numbers(count + 1).pack(count, *map(len, entry.parts))
    )
    crc = zlib.crc32(head)
    for part in entry.parts:
        crc = zlib.crc32(part, crc)
    return _PREFIX.pack(size, crc), head, *entry.parts


def unpack(body: memoryview) -> JournalEntry:
    """The entry in a record's body. Raises ``ValueError`` for a body that ``pack`` never wrote."""
    try:
        seq, channel, audience_size = _HEAD.unpack_from(body)
        at = _HEAD.size + audience_size
        audience = bytes(body[_HEAD.size : at])
        (count,) = _COUNT.unpack_from(body, at)
        lengths = _numbers(count).unpack_from(body, at + _COUNT.size)
    except struct.error as error:
        raise ValueError("the record is too short for what it says") from error
    at += _COUNT.size * (count + 1)
    if at + sum(lengths) != len(body) or channel >= len(_CHANNELS):
        raise ValueError("the record is not what it says")
    parts = []
    for length in lengths:
        parts.append(bytes(body[at : at + length]))
        at += length
    return JournalEntry(seq, _CHANNELS[channel], audience, tuple(parts))


@lru_cache(maxsize=64)
def _numbers(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")


class SegmentRecord(NamedTuple):
    """A record that was found in a file, its checksum right."""

    start: int
    """Byte of the file where it begins."""
    end: int
    """Byte of the file after its last."""
    seq: int
    body: memoryview


class Collector:
    """Takes entries in order until a bound is reached or one is missing between two."""

    def __init__(self, after: int, max_bytes: int, max_entries: int) -> None:
        self.entries: list[JournalEntry] = []
        self.after = after
        """The seq of the last entry taken, at first the one to begin behind."""
        self.before: int | None = None
        """If set, an entry with this seq or a higher one is not taken."""
        self._left = max_bytes
        self._max_entries = max_entries

    @property
    def window(self) -> int:
        """Bytes of a file worth reading at once."""
        return min(max(self._left, 4096) + 4096, _WINDOW_BYTES)

    def wants(self, seq: int, size: int) -> bool:
        """Tell whether an entry of this seq is next and ``size`` bytes fit; a first one always."""
        if self.before is not None and seq >= self.before:
            return False
        return not self.entries or (
            seq == self.after + 1 and size <= self._left and len(self.entries) < self._max_entries
        )

    def take(self, entry: JournalEntry) -> None:
        """Add an entry that is wanted."""
        self.entries.append(entry)
        self.after = entry.seq
        self._left -= entry.size


class Segment:
    """One file of the journal, named after its first seq.

    ``size`` is how many of its bytes are good: what is behind them is never read.
    """

    def __init__(self, folder: Path, first_seq: int, size: int = 0) -> None:
        self.first_seq = first_seq
        self.path = folder / f"{first_seq:016x}.log"
        self.size = size
        self._marks: list[tuple[int, int]] = [(first_seq, 0)]

    @classmethod
    def all_in(cls, folder: Path) -> list[Segment]:
        """The segments that are in ``folder``, oldest first; other files do not matter."""
        found = []
        for path in folder.glob("*.log"):
            with contextlib.suppress(ValueError):
                segment = cls(folder, int(path.stem, 16), path.stat().st_size)
                if segment.path == path:
                    found.append(segment)
        return sorted(found, key=lambda segment: segment.first_seq)

    def grew(self, seq: int, size: int) -> None:
        """Note that ``size`` bytes were written behind the last, ``seq`` the first in them."""
        self._mark(seq, self.size)
        self.size += size

    def repair(self) -> int | None:
        """Cut off what is behind the last whole record, as after a death while writing.

        Returns the last seq, or ``None`` when nothing is left. Raises ``OSError``.
        """
        last, end = None, 0
        with self._open(0, _WINDOW_BYTES) as cursor:
            while record := cursor.next():
                self._mark(record.seq, record.start)
                last, end = record.seq, record.end
        if end < self.size:
            os.truncate(self.path, end)
            self.size = end
        return last

    def read(self, collector: Collector, start: int | None = None) -> int:
        """Give ``collector`` what it wants of this file; returns the byte to go on at.

        ``start`` is such a byte from a read that ended with the same entry. Raises ``OSError``, of
        which ``FileNotFoundError`` says that somebody took the file away.
        """
        end = self._find(collector.after) if start is None else start
        # Where the place is known, what a batch takes is read at once, and not much more.
        window = _WINDOW_BYTES if start is None else collector.window
        with self._open(end, window) as cursor:
            # The length is looked at first: a long record is not read in order to be refused.
            while collector.wants(collector.after + 1, cursor.length) and (record := cursor.next()):
                self._mark(record.seq, record.start)
                if record.seq > collector.after:
                    entry = _unpack_if_possible(record.body)
                    if entry is None:
                        continue
                    if not collector.wants(entry.seq, entry.size):
                        break
                    collector.take(entry)
                end = record.end
        return end

    def _find(self, after: int) -> int:
        """A byte where a record begins, the nearest known one that is not behind ``after + 1``."""
        index = bisect_right(self._marks, after + 1, key=lambda mark: mark[0])
        return self._marks[max(index - 1, 0)][1]

    def _mark(self, seq: int, offset: int) -> None:
        if offset >= self._marks[-1][1] + _MARK_BYTES:
            self._marks.append((seq, offset))

    @contextlib.contextmanager
    def _open(self, at: int, window: int) -> Iterator[_Cursor]:
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield _Cursor(file, at, self.size, window)
        finally:
            os.close(file)


class _Cursor:
    """A place in a file, between two records."""

    def __init__(self, file: int, at: int, end: int, window: int) -> None:
        self._file = file
        self._at = at
        self._end = end
        self._window = window
        self._base = 0
        self._data = memoryview(b"")

    @property
    def length(self) -> int:
        """Bytes of the next record's body, 0 where there is none."""
        prefix = self._get(self._at, _PREFIX.size)
        return _PREFIX.unpack(prefix)[0] if prefix else 0

    def next(self) -> SegmentRecord | None:
        """The next good record, ``None`` when there is none any more.

        A damaged record is stepped over by its length. If that is damaged too, no good record
        will be found behind it, for a wrong step hits no right checksum.
        """
        while prefix := self._get(self._at, _PREFIX.size):
            length, crc = _PREFIX.unpack(prefix)
            start = self._at
            body = self._get(start + _PREFIX.size, length)
            if body is None or length < _SMALLEST_BODY:
                return None
            self._at = start + _PREFIX.size + length
            if zlib.crc32(body) == crc:
                return SegmentRecord(start, self._at, _SEQ.unpack_from(body)[0], body)
        return None

    def _get(self, at: int, length: int) -> memoryview | None:
        """Bytes of the file, ``None`` when it does not have them all."""
        if at + length > self._end:
            return None
        if at < self._base or at + length > self._base + len(self._data):
            size = min(max(length, self._window), self._end - at)
            self._base, self._data = at, memoryview(os.pread(self._file, size, at))
        found = self._data[at - self._base : at - self._base + length]
        return found if len(found) == length else None


def _unpack_if_possible(body: memoryview) -> JournalEntry | None:
    with contextlib.suppress(ValueError):
        return unpack(body)
    return None


def write_all(file: int, pieces: Sequence[bytes], size: int) -> None:
    """Write ``pieces``, ``size`` bytes together, in one call of the system unless they are large.

    Raises ``OSError``; some of the bytes may have been written then.
    """
    chunks = [b"".join(pieces)] if size <= _CHUNK_BYTES else _chunks(pieces)
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(file, view) :]


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join what is small, but do not copy a large piece just to have it beside the others."""
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < _CHUNK_BYTES:
            small.append(piece)
        else:
            yield b"".join(small)
            small = []
            yield piece
    yield b"".join(small)
