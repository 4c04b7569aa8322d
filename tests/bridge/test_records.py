from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bridge.control import (
    Attach,
)
from relay.bridge.messages import Channel, Message
from relay.bridge.records import (
    HEADER,
    Entry,
    RecordError,
    RecordKind,
    RecordReader,
    RecordTooLarge,
    check_header,
    entries_record,
    frames_record,
    message_record,
    number_record,
    read_entries,
    read_frames,
    read_message,
    read_number,
    read_submit,
    record,
    submit_record,
)

LIMIT = 1 << 20
HUGE = [2**31, 2**32 - 1]
HUGE_64 = [*HUGE, 2**32, 2**63 - 1, 2**63, 2**64 - 1]

numbers = st.integers(0, 2**64 - 1)
channels = st.sampled_from(Channel)
parts = st.lists(st.binary(max_size=40), min_size=4, max_size=8).map(tuple)
messages = st.builds(
    Message,
    channels,
    *[st.binary(max_size=40)] * 4,
    st.lists(st.binary(max_size=40), max_size=4).map(tuple),
)
entries = st.lists(st.builds(Entry, numbers, channels, parts), max_size=6)


def only(data: bytes) -> tuple[RecordKind, bytes]:
    """The one record in ``data``."""
    (found,) = RecordReader(LIMIT).feed(data)
    return found


def payload_of(data: bytes, kind: RecordKind) -> bytes:
    found, payload = only(data)
    assert found is kind
    return payload


# Every kind, there and back


@given(numbers, st.sampled_from([RecordKind.ACK, RecordKind.PROVED]))
def test_a_number_comes_back(number: int, kind: RecordKind) -> None:
    assert read_number(payload_of(number_record(kind, number), kind)) == number


@given(numbers, st.integers(0, 2**32 - 1), st.lists(st.binary(max_size=40), max_size=4))
def test_frames_come_back(seq: int, fragment: int, frames: list[bytes]) -> None:
    payload = payload_of(frames_record(seq, fragment, frames), RecordKind.FRAMES)
    assert read_frames(payload) == (seq, fragment, memoryview(b"".join(frames)))


@given(numbers, st.booleans(), st.binary(max_size=100))
def test_a_clients_message_comes_back(number: int, text: bool, message: bytes) -> None:
    payload = payload_of(message_record(number, text=text, payload=message), RecordKind.MESSAGE)
    assert read_message(payload) == (number, text, memoryview(message))


@given(numbers, messages)
def test_a_submission_comes_back(number: int, message: Message) -> None:
    payload = payload_of(submit_record(number, message), RecordKind.SUBMIT)
    found, channel, cut = read_submit(payload)
    assert (found, channel) == (number, message.channel)
    header, parent, metadata, content, *buffers = cut
    assert Message(channel, header, parent, metadata, content, tuple(buffers)) == message


@given(entries)
def test_entries_come_back(several: list[Entry]) -> None:
    payload = payload_of(entries_record(several), RecordKind.ENTRIES)
    assert list(read_entries(payload)) == several


@pytest.mark.parametrize("kind", [RecordKind.PING, RecordKind.PONG])
def test_an_empty_record_comes_back(kind: RecordKind) -> None:
    assert only(record(kind)) == (kind, b"")


def test_the_layout_is_what_the_docstrings_say() -> None:
    # Edges and agents of two versions talk to each other while they are upgraded.
    message = Message(Channel.STDIN, b"h", b"pp", b"", b"c", (b"bb",))
    lengths = struct.pack("<I5Q", 5, 1, 2, 0, 1, 2)
    body = lengths + b"hppcbb"
    expected = {
        record(RecordKind.PONG): "00000000 0f",
        number_record(RecordKind.ACK, 258): "08000000 05 0201000000000000",
        frames_record(1, 2, [b"\x81\x00"]): "0e000000 03 0100000000000000 02000000 8100",
        message_record(3, text=True, payload=b"{}"): "0b000000 04 0300000000000000 01 7b7d",
        submit_record(4, message): f"3b000000 0a 0400000000000000 02 {body.hex()}",
        entries_record([Entry(5, Channel.IOPUB, (b"h", b"pp", b"", b"c", b"bb"))]): (
            f"3f000000 09 0500000000000000 01 32000000 {body.hex()}"
        ),
    }
    assert {data: bytes.fromhex(layout) for data, layout in expected.items()} == {
        data: data for data in expected
    }
    assert [(kind.name, kind.value) for kind in RecordKind] == [
        *(("ATTACH", 1), ("ATTACHED", 2), ("FRAMES", 3), ("MESSAGE", 4), ("ACK", 5)),
        *(("PROVED", 6), ("CLOSE", 7), ("DETACH", 8), ("ENTRIES", 9), ("SUBMIT", 10)),
        *(("CALL", 11), ("RESULT", 12), ("STATUS", 13), ("PING", 14), ("PONG", 15)),
        *(("READ", 16), ("READING", 17), ("GAP", 18)),
    ]


def test_what_is_cut_out_of_a_record_is_not_copied() -> None:
    payload = payload_of(frames_record(1, 0, [b"x" * 10]), RecordKind.FRAMES)
    assert read_frames(payload)[2].obj is payload
    payload = payload_of(entries_record([Entry(1, Channel.SHELL, (b"x",) * 4)]), RecordKind.ENTRIES)
    (entry,) = read_entries(payload)
    assert all(isinstance(part, memoryview) and part.obj is payload for part in entry.parts)


# Cut short, or not what they say


def entries_of(payload: bytes) -> list[Entry]:
    return list(read_entries(payload))


MESSAGE = Message(Channel.SHELL, b"header", b"{}", b"{}", b"content", (b"", b"buffer"))
ENTRY = Entry(9, Channel.IOPUB, (b"h", b"p", b"m", b"c", b"buffer"))
SUBMIT = submit_record(7, MESSAGE)[HEADER.size :]
ENTRIES = entries_record([ENTRY])[HEADER.size :]


@pytest.mark.parametrize(
    ("read", "payload"),
    [
        (read_number, struct.pack("<Q", 1)),
        (read_submit, SUBMIT),
    ],
)
def test_every_truncation_is_noticed(read: Callable[[bytes], Any], payload: bytes) -> None:
    read(payload)
    for end in range(len(payload)):
        with pytest.raises(RecordError):
            read(payload[:end])
    with pytest.raises(RecordError):
        read(payload + b"\x01")


@pytest.mark.parametrize(("read", "head"), [(read_frames, 12), (read_message, 9)])
def test_a_cut_head_is_noticed(read: Callable[[bytes], Any], head: int) -> None:
    read(bytes(head))
    for end in range(head):
        with pytest.raises(RecordError):
            read(bytes(end))


def test_every_truncation_of_entries_is_noticed() -> None:
    twice = ENTRIES * 2
    for end in range(1, len(twice)):
        if end == len(ENTRIES):
            continue
        cut = read_entries(twice[:end])
        for _ in range(end // len(ENTRIES)):
            assert next(cut) == ENTRY
        with pytest.raises(RecordError):
            next(cut)
    assert entries_of(twice) == [ENTRY, ENTRY]
    with pytest.raises(RecordError):
        entries_of(twice + b"\x01")


def submit(count: int, lengths: list[int], body: bytes = b"", channel: int = 0) -> bytes:
    return struct.pack(f"<QBI{len(lengths)}Q", 1, channel, count, *lengths) + body


def entry(size: int, count: int, lengths: list[int], body: bytes = b"", channel: int = 0) -> bytes:
    packed = struct.pack(f"<I{len(lengths)}Q", count, *lengths) + body
    return struct.pack("<QBI", 1, channel, len(packed) + size) + packed


def hostile() -> Iterator[tuple[Callable[[bytes], Any], bytes]]:
    for count in [*HUGE, 6]:
        yield read_submit, submit(count, [0] * 5)
        yield entries_of, entry(0, count, [0] * 5)
    for length in HUGE_64:
        for index in range(5):
            lengths = [0] * 5
            lengths[index] = length
            yield read_submit, submit(5, lengths)
            yield entries_of, entry(0, 5, lengths)
        # Together they are 0 again, in 64 bits.
        yield read_submit, submit(5, [length, 2**64 - length, 0, 0, 0])
        yield entries_of, entry(0, 5, [length, 2**64 - length, 0, 0, 0])
    for size in (-1, 1, 2**31):
        yield entries_of, entry(size, 4, [0] * 4)
    for count in range(4):
        # No message has fewer parts than four.
        yield read_submit, submit(count, [0] * count)
        yield entries_of, entry(0, count, [0] * count)
    for channel in (4, 255):
        yield read_submit, submit(4, [0] * 4, channel=channel)
        yield entries_of, entry(0, 4, [0] * 4, channel=channel)
    yield read_submit, submit(4, [0] * 4, b"x")
    yield entries_of, entry(0, 4, [0] * 4, b"x")


def test_hostile_counts_and_lengths_are_refused_before_anything_is_allocated() -> None:
    attacks = list(hostile())
    tracemalloc.start()
    try:
        for read, payload in attacks:
            with pytest.raises(RecordError):
                read(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000


@given(st.binary(max_size=200))
def test_whatever_comes_it_is_read_or_refused(payload: bytes) -> None:
    for read in (read_number, read_frames, read_message, read_submit, entries_of):
        try:
            read(payload)
        except RecordError:
            continue


@given(st.data(), st.lists(st.builds(Entry, numbers, channels, parts), min_size=1, max_size=3))
def test_entries_with_a_changed_byte_are_read_or_refused(
    data: st.DataObject, several: list[Entry]
) -> None:
    payload = bytearray(entries_record(several)[HEADER.size :])
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))
    try:
        read = entries_of(bytes(payload))
    except RecordError:
        return
    assert sum(len(part) for entry in read for part in entry.parts) <= len(payload)


# The reader

STREAM = [
    (RecordKind.ATTACH, msgspec.json.encode(Attach(link="ab", principal="token:ada"))),
    (RecordKind.PING, b""),
    (RecordKind.ACK, struct.pack("<Q", 3)),
    (RecordKind.FRAMES, bytes(300)),
    (RecordKind.PONG, b""),
]
BYTES = b"".join(record(kind, payload) for kind, payload in STREAM)


def test_a_stream_cut_at_every_byte_gives_the_same_records() -> None:
    for cut in range(len(BYTES) + 1):
        reader = RecordReader(LIMIT)
        assert reader.feed(BYTES[:cut]) + reader.feed(BYTES[cut:]) == STREAM


def test_a_stream_byte_by_byte_gives_each_record_with_its_last_byte() -> None:
    reader = RecordReader(LIMIT)
    ends, found = [], []
    for place in range(len(BYTES)):
        for item in reader.feed(BYTES[place : place + 1]):
            found.append(item)
            ends.append(place + 1)
    assert found == STREAM
    sizes = [HEADER.size + len(payload) for _, payload in STREAM]
    assert ends == [sum(sizes[: count + 1]) for count in range(len(sizes))]


@given(
    st.lists(st.tuples(st.sampled_from(RecordKind), st.binary(max_size=50)), max_size=10),
    st.lists(st.integers(1, 60)),
)
def test_a_stream_in_any_pieces_gives_the_same_records(
    stream: list[tuple[RecordKind, bytes]], sizes: list[int]
) -> None:
    data = b"".join(record(kind, payload) for kind, payload in stream)
    reader, found, rest = RecordReader(LIMIT), [], data
    for size in sizes:
        found += reader.feed(rest[:size])
        rest = rest[size:]
    assert found + reader.feed(memoryview(rest)) == stream


def test_records_are_the_readers_own_copy() -> None:
    data = bytearray(record(RecordKind.FRAMES, b"abc"))
    ((_, payload),) = RecordReader(LIMIT).feed(memoryview(data))
    data[-1] = 0
    assert payload == b"abc"


def test_the_limit_is_the_payloads() -> None:
    assert RecordReader(10).feed(record(RecordKind.FRAMES, bytes(10))) == [
        (RecordKind.FRAMES, bytes(10))
    ]
    with pytest.raises(RecordTooLarge) as caught:
        RecordReader(10).feed(record(RecordKind.FRAMES, bytes(11)))
    assert (caught.value.size, caught.value.limit) == (11, 10)


@pytest.mark.parametrize("length", [LIMIT + 1, *HUGE])
def test_a_hostile_length_is_refused_before_its_payload_comes(length: int) -> None:
    header = HEADER.pack(length, RecordKind.FRAMES)
    reader = RecordReader(LIMIT)
    tracemalloc.start()
    try:
        assert reader.feed(header[:-1]) == []
        with pytest.raises(RecordTooLarge):
            reader.feed(header[-1:])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("kind", [0, 19, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(RecordError, match=str(kind)) as caught:
        check_header(0, kind, LIMIT)
    assert not isinstance(caught.value, RecordTooLarge)
    with pytest.raises(RecordError):
        RecordReader(LIMIT).feed(HEADER.pack(0, kind))
