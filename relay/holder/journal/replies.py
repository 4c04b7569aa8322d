"""What somebody waits for, kept for longer than output: replies, questions and states.

A kernel that prints a lot drives its oldest output out of the journal. If replies went with it, a
client that was away would wait for them for ever. So they are written down twice, the second time
into a journal of their own, which they share with nothing large. Where the journal has a gap,
readers get from there what is left: each message at its place, and the gaps between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from relay.holder.journal.store import Batch, Journal, JournalEntry

SHARE: Final = 8
"""Of ``journal.bytes``, an eighth is for answers. A cell's take about 2 KB."""
_SEGMENTS: Final = 4


class ReplyJournal:
    """The answers of one kernel, in a folder of their own, in ``max_bytes`` on disk.

    Raises ``OSError`` where that cannot be opened; later trouble with the disk is the journal's to
    tell.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._kept = Journal.open(
            folder, max_bytes=max_bytes, segment_bytes=max_bytes // _SEGMENTS, tail_bytes=0
        )

    @property
    def last_seq(self) -> int:
        """The newest answer's seq."""
        return self._kept.last_seq

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._kept.size

    def keep(self, entries: Sequence[JournalEntry]) -> None:
        """Keep some of what was just given to the journal."""
        self._kept.append(entries)

    def read(self, journal: Journal, after: int, max_bytes: int) -> Batch:
        """What follows ``after`` in the journal, or sooner here. Errors as `Journal.read`."""
        found, first = None, journal.first_seq
        if after + 1 >= first:
            found = journal.read(after, max_bytes)
            if not found.gap:
                return found
            first = found.entries[0].seq
        kept = self._kept.read(after, max_bytes)
        if kept.entries and kept.entries[0].seq < first:
            return kept
        return found or journal.read(after, max_bytes)

    def close(self) -> None:
        """Let go of the file."""
        self._kept.close()
