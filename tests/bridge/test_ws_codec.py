from __future__ import annotations

import itertools
import json
import mmap
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.jsonutil import json_default
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection import base
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from relay.bridge.messages import Buffer, Channel, Message
from relay.bridge.ws_codec import (
    FRAGMENT_SIZE,
    MAX_BUFFERS,
    Payload,
    Subprotocol,
    choose,
    decode,
    encode,
    fragments,
    frames,
)
from relay.errors import MalformedMessage, TooLarge

jupyter: Any = base  # its functions have no types
unsigned = Session(key=b"")
V1, LEGACY = Subprotocol.V1, Subprotocol.LEGACY

HEADER = (
    b'{"msg_id": "0c5b_1", "msg_type": "stream", "username": "ada", "session": "0c5b", '
    b'"date": "2026-11-01T12:00:00.123456Z", "version": "5.3"}'
)
MESSAGE = Message(Channel.IOPUB, HEADER, b"{}", b'{"a": [1]}', b'{"text": "x"}')
WITH_BUFFERS = Message(Channel.SHELL, *(HEADER, b"{}", b"{}", b'{"b": 2}'), (b"", b"\xff\0", b"c"))
HUGE = [2**31, 2**32 - 1]
HUGE_64 = [*HUGE, 2**32, 2**63 - 1, 2**63, 2**64 - 1]

channels = st.sampled_from(Channel)
buffers = st.lists(st.binary(max_size=64), max_size=5).map(tuple)
four_parts = st.tuples(*[st.binary(max_size=64)] * 4)
names = st.text(max_size=8)
values = st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | names
objects = st.dictionaries(
    names,
    values | st.lists(values, max_size=3) | st.dictionaries(names, values, max_size=3),
    max_size=4,
)


def join(payload: Payload) -> bytes:
    joined = b"".join(payload.parts)
    assert len(joined) == payload.size
    return joined


def json_parts(message: Message) -> list[Any]:
    raw = message.header, message.parent_header, message.metadata, message.content
    return [json.loads(bytes(part)) for part in raw]


def refused(subprotocol: Subprotocol, payload: Buffer, *, text: bool = False) -> bool:
    try:
        decode(subprotocol, text, payload)
    except MalformedMessage:
        return True
    return False


def peak(call: Callable[[], object]) -> int:
    """Bytes allocated by ``call`` at its height."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], LEGACY),
        (["v1.kernel.websocket.jupyter.org"], V1),
        (["other", "v1.kernel.websocket.jupyter.org"], V1),
        (["V1.kernel.websocket.jupyter.org", "", "v2.kernel.websocket.jupyter.org"], LEGACY),
    ],
)
def test_v1_is_chosen_whenever_offered(offered: list[str], chosen: Subprotocol) -> None:
    assert choose(offered) is chosen


# --- v1 -------------------------------------------------------------------------------------


@given(channels, four_parts, buffers)
def test_v1_is_jupyters_byte_for_byte(
    channel: Channel, parts: tuple[bytes, bytes, bytes, bytes], buffers: tuple[bytes, ...]
) -> None:
    message = Message(channel, *parts, buffers)
    payload = encode(V1, message)
    theirs = jupyter.serialize_msg_to_ws_v1([*parts, *buffers], channel.wire)
    assert not payload.text
    assert join(payload) == theirs
    assert decode(V1, False, theirs) == message
    assert decode(V1, False, memoryview(theirs)) == message
    assert jupyter.deserialize_msg_from_ws_v1(theirs) == (channel.wire, [*parts, *buffers])


@pytest.mark.parametrize("message", [MESSAGE, WITH_BUFFERS])
def test_v1_cut_anywhere_is_refused(message: Message) -> None:
    payload = join(encode(V1, message))
    assert not refused(V1, payload)
    for end in range(len(payload)):
        assert refused(V1, payload[:end])


def v1(offsets: Sequence[int], tail: bytes, count: int | None = None) -> bytes:
    count = len(offsets) if count is None else count
    return struct.pack(f"<{1 + len(offsets)}Q", count, *offsets) + tail


@pytest.mark.parametrize("count", [*range(6), 8, 100, *HUGE_64])
def test_v1_counts_that_cannot_be_are_refused_at_once(count: int) -> None:
    payload = v1([56, 61, 63, 65, 67, 69], b"shell{}{}{}{}", count)
    assert refused(V1, payload)
    assert peak(lambda: refused(V1, payload)) < 4096


def test_v1_offsets_may_neither_fall_nor_leave_the_message() -> None:
    good, tail = [64, 69, 71, 73, 75, 77, 79], b"shell{}{}{}{}bb"
    assert decode(V1, False, v1(good, tail)).buffers == (b"bb",)
    for index, value in itertools.product(range(7), [0, 8, 63, 80, *HUGE_64]):
        payload = v1([*good[:index], value, *good[index + 1 :]], tail)
        assert refused(V1, payload), (index, value)
        assert peak(partial(refused, V1, payload)) < 4096
    for index in range(6):  # two parts that overlap
        swapped = [*good[:index], good[index + 1], good[index], *good[index + 2 :]]
        assert refused(V1, v1(swapped, tail))


def test_v1_channel_must_be_known() -> None:
    for name in (b"", b"SHELL", b"shellx", b"controlx", b"hb", b"\xff", b"x" * 1_000_000):
        end = 56 + len(name)
        payload = v1([56, *[end] * 5], name)
        assert refused(V1, payload)
        assert peak(partial(refused, V1, payload)) < 4096


def test_the_number_of_buffers_is_limited() -> None:
    for count, beyond in ((MAX_BUFFERS, False), (MAX_BUFFERS + 1, True)):
        start = 8 * (7 + count)
        payload = v1([start, *[start + 5] * (5 + count)], b"shell")
        assert refused(V1, payload) is beyond
        document = b'{"header": {}}'
        start = 4 * (2 + count)
        offsets = [start, *[start + len(document)] * count]
        payload = layout(offsets, document)
        assert refused(LEGACY, payload) is beyond
    claims = v1([0] * 1_000_000, b"")
    assert peak(lambda: refused(V1, claims)) < 4096


# --- legacy ---------------------------------------------------------------------------------


def layout(offsets: Sequence[int], tail: bytes, count: int | None = None) -> bytes:
    count = len(offsets) if count is None else count
    return struct.pack(f">{1 + len(offsets)}I", count, *offsets) + tail


def as_jupyter_sends(message: Message) -> str | bytes:
    """What jupyter_server writes to a legacy WebSocket, by its own code."""
    raw = [message.header, message.parent_header, message.metadata, message.content]
    read = unsigned.deserialize([b"", *map(bytes, raw), *map(bytes, message.buffers)])
    read["channel"] = message.channel.wire
    if read["buffers"]:
        return bytes(jupyter.serialize_binary_message(read))
    return json.dumps(read, default=json_default)


@settings(deadline=None)  # a busy machine is no failure
@given(channels, objects, objects, buffers)
def test_legacy_is_jupyters_byte_for_byte(
    channel: Channel,
    metadata: dict[str, Any],
    content: dict[str, Any],
    buffers: tuple[bytes, ...],
) -> None:
    meta, body = (json.dumps(part).encode() for part in (metadata, content))
    message = Message(channel, HEADER, HEADER, meta, body, buffers)
    theirs = as_jupyter_sends(message)
    payload = encode(LEGACY, message)
    assert payload.text is isinstance(theirs, str)
    assert join(payload) == (theirs.encode() if isinstance(theirs, str) else theirs)


@settings(deadline=None)  # a busy machine is no failure
@given(channels, objects, objects, objects, buffers, st.booleans())
def test_legacy_round_trip(
    channel: Channel,
    header: dict[str, Any],
    metadata: dict[str, Any],
    content: dict[str, Any],
    buffers: tuple[bytes, ...],
    ascii_only: bool,
) -> None:
    head, meta, body = (
        json.dumps(part, ensure_ascii=ascii_only).encode() for part in (header, metadata, content)
    )
    message = Message(channel, head, b"{}", meta, body, buffers)
    payload = encode(LEGACY, message)
    assert decode(LEGACY, payload.text, join(payload)) == message
    assert decode(LEGACY, payload.text, memoryview(join(payload))) == message


@settings(deadline=None)  # a busy machine is no failure
@given(channels, objects, buffers, st.randoms())
def test_what_jupyter_clients_send_in_any_order_is_read(
    channel: Channel, content: dict[str, Any], buffers: tuple[bytes, ...], random: Any
) -> None:
    fields = {
        "header": {"msg_id": "1"},
        "parent_header": {"date": None},
        "metadata": {"é": 1},
        "content": content,
        "channel": channel.wire,
        "msg_type": "ignored",
    }
    keys = list(fields)
    random.shuffle(keys)
    document = {key: fields[key] for key in keys} | {"buffers": list(buffers)}
    binary = jupyter.serialize_binary_message(document)
    from_binary = decode(LEGACY, False, binary)
    document["buffers"] = random.choice([[], {}, None])
    from_text = decode(LEGACY, True, json.dumps(document, ensure_ascii=False).encode())
    for message, expected in ((from_binary, buffers), (from_text, ())):
        assert message.channel is channel
        assert message.buffers == expected
        assert json_parts(message) == list(fields.values())[:4]


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        (b'{"header": {}}', Channel.SHELL),
        (b'{"header": {}, "channel": null}', Channel.SHELL),
        (
            b' \n{"header": {}, "channel": "stdin", "content": null, "metadata": null}',
            Channel.STDIN,
        ),
        (b'{"parent_header": null, "header": {}, "channel": "control"}', Channel.CONTROL),
    ],
)
def test_what_is_missing_or_null_is_empty(text: bytes, channel: Channel) -> None:
    assert decode(LEGACY, True, text) == Message(channel, b"{}", b"{}", b"{}", b"{}")


def test_values_as_long_as_null_are_kept() -> None:
    assert decode(LEGACY, True, b'{"header": {}, "content": {  }}').content == b"{  }"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"secret",
        b"{}",
        b'{"content": {}}',
        b'{"header": {}, "channel": "secret"}',
        b'{"header": {}, "channel": 0}',
        b'{"header": {}, "channel": "shell\xff"}',
        b'{"header": {}, "content": {"a": "secret\xff"}}',
        b'{"header": {}} {}',
        b'{"header": {}, "content": {"a": NaN}}',  # only Python calls this JSON
        b'{"header": {}, "content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_text_that_is_no_message_is_refused_and_not_quoted(text: bytes) -> None:
    for payload in (text, layout([8], text)):
        with pytest.raises(MalformedMessage) as caught:
            decode(LEGACY, payload is text, payload)
        assert "secret" not in caught.value.message
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_legacy_text_cut_anywhere_is_refused() -> None:
    payload = join(encode(LEGACY, MESSAGE))
    for end in range(len(payload)):
        assert refused(LEGACY, payload[:end], text=True)


@pytest.mark.parametrize("text", [True, False])
def test_legacy_binary_cut_before_its_last_buffer_is_refused(text: bool) -> None:
    payload = join(encode(LEGACY, WITH_BUFFERS))
    for end in range(len(payload)):
        # The last buffer runs to the end, wherever that is.
        assert refused(LEGACY, payload[:end], text=text) is (end < len(payload) - 1)


@pytest.mark.parametrize("last", [b"\xff\xfe", b"ascii"])
def test_the_binary_format_is_read_from_text_frames_too(last: bytes) -> None:
    message = Message(Channel.SHELL, HEADER, b"{}", b"{}", b"{}", (b"", last))
    assert decode(LEGACY, True, join(encode(LEGACY, message))) == message


@pytest.mark.parametrize("count", [0, 4, 100, 2**24, *HUGE])
@pytest.mark.parametrize("text", [True, False])
def test_legacy_counts_that_cannot_be_are_refused_at_once(count: int, text: bool) -> None:
    payload = layout([12, 26], b'{"header": {}}', count)
    assert refused(LEGACY, payload, text=text)
    assert peak(lambda: refused(LEGACY, payload, text=text)) < 4096


def test_legacy_offsets_may_neither_fall_nor_leave_the_message() -> None:
    good, tail = [16, 30, 32], b'{"header": {}}bbcc'
    assert decode(LEGACY, False, layout(good, tail)).buffers == (b"bb", b"cc")
    for index, value in itertools.product(range(3), [0, 15, 35, *HUGE]):
        payload = layout([*good[:index], value, *good[index + 1 :]], tail)
        assert refused(LEGACY, payload), (index, value)
        assert peak(partial(refused, LEGACY, payload)) < 4096
    assert refused(LEGACY, layout([16, 32, 30], tail))


@given(st.binary(), st.sampled_from(Subprotocol), st.booleans())
def test_any_bytes_are_a_message_or_refused(
    payload: bytes, subprotocol: Subprotocol, text: bool
) -> None:
    refused(subprotocol, payload, text=text)


@given(st.data(), st.sampled_from(Subprotocol), st.sampled_from([MESSAGE, WITH_BUFFERS]))
def test_any_change_to_a_message_gives_a_message_or_is_refused(
    data: st.DataObject, subprotocol: Subprotocol, message: Message
) -> None:
    payload = bytearray(join(encode(subprotocol, message)))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    refused(subprotocol, bytes(payload), text=data.draw(st.booleans()))


@pytest.mark.parametrize(
    ("header", "ids"),
    [
        (b"{}", ["", ""]),
        (b'{"msg_id": "", "x": 1}', ["", ""]),
        (b'{"msg_type": "status"}', ["", "status"]),
        (b'{"msg_type": null, "msg_id": 7}', [7, None]),
    ],
)
def test_ids_are_repeated_from_whatever_header(header: bytes, ids: list[object]) -> None:
    for buffers in ((), (b"b",)):
        message = Message(Channel.SHELL, header, b"", memoryview(b""), b"", buffers)
        payload = join(encode(LEGACY, message))
        read = json.loads(payload[12:-1] if buffers else payload)
        assert [read["msg_id"], read["msg_type"]] == ids
        assert read["header"] == json.loads(header)
        assert read["parent_header"] == read["metadata"] == read["content"] == {}
        assert read.get("buffers") == (None if buffers else [])


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"{}{}", b'{"a": ' + b"[" * 100_000])
def test_a_header_that_cannot_be_spliced_is_refused(header: bytes) -> None:
    with pytest.raises(MalformedMessage):
        encode(LEGACY, Message(Channel.SHELL, header, b"{}", b"{}", b"{}"))


@pytest.mark.parametrize("own", [bytes, memoryview])
def test_legacy_text_is_always_utf8(own: Callable[[bytes], Buffer]) -> None:
    bad = own(b'{"a": "\xc3\xa9 \x80 \xed\xa0\x80"}')  # the second is a surrogate
    for buffers in ((), (b"\xff",)):
        message = Message(Channel.IOPUB, bad, bad, bad, bad, buffers)
        payload = encode(LEGACY, message)
        document = join(payload)[12:-1] if buffers else join(payload)
        assert json.loads(document.decode())["content"] == {"a": "é � ���"}
        assert bad in encode(V1, message).parts


def test_a_part_that_ends_inside_a_character_is_made_utf8() -> None:
    message = Message(Channel.IOPUB, HEADER, b"{}", b"{}", "😀".encode()[:-1])
    assert "\ufffd" in join(encode(LEGACY, message)).decode()


def test_long_characters_anywhere_are_utf8() -> None:
    for padding in range(4):
        content = ('"' + "a" * padding + "😀" * 50_000 + '"').encode()
        message = Message(Channel.IOPUB, HEADER, b"{}", b"{}", content)
        assert any(part is content for part in encode(LEGACY, message).parts)
        assert not refused(LEGACY, b'{"header": {}, "content": %b}' % content, text=True)
        assert refused(LEGACY, b'{"header": {}, "content": %b}' % content[:-2], text=True)


def test_offsets_beyond_32_bits_are_too_large() -> None:
    with mmap.mmap(-1, 2**32, prot=mmap.PROT_READ) as nothing:
        view = memoryview(nothing)
        message = Message(Channel.IOPUB, HEADER, b"{}", b"{}", b"{}", (view,))
        assert encode(LEGACY, message).size > 2**32  # only where parts begin is written down
        with pytest.raises(TooLarge):
            encode(LEGACY, Message(Channel.IOPUB, HEADER, b"{}", b"{}", b"{}", (view, b"")))
        del message
        view.release()


# --- nothing big is copied --------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", Subprotocol)
@pytest.mark.parametrize("buffers", [(), (memoryview(bytes(5_000_000)),)])
def test_big_messages_are_not_copied(
    subprotocol: Subprotocol, buffers: tuple[memoryview, ...]
) -> None:
    content = b'"' + b"x" * 5_000_000 + b'"'
    message = Message(Channel.IOPUB, HEADER, b"{}", b"{}", content, buffers)
    payload = encode(subprotocol, message)
    assert any(part is content for part in payload.parts)
    assert peak(lambda: encode(subprotocol, message)) < 8192
    joined = join(payload)
    assert decode(subprotocol, payload.text, joined) == message
    assert peak(lambda: decode(subprotocol, payload.text, joined)) < 2 * 65536  # checking UTF-8
    assert peak(lambda: [len(frame) for frame in frames(payload)]) < 4 * FRAGMENT_SIZE


@pytest.mark.parametrize("subprotocol", Subprotocol)
@pytest.mark.parametrize("message", [MESSAGE, WITH_BUFFERS])
def test_small_messages_do_not_hold_on_to_their_payload(
    subprotocol: Subprotocol, message: Message
) -> None:
    payload = encode(subprotocol, message)
    read = decode(subprotocol, payload.text, memoryview(join(payload)))
    parts = read.header, read.parent_header, read.metadata, read.content, *read.buffers
    assert {type(part) for part in parts} == {bytes}


# --- frames ---------------------------------------------------------------------------------

SIZES = [
    *(0, 1, 125, 126, 127, 65535, 65536, 65537),
    *(FRAGMENT_SIZE - 1, FRAGMENT_SIZE, FRAGMENT_SIZE + 1, 2 * FRAGMENT_SIZE),
    3 * FRAGMENT_SIZE + 5,
]


def payload_of(size: int, cuts: Sequence[int] = (), *, text: bool = False) -> Payload:
    """A payload of ``size`` bytes, cut into parts (of both kinds, some empty) at ``cuts``."""
    whole = (bytes(range(251)) * (size // 251 + 1))[:size]
    edges = [0, *sorted(cut % (size + 1) for cut in cuts), size]
    parts: list[Buffer] = [whole[a:b] for a, b in itertools.pairwise(edges)]
    parts[::2] = [memoryview(part) for part in parts[::2]]
    return Payload(text=text, parts=tuple(parts), size=size)


def received(chunks: Sequence[bytes]) -> list[Frame]:
    """What the websockets library, as the client, makes of the frames."""
    client = Protocol(Side.CLIENT, state=State.OPEN, max_size=None)
    for chunk in chunks:
        client.receive_data(chunk)
    assert client.parser_exc is None
    events = client.events_received()
    assert all(isinstance(event, Frame) for event in events)
    return [event for event in events if isinstance(event, Frame)]


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_frames_are_valid_and_rejoin(size: int, text: bool) -> None:
    payload = payload_of(
        size, [1, 2, 2, 125, 70_000, 131_072, 200_000, 262_143, 300_000], text=text
    )
    sent = list(frames(payload))
    got = received(sent)
    assert len(sent) == len(got) == fragments(payload) == max(1, -(-size // FRAGMENT_SIZE))
    assert b"".join(bytes(frame.data) for frame in got) == b"".join(payload.parts)
    first = Opcode.TEXT if text else Opcode.BINARY
    assert [frame.opcode for frame in got] == [first, *[Opcode.CONT] * (len(got) - 1)]
    assert [frame.fin for frame in got] == [*[False] * (len(got) - 1), True]
    assert all(len(frame.data) == FRAGMENT_SIZE for frame in got[:-1])
    assert sent == [frame.serialize(mask=False) for frame in got]


@pytest.mark.parametrize("size", SIZES)
def test_skip_leaves_out_exactly_the_first_frames(size: int) -> None:
    payload = payload_of(size, [1, 2, 2, 125, 70_000, 131_072, 200_000, 262_143, 300_000])
    whole = list(frames(payload))
    for skip in range(len(whole) + 2):
        assert list(frames(payload, skip)) == whole[skip:]


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.integers(0, 4 * FRAGMENT_SIZE),
    st.lists(st.integers(0, 4 * FRAGMENT_SIZE), max_size=8),
    st.lists(st.integers(0, 4 * FRAGMENT_SIZE), max_size=8),
    st.integers(0, 5),
)
def test_frames_do_not_depend_on_the_parts(
    size: int, cuts: list[int], others: list[int], skip: int
) -> None:
    assert (
        list(frames(payload_of(size, cuts), skip)) == list(frames(payload_of(size, others)))[skip:]
    )


def test_text_may_be_cut_inside_a_character() -> None:
    text = "a" + "é" * FRAGMENT_SIZE
    payload = Payload(text=True, parts=(text.encode(),), size=2 * FRAGMENT_SIZE + 1)
    got = received(list(frames(payload)))
    assert bytes(got[0].data).endswith(b"\xc3")
    assert b"".join(bytes(frame.data) for frame in got).decode() == text
