from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay import limits
from relay.bridge.events import Append
from relay.bridge.messages import Channel, Message
from relay.holder.broker.outbound import Keep, Outbound
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Journal
from tests.virtualtime import settle

LIMIT = 2**20
SOMEBODY = b"8 bytes!"


class Reader:
    """What a subscriber hears."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.woken: list[int] = []
        """The newest seq in the journal at each time."""
        self.ended: tuple[int, str] | None = None

    def wake(self) -> None:
        self.woken.append(self._journal.last_seq)

    def end(self, code: int, reason: str) -> None:
        self.ended = code, reason


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "journal"
        self.journal = Journal.open(
            self.folder, max_bytes=LIMIT, segment_bytes=300, tail_bytes=LIMIT
        )
        self.replies = ReplyJournal(folder / "answers", LIMIT)
        self.written: list[int] = []
        self.trouble = 0
        self.outbound = Outbound(self.journal, self.replies, self.written.append, self._on_trouble)
        self.reader = Reader(self.journal)
        subscriber: Any = self.reader
        self.outbound.readers[1] = subscriber

    def _on_trouble(self) -> None:
        self.trouble += 1

    def append(self, *seqs: int, audience: bytes = b"", keep: Keep = Keep.REPLIES) -> None:
        for seq in seqs:
            parts = [b"{}", b"{}", b"{}", b"x" * 100]
            message = Message.from_parts(Channel.IOPUB, [memoryview(part) for part in parts])
            self.outbound.append(Append(seq, audience), message, keep)


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_what_comes_in_one_turn_is_one_batch_and_then_read(bench: Bench) -> None:
    bench.append(1, 2, 3)
    assert bench.journal.last_seq == 0
    await settle()
    bench.append(4)
    await settle()
    assert bench.written == [3, 4]
    # Nobody is woken for what is not there.
    assert bench.reader.woken == [3, 4]
    (first, *_) = bench.outbound.read(0, LIMIT).entries
    assert all(type(part) is bytes for part in first.parts)


@pytest.mark.parametrize(
    ("keep", "audience", "kept"),
    [
        (Keep.ALWAYS, b"", 1),
        (Keep.REPLIES, SOMEBODY, 1),
        (Keep.REPLIES, b"", 0),
        (Keep.NEVER, SOMEBODY, 0),
    ],
)
async def test_what_somebody_waits_for_is_kept_for_longer(
    bench: Bench, keep: Keep, audience: bytes, kept: int
) -> None:
    bench.append(1, audience=audience, keep=keep)
    bench.outbound.flush()
    assert bench.replies.last_seq == kept
    assert bench.journal.last_seq == 1


async def test_the_end_is_told_behind_the_last_message(bench: Bench) -> None:
    bench.append(1)
    bench.outbound.end_all(1000, "over")
    assert bench.reader.ended == (1000, "over")
    assert bench.reader.woken == [1]
    bench.outbound.flush()
    assert bench.written == [1]


async def test_a_disk_in_trouble_is_told_once_and_once_more_when_it_is_over(bench: Bench) -> None:
    aside = bench.folder.rename(bench.folder.with_name("aside"))
    for seq in (1, 2):
        bench.append(seq)
        bench.outbound.flush()
    troubles = [bench.trouble]
    # Readers that keep up miss nothing.
    assert [each.seq for each in bench.outbound.read(0, LIMIT).entries] == [1, 2]
    aside.rename(bench.folder)
    bench.append(3)
    bench.outbound.flush()
    assert [*troubles, bench.trouble] == [1, 2]
    bench.outbound.close()


@pytest.mark.parametrize(("setting", "hits"), [("journal.bytes", 1), (None, 0)])
async def test_gaps_are_counted_and_so_is_the_setting(
    bench: Bench, setting: str | None, hits: int
) -> None:
    before = limits.counts["journal.bytes"]
    bench.outbound.note_gap(7, setting)
    assert (bench.outbound.gaps, bench.outbound.gap_messages) == (1, 7)
    assert limits.counts["journal.bytes"] == before + hits
