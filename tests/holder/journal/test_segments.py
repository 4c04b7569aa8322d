from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bridge.messages import Channel
from relay.holder.journal.segments import Collector, JournalEntry, Segment, pack, unpack, write_all

ENTRIES = st.builds(
    JournalEntry,
    st.integers(1, 2**64 - 1),
    st.sampled_from(Channel),
    st.binary(max_size=255),
    st.lists(st.binary(max_size=50), max_size=20).map(tuple),
)


def entry(seq: int, *parts: bytes) -> JournalEntry:
    return JournalEntry(
        seq, Channel.IOPUB, b"", parts or (b"{}", b"{}", b"{}", b'{"text":"hello"}')
    )


def body_of(written: JournalEntry) -> bytes:
    return b"".join(pack(written))[8:]


def segment_of(folder: Path, entries: list[JournalEntry]) -> Segment:
    data = b"".join(b"".join(pack(each)) for each in entries)
    segment = Segment(folder, entries[0].seq, len(data))
    segment.path.write_bytes(data)
    return segment


def read(segment: Segment, after: int = 0) -> list[JournalEntry]:
    collector = Collector(after, 1 << 20, 1000)
    segment.read(collector)
    return collector.entries


def test_the_bytes_of_a_record() -> None:
    written = JournalEntry(0x0102, Channel.STDIN, b"8-bytes!", (b"{}", b"", b"ab"))
    body = (
        b"\x02\x01\0\0\0\0\0\0"  # seq
        b"\x02"  # channel
        b"\x088-bytes!"  # audience
        b"\x03\0\0\0"  # parts
        b"\x02\0\0\0\0\0\0\0\x02\0\0\0"  # their lengths
        b"{}ab"
    )
    assert b"".join(pack(written)) == struct.pack("<II", len(body), zlib.crc32(body)) + body


@given(ENTRIES)
def test_what_is_packed_unpacks_to_the_same(written: JournalEntry) -> None:
    assert unpack(memoryview(body_of(written))) == written
    assert written.size == sum(len(part) for part in written.parts)


@given(ENTRIES, st.data())
def test_a_body_cut_anywhere_is_refused(written: JournalEntry, data: st.DataObject) -> None:
    body = body_of(written)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(ValueError, match="record"):
        unpack(memoryview(body[:cut]))


@given(st.binary(max_size=100))
def test_a_body_of_anything_is_an_entry_or_refused(body: bytes) -> None:
    try:
        found = unpack(memoryview(body))
    except ValueError:
        return
    assert body_of(found) == body


@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 100])
def test_a_count_beyond_the_body_is_refused_before_anything_is_allocated(count: int) -> None:
    body = struct.pack("<QBBI", 1, 0, 0, count) + b"\0" * 40
    with pytest.raises(ValueError, match="record"):
        unpack(memoryview(body))


def test_a_channel_that_there_is_not_is_refused() -> None:
    body = bytearray(body_of(entry(1)))
    body[8] = len(Channel)
    with pytest.raises(ValueError, match="not what it says"):
        unpack(memoryview(body))


def test_what_does_not_fit_the_format_is_refused() -> None:
    pack(JournalEntry(1, Channel.SHELL, b"a" * 255, ()))
    with pytest.raises(ValueError, match="too large"):
        pack(JournalEntry(1, Channel.SHELL, b"a" * 256, ()))

    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(ValueError, match="too large"):
        pack(entry(1, Huge()))


def test_a_segment_is_named_after_its_first_seq_and_found_again(tmp_path: Path) -> None:
    assert Segment(tmp_path, 0xABC).path == tmp_path / "0000000000000abc.log"
    for first in (256, 1, 16):
        segment_of(tmp_path, [entry(first)])
    for other in ("0000000000000001.txt", "1.log", "000000000000000g.log", "notes.log"):
        (tmp_path / other).touch()
    found = Segment.all_in(tmp_path)
    assert [segment.first_seq for segment in found] == [1, 16, 256]
    assert all(segment.size == segment.path.stat().st_size for segment in found)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_repair_cuts_an_unfinished_record_at_every_byte(tmp_path: Path, kept: int) -> None:
    entries = [entry(seq) for seq in (1, 2, 3)]
    whole = [len(b"".join(pack(each))) for each in entries]
    data = segment_of(tmp_path, entries).path.read_bytes()
    for cut in range(sum(whole[:kept]), sum(whole[: kept + 1])):
        segment = Segment(tmp_path, 1, cut)
        segment.path.write_bytes(data[:cut])
        assert segment.repair() == (kept or None)
        assert segment.size == segment.path.stat().st_size == sum(whole[:kept])
        assert read(segment) == entries[:kept]


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\xff" * 100, struct.pack("<II", 0, 0)])
def test_repair_cuts_what_was_never_a_record(tmp_path: Path, tail: bytes) -> None:
    """A host's crash may leave blocks of zeros."""
    segment = segment_of(tmp_path, [entry(1)])
    good = segment.path.read_bytes()
    segment.path.write_bytes(good + tail)
    segment.size += len(tail)
    assert segment.repair() == 1
    assert segment.path.read_bytes() == good


def test_repair_leaves_good_records_behind_a_damaged_one(tmp_path: Path) -> None:
    entries = [entry(seq) for seq in (1, 2, 3)]
    segment = segment_of(tmp_path, entries)
    damage(segment, segment.size // 2)
    size = segment.size
    assert segment.repair() == 3
    assert segment.path.stat().st_size == size


def damage(segment: Segment, at: int) -> None:
    data = bytearray(segment.path.read_bytes())
    data[at] ^= 0x10
    segment.path.write_bytes(data)


def test_damage_at_any_byte_costs_no_entry_before_it_and_changes_none(tmp_path: Path) -> None:
    entries = [entry(seq) for seq in range(1, 6)]
    record = len(b"".join(pack(entries[0])))
    for at in range(2 * record, 3 * record):
        segment = segment_of(tmp_path, entries)
        damage(segment, at)
        assert read(segment) == entries[:2]
        if at - 2 * record >= 4:  # the length is right: only this one is lost
            assert read(segment, after=2) == entries[3:]
        else:
            assert read(segment, after=2) == []


def test_a_record_longer_than_the_window_is_read(tmp_path: Path) -> None:
    entries = [entry(1), entry(2, os.urandom(3 << 20)), entry(3)]
    assert read(segment_of(tmp_path, entries), after=1) == entries[1:2]
    collector = Collector(0, 1 << 30, 10)
    segment_of(tmp_path, entries).read(collector)
    assert collector.entries == entries


def test_a_long_record_is_not_read_in_order_to_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = segment_of(tmp_path, [entry(1), entry(2, bytes(3 << 20))])
    sizes = []
    pread = os.pread

    def counting(file: int, size: int, at: int) -> bytes:
        sizes.append(size)
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", counting)
    collector = Collector(0, 100_000, 10)
    end = segment.read(collector, 0)
    assert [each.seq for each in collector.entries] == [1]
    assert sum(sizes) < 200_000
    after = Collector(1, 100_000, 10)
    segment.read(after, end)
    assert [each.seq for each in after.entries] == [2]


def test_places_inside_a_segment_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [entry(seq, bytes(10_000)) for seq in range(1, 301)]  # 3 MB
    segment = segment_of(tmp_path, entries)
    segment.repair()
    total = 0
    pread = os.pread

    def counting(file: int, size: int, at: int) -> bytes:
        nonlocal total
        total += size
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", counting)
    for after in (0, 100, 299, 250):
        total = 0
        collector = Collector(after, 1, 1)
        segment.read(collector)
        assert [each.seq for each in collector.entries] == [after + 1]
        assert total < 1_000_000


def test_a_collector_takes_in_order_up_to_its_bounds() -> None:
    collector = Collector(5, 10, 3)
    collector.before = 9
    assert collector.wants(6, 1000)  # the first one whatever its size
    assert collector.wants(7, 0)  # also behind a gap
    assert not collector.wants(9, 0)
    collector.take(entry(6, b"1234"))
    assert collector.wants(7, 6)
    assert not collector.wants(7, 7)
    assert not collector.wants(8, 0)
    collector.take(entry(7, b"5"))
    collector.take(entry(8, b"6"))
    assert not collector.wants(9, 0)
    collector.before = None
    assert not collector.wants(9, 0)  # three are enough


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [([10] * 1000, 1), ([10, 2 << 20, 10, 10], 3), ([2 << 20], 1), ([1 << 20, 1 << 20], 2)],
)
def test_writing_takes_one_call_unless_pieces_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], calls: int
) -> None:
    pieces = [os.urandom(size) for size in sizes]
    count = 0
    write = os.write

    def counting(file: int, data: bytes) -> int:
        nonlocal count
        count += 1
        return write(file, data)

    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(os, "write", counting)
    write_all(file, pieces, sum(sizes))
    monkeypatch.undo()
    os.close(file)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert count == calls


def test_writing_goes_on_after_a_short_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:3]))
    write_all(file, [b"abcd", b"efgh"], 8)
    monkeypatch.undo()
    os.close(file)
    assert (tmp_path / "file").read_bytes() == b"abcdefgh"
