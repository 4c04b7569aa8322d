from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.bridge.messages import Channel
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.segments import JournalEntry, pack
from relay.holder.journal.store import Batch, Journal

SOMEBODY = b"8-bytes!"
LARGE = 1 << 20


def output(seq: int, size: int = 100) -> JournalEntry:
    return JournalEntry(seq, Channel.IOPUB, b"", (b"{}", str(seq).encode().ljust(size)))


def answer(seq: int) -> JournalEntry:
    return JournalEntry(seq, Channel.SHELL, SOMEBODY, (b"{}", str(seq).encode()))


RECORD = len(b"".join(pack(output(1))))


class Both:
    """A journal that keeps the last two to four outputs, and answers beside it."""

    def __init__(self, folder: Path, max_bytes: int = LARGE) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.seq = 0
        self.open()

    def open(self) -> None:
        self.journal = Journal.open(
            self.folder, max_bytes=4 * RECORD, segment_bytes=2 * RECORD, tail_bytes=0
        )
        self.answers = ReplyJournal(self.folder / "answers", self.max_bytes)

    def close(self) -> None:
        self.journal.close()
        self.answers.close()

    def say(self, kinds: str) -> None:
        """One message after the other: ``o`` is output, ``a`` an answer."""
        for kind in kinds:
            self.seq += 1
            entry = output(self.seq) if kind == "o" else answer(self.seq)
            self.journal.append([entry])
            self.answers.keep([entry] if kind == "a" else [])

    def batches(self, after: int = 0, max_bytes: int = LARGE) -> Iterator[Batch]:
        while (batch := self.answers.read(self.journal, after, max_bytes)).entries:
            yield batch
            after = batch.entries[-1].seq

    def found(self, after: int = 0) -> list[tuple[int, list[int]]]:
        """What is there, from gap to gap: how many are missing, and what comes then."""
        runs: list[tuple[int, list[int]]] = []
        for batch in self.batches(after):
            seqs = [entry.seq for entry in batch.entries]
            if batch.gap or not runs:
                runs.append((batch.gap, seqs))
            else:
                runs[-1][1].extend(seqs)
        return runs


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path / "journal")
    yield made
    made.close()


def test_without_a_gap_all_is_read_from_the_journal(both: Both) -> None:
    both.say("oaa")
    assert both.found() == [(0, [1, 2, 3])]
    assert both.found(3) == []


def test_an_answer_outlives_the_output_around_it(both: Both) -> None:
    both.say("ooaaooa" + "o" * 8)
    first = both.journal.first_seq
    last = first - 8, list(range(first, 16))
    assert both.found() == [(2, [3, 4]), (2, [7]), last]
    # Wherever a reader stands.
    assert both.found(3)[0] == (0, [4])
    assert both.found(5)[0] == (1, [7])
    assert both.found(7) == [last]


def test_an_answer_has_its_audience_and_its_words(both: Both) -> None:
    both.say("oa" + "o" * 8)
    assert next(both.batches()).entries == (answer(2),)


def test_answers_go_on_into_what_the_journal_has(both: Both) -> None:
    both.say("oooo" + "a" * 30)
    first = both.journal.first_seq
    assert first > 5
    assert both.found() == [(4, list(range(5, 35)))]


def test_a_hole_in_the_journal_has_its_answers_too(both: Both) -> None:
    both.say("o")
    # As on a full disk, where there was room for a few bytes only.
    both.answers.keep([answer(3)])
    both.seq = 5
    both.say("o")
    assert both.found() == [(0, [1]), (1, [3]), (2, [6])]


def test_answers_outlive_their_holder(both: Both) -> None:
    both.say("oa" + "o" * 8 + "a")
    before = both.found()
    both.close()
    both.open()
    assert both.found() == before
    assert both.answers.last_seq == 11


def test_the_oldest_answers_go_last_but_go(tmp_path: Path) -> None:
    both = Both(tmp_path, max_bytes=4 * RECORD)
    both.say("oa" * 50)
    assert both.answers.size <= 4 * RECORD
    (gap, (first, *_)), *_ = both.found()
    assert gap == first - 1
    assert 1 < first < both.journal.first_seq
    both.close()


class Model(RuleBasedStateMachine):
    """Whatever is said and whoever reads: answers come, each once, and every gap is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Both(Path(tempfile.mkdtemp(prefix="answers")))
        self.kinds = ""

    def teardown(self) -> None:
        self.both.close()
        shutil.rmtree(self.both.folder)

    @rule(kinds=st.text("oa", min_size=1, max_size=8))
    def say(self, kinds: str) -> None:
        self.both.say(kinds)
        self.kinds += kinds

    @rule()
    def die_and_open_again(self) -> None:
        self.both.close()
        self.both.open()

    @rule(data=st.data(), max_bytes=st.integers(0, 300))
    def read(self, data: st.DataObject, max_bytes: int) -> None:
        after = data.draw(st.integers(0, len(self.kinds)))
        first = self.both.journal.first_seq
        left = [
            seq
            for seq, kind in enumerate(self.kinds, 1)
            if seq > after and (kind == "a" or seq >= first)
        ]
        came: list[int] = []
        for batch in self.both.batches(after, max_bytes):
            seqs = [entry.seq for entry in batch.entries]
            assert batch.gap == seqs[0] - (came[-1] if came else after) - 1
            came += seqs
        assert came == left

    @invariant()
    def both_know_the_newest(self) -> None:
        assert self.both.answers.last_seq <= self.both.journal.last_seq == len(self.kinds)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
