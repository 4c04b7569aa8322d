from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.edge.ipc.protocol import (
    BAD_MESSAGE,
    FRAME_BYTES,
    HEAD,
    LAST,
    MESSAGE_BYTES,
    PART,
    WHOLE,
    CallFailure,
    CallRefusal,
    CallResult,
    MessageReader,
    MessageTooLarge,
    MessageWriter,
    Notification,
    ParentMessage,
    ProtocolError,
    Refusal,
    Release,
    ServiceCall,
    WorkerMessage,
    encode,
)

LONG = bytes(range(256)) * 1000
"""Four frames."""


class Wire:
    """A writer that takes so many frames at once, and what they are."""

    def __init__(self, room: int = 1000) -> None:
        self.writer = MessageWriter(self.write)
        self.room = room
        self.frames: list[bytes] = []

    def write(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.room -= 1
        if self.room == 0:
            self.writer.pause()

    def resume(self, room: int = 1000) -> None:
        self.room = room
        self.writer.resume()

    @property
    def kinds(self) -> list[int]:
        return [HEAD.unpack_from(frame)[1] for frame in self.frames]

    def messages(self) -> list[bytes]:
        return read(b"".join(self.frames))


def read(*chunks: bytes) -> list[bytes]:
    reader, found = MessageReader(), []
    for chunk in chunks:
        reader.feed(chunk)
        while (message := reader.next()) is not None:
            found.append(message)
    return found


def frame(kind: int, payload: bytes) -> bytes:
    return HEAD.pack(len(payload), kind) + payload


def framed(*messages: bytes) -> bytes:
    wire = Wire()
    for message in messages:
        wire.writer.send(message)
    return b"".join(wire.frames)


# --- the writer ---


@pytest.mark.parametrize(
    ("size", "kinds"),
    [
        (1, [WHOLE]),
        (FRAME_BYTES, [WHOLE]),
        (FRAME_BYTES + 1, [PART, LAST]),
        (2 * FRAME_BYTES, [PART, LAST]),
        (2 * FRAME_BYTES + 1, [PART, PART, LAST]),
    ],
)
def test_a_message_is_cut_into_frames_of_a_size(size: int, kinds: list[int]) -> None:
    wire = Wire()
    wire.writer.send(b"x" * size)
    assert wire.kinds == kinds
    assert all(len(each) <= HEAD.size + FRAME_BYTES for each in wire.frames)
    assert wire.messages() == [b"x" * size]
    assert wire.writer.waiting == 0


def test_a_short_message_goes_ahead_of_the_rest_of_a_long_one() -> None:
    wire = Wire(room=1)
    wire.writer.send(LONG)
    wire.writer.send(b"one")
    wire.writer.send(b"two")
    assert wire.kinds == [PART]
    assert wire.writer.waiting == len(LONG) - FRAME_BYTES + 6
    wire.resume()
    assert wire.kinds == [PART, WHOLE, WHOLE, PART, PART, LAST]
    assert wire.messages() == [b"one", b"two", LONG]
    assert wire.writer.waiting == 0


def test_long_messages_go_one_after_the_other() -> None:
    wire = Wire(room=1)
    wire.writer.send(LONG)
    wire.writer.send(LONG[::-1])
    wire.resume(room=2)
    wire.writer.send(b"short")
    wire.resume()
    assert wire.messages() == [b"short", LONG, LONG[::-1]]
    assert wire.kinds == [PART, PART, PART, WHOLE, LAST, PART, PART, PART, LAST]


def test_a_short_message_can_go_behind_everything_that_waits() -> None:
    wire = Wire(room=1)
    wire.writer.send(LONG)
    wire.writer.send(b"release", behind_all=True)
    wire.writer.send(b"short")
    wire.resume()
    assert wire.messages() == [b"short", LONG, b"release"]
    wire.writer.send(b"release", behind_all=True)
    assert wire.messages()[-1] == b"release"


def test_while_paused_nothing_is_written() -> None:
    wire = Wire()
    wire.writer.pause()
    wire.writer.send(b"short")
    wire.writer.send(LONG)
    assert (wire.frames, wire.writer.waiting) == ([], 5 + len(LONG))
    wire.resume(room=1)
    assert wire.messages() == [b"short"]
    wire.resume()
    assert wire.messages() == [b"short", LONG]


# --- the reader ---

SHAPES = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.integers(FRAME_BYTES - 1, 3 * FRAME_BYTES).map(lambda size: b"l" * size),
    ),
    max_size=6,
)


@given(SHAPES, st.lists(st.integers(0, 10_000_000), max_size=8), st.integers(1, 5))
def test_any_split_of_the_stream_brings_the_same_messages(
    messages: list[bytes], cuts: list[int], room: int
) -> None:
    wire = Wire(room)
    for message in messages:
        wire.writer.send(message)
    while wire.writer.waiting or wire.room <= 0:
        wire.resume(room)
    data = b"".join(wire.frames)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found = read(*(data[begin:end] for begin, end in itertools.pairwise(places)))
    assert sorted(found) == sorted(messages)
    for lane in (True, False):
        assert [each for each in found if (len(each) > FRAME_BYTES) is lane] == [
            each for each in messages if (len(each) > FRAME_BYTES) is lane
        ]


@given(SHAPES, st.data())
def test_of_a_stream_that_is_cut_off_the_whole_messages_remain(
    messages: list[bytes], data: st.DataObject
) -> None:
    stream = framed(*messages)
    cut = data.draw(st.integers(0, len(stream)))
    whole, size = 0, 0
    while whole < len(messages) and (size := size + len(framed(messages[whole]))) <= cut:
        whole += 1
    assert read(stream[:cut]) == messages[:whole]


def test_messages_in_single_bytes() -> None:
    messages = [b"one", b"", LONG[: FRAME_BYTES + 1], b"two"]
    assert read(*(bytes([byte]) for byte in framed(*messages))) == messages


@given(st.binary(max_size=400))
def test_hostile_bytes_are_refused_or_waited_for_and_cost_no_more_than_themselves(
    data: bytes,
) -> None:
    reader = MessageReader()
    reader.feed(data)
    taken = 0
    try:
        while (message := reader.next()) is not None:
            taken += len(message)
    except ProtocolError as error:
        with pytest.raises(ProtocolError, match=str(error)):
            reader.next()
    assert taken <= len(data)


@given(st.integers(FRAME_BYTES + 1, 2**32 - 1), st.sampled_from([WHOLE, PART, LAST, 77]))
def test_a_frame_over_its_limit_is_refused_by_its_head(length: int, kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"a frame of {length} bytes"):
        read(HEAD.pack(length, kind))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (frame(3, b"x"), "of kind 3"),
        (frame(255, b""), "of kind 255"),
        (frame(LAST, b"x"), "without a first"),
        (frame(PART, b"x") + frame(LAST, b"y") + frame(LAST, b"z"), "without a first"),
    ],
)
def test_frames_that_make_no_sense_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        read(data)


def test_a_long_message_at_its_limit_and_past_it() -> None:
    parts = [frame(PART, bytes(FRAME_BYTES))] * (MESSAGE_BYTES // FRAME_BYTES - 1)
    (message,) = read(*parts, frame(LAST, bytes(FRAME_BYTES)))
    assert len(message) == MESSAGE_BYTES
    reader = MessageReader()
    for part in (*parts, frame(PART, bytes(FRAME_BYTES))):
        reader.feed(part)
        assert reader.next() is None
    # The head is enough: not a byte of what follows is collected.
    reader.feed(HEAD.pack(1, LAST))
    with pytest.raises(ProtocolError, match="a message is over"):
        reader.next()


# --- messages ---


def test_what_is_sent_at_the_limit_and_past_it() -> None:
    overhead = len(encode(CallResult(1, b"x" * 2**17))) - 2**17
    message = encode(CallResult(1, b"x" * (MESSAGE_BYTES - overhead)))
    assert len(message) == MESSAGE_BYTES
    assert read(framed(message)) == [message]
    with pytest.raises(MessageTooLarge, match=f"a message of {MESSAGE_BYTES + 1} bytes"):
        encode(CallResult(1, b"x" * (MESSAGE_BYTES - overhead + 1)))


@pytest.mark.parametrize(
    ("message", "kinds"),
    [
        (ServiceCall(1, "demo", ["Keep", b"x"]), WorkerMessage),
        (Notification("demo", ["Keep", b"x"]), WorkerMessage),
        (Release(1), WorkerMessage),
        (CallResult(1, {"a": [None]}), ParentMessage),
        (CallRefusal(1, Refusal("a.setting", "no", 3)), ParentMessage),
        (CallFailure(1, "internal_error", "no"), ParentMessage),
    ],
)
def test_messages_there_and_back(message: msgspec.Struct, kinds: type) -> None:
    found: msgspec.Struct = msgspec.msgpack.decode(encode(message), type=kinds)
    assert type(found) is type(message)
    assert encode(found) == encode(message)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x90", b"\x92\xa7Nothing\x01", b"\x94\xabServiceCall\x01\xa1s"]
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(BAD_MESSAGE):
        msgspec.msgpack.decode(data, type=WorkerMessage)


def test_nesting_without_end_is_refused() -> None:
    nested = b"\x94\xabServiceCall\x01\xa1s" + b"\x91" * 100_000
    with pytest.raises(BAD_MESSAGE):
        msgspec.msgpack.decode(nested, type=WorkerMessage)
