from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.bridge.messages import Channel
from relay.holder.journal.segments import pack
from relay.holder.journal.store import Batch, Journal, JournalEntry

LARGE = 1 << 30


def entry(seq: int, size: int = 10) -> JournalEntry:
    content = f"{seq:06}".encode().ljust(size, b".")
    return JournalEntry(
        seq, Channel(seq % 4), b"8-bytes!" if seq % 3 else b"someone.", (b"{}", b"", content)
    )


def entries(first: int, last: int, size: int = 10) -> list[JournalEntry]:
    return [entry(seq, size) for seq in range(first, last + 1)]


RECORD = len(b"".join(pack(entry(1))))


def open_journal(
    folder: Path, *, max_bytes: int = LARGE, segment_bytes: int = LARGE, tail_bytes: int = LARGE
) -> Journal:
    return Journal.open(
        folder, max_bytes=max_bytes, segment_bytes=segment_bytes, tail_bytes=tail_bytes
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernel" / "journal"


def read_on(journal: Journal, after: int = 0, **bounds: int) -> Iterator[Batch]:
    """Read batch after batch until there is nothing newer."""
    while True:
        batch = journal.read(after, **({"max_bytes": LARGE} | bounds))
        if not batch.entries:
            return
        yield batch
        after = batch.entries[-1].seq


def trouble(journal: Journal) -> int | None:
    return None if journal.failed is None else journal.failed.errno


def everything(journal: Journal, after: int = 0, **bounds: int) -> list[JournalEntry]:
    return [each for batch in read_on(journal, after, **bounds) for each in batch.entries]


def test_a_new_journal_is_empty(folder: Path) -> None:
    journal = open_journal(folder)
    assert (journal.first_seq, journal.last_seq, journal.size) == (1, 0, 0)
    assert journal.read(0, 100) == Batch((), 0)
    journal.append([])
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700
    journal.close()


@pytest.mark.parametrize("tail_bytes", [1, LARGE])
def test_what_is_appended_is_read_in_order(folder: Path, tail_bytes: int) -> None:
    journal = open_journal(folder, tail_bytes=tail_bytes)
    journal.append(entries(1, 3))
    journal.append(entries(4, 10))
    assert everything(journal) == entries(1, 10)
    assert everything(journal, after=7) == entries(8, 10)
    assert journal.read(10, LARGE) == journal.read(99, LARGE) == Batch((), 0)
    assert (journal.first_seq, journal.last_seq) == (1, 10)
    journal.close()


@pytest.mark.parametrize("tail_bytes", [1, LARGE])
def test_a_batch_keeps_to_its_bounds_but_for_one_entry(folder: Path, tail_bytes: int) -> None:
    journal = open_journal(folder, tail_bytes=tail_bytes)
    journal.append(entries(1, 50))
    size = entry(1).size
    assert len(journal.read(0, 1).entries) == 1
    assert len(journal.read(0, 0).entries) == 1
    assert len(journal.read(0, LARGE, 7).entries) == 7
    for count in (2, 5):
        batch = journal.read(3, count * size + size - 1)
        # From a file an entry counts with its record's own bytes.
        assert 1 <= len(batch.entries) <= count
        assert batch.entries == tuple(entries(4, 3 + len(batch.entries)))
    journal.close()


def test_one_append_is_one_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal(folder)
    calls = []
    write = os.write

    def counting(file: int, data: bytes) -> int:
        calls.append(len(data))
        return write(file, data)

    monkeypatch.setattr(os, "write", counting)
    journal.append(entries(1, 500))
    journal.append(entries(501, 501))
    assert calls == [500 * RECORD, RECORD]
    journal.close()


@pytest.mark.parametrize("wrong", [[2, 2], [3, 2], [1], [0], [2, 4, 3]])
def test_seqs_that_do_not_rise_are_refused_and_nothing_is_kept(
    folder: Path, wrong: list[int]
) -> None:
    journal = open_journal(folder)
    journal.append(entries(1, 1))
    with pytest.raises(ValueError, match="after"):
        journal.append([entry(seq) for seq in wrong])
    assert everything(journal) == entries(1, 1)
    assert journal.size == RECORD
    journal.append(entries(2, 2))
    journal.close()


def test_files_are_private_and_not_inherited(folder: Path) -> None:
    journal = open_journal(folder)
    journal.append(entries(1, 1))
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert journal._file is not None
    assert not os.get_inheritable(journal._file)
    journal.close()
    assert journal._file is None


# Segments.


def test_segments_rotate_before_they_are_too_large(folder: Path) -> None:
    journal = open_journal(folder, segment_bytes=3 * RECORD)
    for seq in range(1, 8):
        journal.append([entry(seq)])
    journal.append(entries(8, 20))  # one append is never split
    journal.append(entries(21, 21))
    sizes = {file.name: file.stat().st_size // RECORD for file in sorted(folder.iterdir())}
    assert sizes == {
        "0000000000000001.log": 3,
        "0000000000000004.log": 3,
        "0000000000000007.log": 1,
        "0000000000000008.log": 13,
        "0000000000000015.log": 1,
    }
    assert journal.size == 21 * RECORD
    journal.close()


@pytest.mark.parametrize("max_bytes", [1, RECORD, 4 * RECORD, LARGE])
@pytest.mark.parametrize("max_entries", [1, 2, 1000])
def test_reads_cross_segment_boundaries(folder: Path, max_bytes: int, max_entries: int) -> None:
    journal = open_journal(folder, segment_bytes=3 * RECORD, tail_bytes=1)
    for seq in range(1, 30):
        journal.append([entry(seq)])
    for after in range(29):
        bounds = {"max_bytes": max_bytes, "max_entries": max_entries}
        batches = list(read_on(journal, after, **bounds))
        assert [each for batch in batches for each in batch.entries] == entries(after + 1, 29)
        assert all(batch.gap == 0 for batch in batches)
    # Up to where the tail begins, one batch holds what several files do.
    assert journal.read(0, LARGE).entries == tuple(entries(1, 28))
    journal.close()


def test_the_oldest_segments_go_and_the_gap_is_exact(folder: Path) -> None:
    journal = open_journal(folder, max_bytes=9 * RECORD, segment_bytes=3 * RECORD, tail_bytes=1)
    for seq in range(1, 101):
        journal.append([entry(seq)])
        assert journal.size == sum(file.stat().st_size for file in folder.iterdir())
        assert journal.size <= 9 * RECORD
        assert journal.first_seq <= max(1, seq - 6)
        for after in range(seq):
            batch = journal.read(after, LARGE)
            expected = max(after + 1, journal.first_seq)
            assert batch.entries[0] == entry(expected)
            assert batch.gap == expected - after - 1
    journal.close()


def test_the_last_segment_stays_even_if_it_is_too_large(folder: Path) -> None:
    journal = open_journal(folder, max_bytes=5, segment_bytes=5, tail_bytes=1)
    journal.append(entries(1, 10))
    assert everything(journal) == entries(1, 10)
    journal.append(entries(11, 12))
    assert journal.read(0, LARGE) == Batch((entry(11),), 10)
    assert len(list(folder.iterdir())) == 1
    journal.close()


def test_a_reader_far_behind_reads_from_files_while_the_writer_goes_on(folder: Path) -> None:
    journal = open_journal(folder, segment_bytes=20 * RECORD, tail_bytes=4000)
    written = seen = 0
    batches = 0
    while seen < 2000:
        if written < 2000:
            journal.append(entries(written + 1, written + 8))
            written += 8
        batch = journal.read(seen, LARGE, 5)
        assert batch.gap == 0
        assert batch.entries == tuple(entries(seen + 1, seen + len(batch.entries)))
        seen += len(batch.entries)
        batches += 1
    assert batches >= 2000 / 8 * 1.5  # it was behind
    assert everything(journal) == entries(1, 2000)
    journal.close()


def test_a_reader_that_goes_on_does_not_search_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(folder, tail_bytes=1)
    journal.append(entries(1, 3000, 1000))  # 3 MB, in one append: nowhere a place remembered
    total = 0
    pread = os.pread

    def counting(file: int, size: int, at: int) -> bytes:
        nonlocal total
        total += size
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", counting)
    readers = [0] * 5
    while readers[0] < 3000:
        for reader, after in enumerate(readers):
            readers[reader] = journal.read(after, 50_000).entries[-1].seq
    assert total < 2 * 5 * journal.size
    journal.close()


def test_places_of_readers_that_are_gone_are_forgotten(folder: Path) -> None:
    journal = open_journal(folder, tail_bytes=1)
    journal.append(entries(1, 1000))
    for after in range(999):
        journal.read(after, 1)
    assert len(journal._positions) <= 256
    assert everything(journal) == entries(1, 1000)
    journal.close()


@pytest.mark.parametrize(("after", "opened"), [(0, 1), (14, 1), (28, 0), (29, 0), (30, 0)])
def test_no_file_is_opened_that_is_not_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, after: int, opened: int
) -> None:
    journal = open_journal(folder, segment_bytes=2 * RECORD, tail_bytes=2 * (entry(1).size + 400))
    for seq in range(1, 31):
        journal.append([entry(seq)])
    assert journal._tail.first == 29
    paths = []
    really_open = os.open

    def counting(path: Path, flags: int) -> int:
        paths.append(path)
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", counting)
    journal.read(after, LARGE, 1)
    monkeypatch.undo()
    assert len(paths) == opened
    journal.close()


# Opening again.


def test_a_journal_opened_again_goes_on_where_it_was(folder: Path) -> None:
    for round_ in range(5):
        journal = open_journal(folder, segment_bytes=7 * RECORD)
        assert (journal.first_seq, journal.last_seq) == (1, 4 * round_)
        assert everything(journal) == entries(1, 4 * round_)
        journal.append(entries(4 * round_ + 1, 4 * round_ + 4))
        assert everything(journal) == entries(1, 4 * round_ + 4)
        journal.close()
    assert len(list(folder.iterdir())) == 5


def test_a_torn_tail_is_cut_at_every_byte(folder: Path, tmp_path: Path) -> None:
    journal = open_journal(folder, segment_bytes=2 * RECORD)
    for seq in range(1, 4):
        journal.append([entry(seq)])
    journal.close()
    for cut in range(RECORD):
        copy = tmp_path / f"cut{cut}"
        shutil.copytree(folder, copy)
        os.truncate(copy / f"{3:016x}.log", cut)
        again = open_journal(copy, segment_bytes=2 * RECORD)
        assert again.last_seq == 2
        assert everything(again) == entries(1, 2)
        again.append(entries(3, 5))
        assert everything(again) == entries(1, 5)
        again.close()
        once_more = open_journal(copy)
        assert everything(once_more) == entries(1, 5)
        once_more.close()


def test_a_segment_of_which_nothing_is_left_still_tells_the_seq(folder: Path) -> None:
    """Else numbers that readers may have seen would be given out again."""
    folder.mkdir(parents=True)
    (folder / f"{500:016x}.log").touch()
    journal = open_journal(folder)
    assert (journal.first_seq, journal.last_seq) == (500, 499)
    assert list(folder.iterdir()) == []
    assert journal.read(0, LARGE) == Batch((), 0)
    journal.append(entries(500, 501))
    assert journal.read(0, LARGE) == Batch(tuple(entries(500, 501)), 499)
    journal.close()


def test_a_smaller_limit_holds_from_the_next_opening_on(folder: Path) -> None:
    journal = open_journal(folder, segment_bytes=2 * RECORD)
    for seq in range(1, 21):
        journal.append([entry(seq)])
    journal.close()
    journal = open_journal(folder, segment_bytes=2 * RECORD, max_bytes=6 * RECORD)
    assert (journal.first_seq, journal.last_seq) == (15, 20)
    assert journal.read(0, LARGE) == Batch(tuple(entries(15, 20)), 14)
    journal.close()


# Damage.


def test_damage_at_any_byte_is_an_exact_gap(folder: Path, tmp_path: Path) -> None:
    journal = open_journal(folder, segment_bytes=3 * RECORD)
    for seq in range(1, 10):
        journal.append([entry(seq)])
    journal.close()
    middle = f"{4:016x}.log"
    for at in range(3 * RECORD):
        copy = tmp_path / f"at{at}"
        shutil.copytree(folder, copy)
        data = bytearray((copy / middle).read_bytes())
        data[at] ^= 0x55
        (copy / middle).write_bytes(data)
        again = open_journal(copy)
        seen = 0
        lost: list[int] = []
        for batch in read_on(again):
            lost += range(seen + 1, seen + 1 + batch.gap)
            assert batch.entries == tuple(entries(seen + batch.gap + 1, batch.entries[-1].seq))
            seen = batch.entries[-1].seq
        assert seen == 9
        hit = 4 + at // RECORD
        only_this = at % RECORD >= 4  # else the length, and with it the way to the next one
        assert lost == ([hit] if only_this else list(range(hit, 7)))
        again.close()


def test_damage_in_the_newest_file_does_not_touch_what_is_in_memory(folder: Path) -> None:
    journal = open_journal(folder, tail_bytes=2000)
    journal.append(entries(1, 20))
    (file,) = folder.iterdir()
    file.write_bytes(bytes(journal.size))
    first = journal._tail.first
    assert first is not None
    assert first > 1
    assert journal.read(0, LARGE) == Batch(tuple(entries(first, 20)), first - 1)
    journal.close()


def test_a_file_that_somebody_took_away_is_a_gap(folder: Path) -> None:
    journal = open_journal(folder, segment_bytes=3 * RECORD, tail_bytes=1)
    for seq in range(1, 13):
        journal.append([entry(seq)])
    (folder / f"{4:016x}.log").unlink()
    assert journal.read(0, LARGE) == Batch(tuple(entries(1, 3)), 0)
    assert journal.read(3, LARGE) == Batch(tuple(entries(7, 11)), 3)
    journal.close()


# A full disk.


class Disk:
    """Stands in for ``os.write`` and has room for ``free`` bytes, ``None`` for any number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free: int | None = None
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if self.free is None:
            return self._write(file, data)
        if self.free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(file, data[: self.free])
        self.free -= written
        return written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("free", range(RECORD))
@pytest.mark.parametrize("before", [0, 2])
def test_a_full_disk_costs_live_readers_nothing(
    folder: Path, disk: Disk, free: int, before: int
) -> None:
    journal = open_journal(folder)
    journal.append(entries(1, before))
    disk.free = free  # whatever part of the first record
    journal.append(entries(before + 1, 5))
    assert trouble(journal) == errno.ENOSPC
    assert journal.unsaved == 5 - before
    journal.append(entries(6, 9))
    assert journal.unsaved == 9 - before
    assert everything(journal) == entries(1, 9)
    assert journal.size == before * RECORD
    assert sum(file.stat().st_size for file in folder.iterdir()) == before * RECORD
    journal.close()


def test_after_the_disk_was_full_writing_goes_on_and_the_hole_is_an_exact_gap(
    folder: Path, disk: Disk
) -> None:
    journal = open_journal(folder, tail_bytes=1000)
    journal.append(entries(1, 10))
    disk.free = 5
    journal.append(entries(11, 20))
    assert trouble(journal) == errno.ENOSPC
    disk.free = None
    journal.append(entries(21, 30))
    assert trouble(journal) is None
    assert journal.unsaved == 10
    assert everything(journal, after=15)[-10:] == entries(21, 30)  # from memory
    journal.close()
    journal = open_journal(folder)
    assert [(batch.gap, batch.entries[0].seq) for batch in read_on(journal)] == [(0, 1), (10, 21)]
    assert everything(journal) == entries(1, 10) + entries(21, 30)
    assert journal.read(15, LARGE) == Batch(tuple(entries(21, 30)), 5)
    journal.close()


def test_a_hole_on_disk_that_memory_covers_in_part_is_read_from_both(
    folder: Path, disk: Disk
) -> None:
    journal = open_journal(folder, tail_bytes=10 * (entry(1).size + 400) - 1)
    journal.append(entries(1, 10))
    disk.free = 0
    journal.append(entries(11, 20))
    disk.free = None
    journal.append(entries(21, 25))
    first = journal._tail.first
    assert first is not None
    assert 11 < first < 21
    assert [(batch.gap, batch.entries[0].seq) for batch in read_on(journal)] == [
        (0, 1),
        (first - 11, first),
    ]
    journal.close()


def test_half_a_record_that_cannot_be_taken_back_hides_nothing_behind_it(
    folder: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(folder, tail_bytes=1)
    journal.append(entries(1, 3))
    disk.free = RECORD + 5

    def fail(_file: int, _size: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "ftruncate", fail)
    journal.append(entries(4, 6))
    assert trouble(journal) == errno.ENOSPC
    disk.free = None
    journal.append(entries(7, 9))
    assert trouble(journal) is None
    assert everything(journal) == entries(1, 3) + entries(7, 9)
    journal.close()
    journal = open_journal(folder)
    # One of the three had been written in full; it may as well be read.
    assert everything(journal) == entries(1, 4) + entries(7, 9)
    journal.close()


def test_a_new_file_that_cannot_be_made_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(folder, segment_bytes=2 * RECORD)
    journal.append(entries(1, 2))
    folder.rename(folder.with_name("away"))
    journal.append(entries(3, 4))
    assert trouble(journal) == errno.ENOENT
    folder.with_name("away").rename(folder)
    journal.append(entries(5, 6))
    assert trouble(journal) is None
    assert everything(journal) == entries(1, 6)
    journal.close()
    journal = open_journal(folder)
    assert everything(journal) == entries(1, 2) + entries(5, 6)
    journal.close()


def test_the_systems_own_limit_on_a_file(folder: Path) -> None:
    """A real failure, half-way through a record, in a process of its own."""
    program = """
        import resource, sys
        from pathlib import Path
        from relay.bridge.messages import Channel
        from relay.holder.journal.store import Journal, JournalEntry

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        journal = Journal.open(
            Path(sys.argv[1]), max_bytes=1 << 20, segment_bytes=1 << 20, tail_bytes=1 << 20
        )
        entries = [JournalEntry(seq, Channel.IOPUB, b"", (b"x" * 100,)) for seq in range(1, 31)]
        for entry in entries:
            journal.append([entry])
        assert journal.failed is not None, "no failure"
        assert list(journal.read(0, 1 << 20).entries) == entries
        print(30 - journal.unsaved)
    """
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    saved = int(result.stdout)
    assert 5 < saved < 10
    journal = open_journal(folder)
    assert [each.seq for each in everything(journal)] == list(range(1, saved + 1))
    journal.close()


# Memory.


@pytest.mark.parametrize(("size", "count"), [(1, 20_000), (1000, 20_000), (300_000, 100)])
def test_memory_is_bounded_whatever_is_printed(folder: Path, size: int, count: int) -> None:
    tail_bytes = 1_000_000
    journal = open_journal(
        folder, max_bytes=4_000_000, segment_bytes=1_000_000, tail_bytes=tail_bytes
    )
    tracemalloc.start()
    for first in range(1, count, 10):
        journal.append(entries(first, first + 9, size))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < tail_bytes + max(300_000, size)
    journal.close()


def test_the_newest_entry_is_in_memory_however_large(folder: Path, disk: Disk) -> None:
    journal = open_journal(folder, tail_bytes=1)
    disk.free = 0
    journal.append([entry(1, 100_000)])
    assert journal.read(0, 1) == Batch((entry(1, 100_000),), 0)
    journal.close()


class Model(RuleBasedStateMachine):
    """The journal against a plain list of what was appended, with deaths and full disks."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="journal"))
        self.written: dict[int, JournalEntry] = {}
        self.saved: set[int] = set()
        self.full = False
        self.largest_append = 0
        self.readers = [0, 0]
        self.limits: dict[str, int] = {
            "max_bytes": 12 * RECORD,
            "segment_bytes": 4 * RECORD,
            "tail_bytes": 5 * (entry(1).size + 400),
        }
        self.journal = open_journal(self.folder, **self.limits)

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.folder)

    @rule(count=st.integers(1, 6), size=st.integers(6, 200), skip=st.sampled_from([0, 0, 0, 3]))
    def append(self, count: int, size: int, skip: int) -> None:
        first = self.journal.last_seq + 1 + skip
        batch = entries(first, first + count - 1, size)
        with pytest.MonkeyPatch.context() as patch:
            if self.full:
                Disk(patch).free = size
            self.journal.append(batch)
        self.written |= {each.seq: each for each in batch}
        packed = sum(len(b"".join(pack(each))) for each in batch)
        if not self.full:
            self.saved |= {each.seq for each in batch}
            self.largest_append = max(self.largest_append, packed)
        assert (self.journal.failed is not None) == self.full

    @rule()
    def disk(self) -> None:
        self.full = not self.full

    @rule(torn=st.binary(max_size=40))
    def die_and_open_again(self, torn: bytes) -> None:
        self.journal.close()
        if files := sorted(self.folder.iterdir()):
            with files[-1].open("ab") as file:
                file.write(torn)
        self.journal = open_journal(self.folder, **self.limits)
        assert self.journal.last_seq == max(self.saved, default=0)
        for seq in [seq for seq in self.written if seq > self.journal.last_seq]:
            del self.written[seq]
        self.readers = [min(reader, self.journal.last_seq) for reader in self.readers]

    @rule(reader=st.integers(0, 1), max_bytes=st.integers(0, 300), max_entries=st.integers(1, 10))
    def read(self, reader: int, max_bytes: int, max_entries: int) -> None:
        self.readers[reader] = self.check(self.readers[reader], max_bytes, max_entries)

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def read_anywhere(self, data: Any) -> None:
        self.check(data.draw(st.integers(0, self.journal.last_seq)), 1000, 100)

    def check(self, after: int, max_bytes: int, max_entries: int) -> int:
        batch = self.journal.read(after, max_bytes, max_entries)
        newer = sorted(seq for seq in self.available() if seq > after)
        assert bool(batch.entries) == bool(newer)
        if not newer:
            assert batch.gap == 0
            return after
        assert batch.gap == newer[0] - after - 1
        assert len(batch.entries) <= max_entries
        assert len(batch.entries) == 1 or sum(each.size for each in batch.entries) <= max_bytes
        for seq, each in enumerate(batch.entries, newer[0]):
            assert each == self.written[seq]
        return batch.entries[-1].seq

    def available(self) -> set[int]:
        """What must be there: what was saved, from the oldest file on, and what is in memory."""
        oldest = min((int(file.stem, 16) for file in self.folder.iterdir()), default=1 << 64)
        first = self.journal._tail.first
        return {seq for seq in self.saved if seq >= oldest} | {
            seq for seq in self.written if first is not None and seq >= first
        }

    @invariant()
    def disk_is_bounded_and_used(self) -> None:
        files = sorted(self.folder.iterdir())
        sizes = [file.stat().st_size for file in files]
        assert self.journal.size == sum(sizes)
        assert sum(sizes) <= max(self.limits["max_bytes"], *sizes[-1:], 0)
        # No more was dropped than had to be: with one segment more it would be too much.
        dropped = self.saved and min(self.saved) < min(int(file.stem, 16) for file in files)
        largest = max(self.limits["segment_bytes"], self.largest_append)
        assert not dropped or sum(sizes) > self.limits["max_bytes"] - largest - self.largest_append

    @invariant()
    def first_and_last(self) -> None:
        assert self.journal.last_seq == max(self.written, default=0)
        available = self.available()
        assert self.journal.first_seq == min(available, default=self.journal.last_seq + 1)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
