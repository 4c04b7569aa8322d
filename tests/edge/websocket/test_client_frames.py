from __future__ import annotations

import asyncio
import functools
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close as CloseFrame
from websockets.frames import Frame, Opcode

from relay.edge.websocket.client_frames import (
    ClientMessage,
    Pong,
    Violation,
)
from relay.edge.websocket.state import State
from tests.edge.websocket.ends import (
    CLOSE,
    UNKNOWN,
    close_of,
    frames_of,
    linked,
    receive,
    submitted,
)
from tests.fakes import binary, client_frame, message, text
from tests.playbook import Playbook
from tests.virtualtime import settle, virtual

# Without a pipe


def test_bytes_become_messages_and_pongs_and_a_close_frame_is_the_last() -> None:
    frames = frames_of()
    (
        Playbook(functools.partial(receive, frames))
        >> text(b"one") + binary(b"t", b"wo")
        << [ClientMessage(b"one", text=True), ClientMessage(b"two", text=False)]
        >> text(b"x")[:4]
        << []
        >> text(b"x")[4:]
        << [ClientMessage(b"x", text=True)]
        >> client_frame(Opcode.PONG, b"p") + client_frame(Opcode.PING, b"q")
        << [Pong(b"p")]
        >> text(b"last") + CLOSE + text(b"never read")
        << [ClientMessage(b"last", text=True)]
        >> text(b"never read")
        << []
    )
    pong, answer, end = frames.data_to_send()
    assert pong == Frame(Opcode.PONG, b"q").serialize(mask=False)
    assert answer == Frame(Opcode.CLOSE, CloseFrame(1000, "").serialize()).serialize(mask=False)
    assert end == b""
    assert frames.data_to_send() == []


@pytest.mark.parametrize(
    ("data", "violation"),
    [
        (UNKNOWN, Violation("invalid opcode")),
        (text(b"\xff"), Violation("a text that is not UTF-8")),
        (
            text(bytes(101)),
            Violation(
                "frame with 101 bytes exceeds limit of 100 bytes",
                "limits.message_bytes",
            ),
        ),
        (
            text(b"", b"", b"", b""),
            Violation("a message in more than 3 frames", "limits.message_frames"),
        ),
        (
            client_frame(Opcode.PONG) * 6,
            Violation(
                "more than 5 control frames a second",
                "limits.control_frames",
            ),
        ),
    ],
)
def test_a_violation_says_what_was_wrong_and_is_the_last(data: bytes, violation: Violation) -> None:
    frames = frames_of(message_bytes=100, message_frames=3, control_frames=5)
    *before, last = receive(frames, data + text(b"later"))
    assert last == violation
    assert all(isinstance(event, Pong) for event in before)
    assert frames.state is State.FAILED
    assert receive(frames, text(b"later") + UNKNOWN) == []


def test_no_frame_is_sent_behind_the_answer_to_a_close_frame() -> None:
    frames = frames_of()
    for event in frames.receive(client_frame(Opcode.PONG, b"p") + CLOSE, 0.0):
        assert event == Pong(b"p")
        assert not frames.send_ping(b"late")
        assert frames.close(1012, "late")
    assert [data[:1] for data in frames.data_to_send()] == [b"\x88", b""]


def test_a_message_that_was_begun_is_forgotten_at_the_end() -> None:
    frames = frames_of()
    receive(frames, client_frame(Opcode.TEXT, b"a" * 1000, fin=False))
    frames.close(1000, "")
    assert frames._fragments == b""


# Through a pipe

MESSAGES = [(1, True, b"one"), (2, False, b"t\0wo"), (3, True, b""), (4, False, b"x" * 300)]
BYTES = (
    text(b"o", b"", b"ne")
    + client_frame(Opcode.PING, b"p")
    + binary(b"t\0wo")
    + text(b"")
    + client_frame(Opcode.PONG, b"unasked")
    + binary(b"x" * 130, b"x" * 170)
)


@virtual
async def test_frames_cut_at_every_byte_give_the_same_messages() -> None:
    for cut in range(len(BYTES) + 1):
        _, browser, agent = linked()
        browser.send(BYTES[:cut])
        browser.send(BYTES[cut:])
        assert submitted(agent) == MESSAGES
        assert [frame.opcode for frame in browser.received()] == [Opcode.PONG]


@virtual
async def test_frames_byte_by_byte_give_the_same_messages() -> None:
    _, browser, agent = linked()
    for byte in BYTES:
        browser.send(bytes([byte]))
    assert submitted(agent) == MESSAGES


opcodes = st.sampled_from([Opcode.TEXT, Opcode.BINARY])
pieces = st.lists(st.binary(max_size=200), min_size=1, max_size=5)


@given(st.lists(st.tuples(opcodes, pieces), max_size=5), st.lists(st.integers(1, 300)))
@virtual
async def test_any_messages_in_any_pieces_arrive(
    sent: list[tuple[Opcode, list[bytes]]], sizes: list[int]
) -> None:
    _, browser, agent = linked(any_text=True)
    rest = b"".join(message(opcode, fragments) for opcode, fragments in sent)
    for size in sizes:
        browser.send(rest[:size])
        rest = rest[size:]
    browser.send(rest)
    assert submitted(agent) == [
        (number, opcode is Opcode.TEXT, b"".join(fragments))
        for number, (opcode, fragments) in enumerate(sent, 1)
    ]


@virtual
async def test_a_message_is_sent_on_with_its_last_fragment() -> None:
    _, browser, agent = linked()
    browser.send(client_frame(Opcode.TEXT, b"a", fin=False))
    browser.send(client_frame(Opcode.CONT, b"b", fin=False))
    assert submitted(agent) == []
    browser.send(client_frame(Opcode.CONT, b"c"))
    assert submitted(agent) == [(1, True, b"abc")]


@virtual
async def test_control_frames_may_stand_between_fragments() -> None:
    _, browser, agent = linked()
    browser.send(
        client_frame(Opcode.BINARY, b"a", fin=False),
        client_frame(Opcode.PING, b"mid"),
        client_frame(Opcode.PONG),
        client_frame(Opcode.CONT, b"b"),
    )
    assert submitted(agent) == [(1, False, b"ab")]
    assert browser.received() == [Frame(Opcode.PONG, b"mid")]


@virtual
async def test_a_ping_is_answered_at_once_with_what_it_carried() -> None:
    _, browser, _ = linked()
    for data in (b"", b"x" * 125):
        browser.send(client_frame(Opcode.PING, data))
        assert browser.received() == [Frame(Opcode.PONG, data)]


TEXT_HEAD = b"\x81"
"""FIN and the opcode of a text frame."""


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (client_frame(Opcode.TEXT, b"{}", mask=False), 1002),
        (client_frame(Opcode.PING, mask=False), 1002),
        *((client_frame(Opcode.TEXT | bit), 1002) for bit in (0x40, 0x20, 0x10)),
        *((client_frame(opcode), 1002) for opcode in (3, 7, 0xB, 0xF)),
        (client_frame(Opcode.CONT, b"from nowhere"), 1002),
        (client_frame(Opcode.TEXT, b"a", fin=False) + text(b"b"), 1002),
        (client_frame(Opcode.PING, fin=False), 1002),
        (client_frame(Opcode.PING, bytes(126)), 1002),
        (client_frame(Opcode.CLOSE, b"\x03"), 1002),
        (client_frame(Opcode.CLOSE, struct.pack(">H", 1005)), 1002),
        (client_frame(Opcode.CLOSE, struct.pack(">H", 1000) + b"\xff"), 1007),
        (client_frame(Opcode.TEXT, b"a", fin=False) + client_frame(Opcode.CLOSE), 1002),
    ],
)
@virtual
async def test_what_is_no_websocket_ends_the_connection(frames: bytes, code: int) -> None:
    pipe, browser, agent = linked()
    browser.send(text(b"good") + frames + text(b"never read"))
    assert close_of(browser.received()[-1])[0] == code
    assert browser.transport.is_closing()
    await settle()
    assert pipe.finished.is_set()
    assert submitted(agent) == [(1, True, b"good")]
    assert agent.transport.is_closing()


@pytest.mark.parametrize(
    "frames",
    [
        text(bytes(101)),
        text(bytes(60), bytes(41)),
        text(*[b"x"] * 101),
        # The length is enough: nothing of it has come.
        TEXT_HEAD + b"\xff" + struct.pack(">Q", 2**62) + bytes(4),
        TEXT_HEAD + b"\xff" + struct.pack(">Q", 2**63) + bytes(4),
        TEXT_HEAD + b"\xff" + struct.pack(">Q", 2**64 - 1) + bytes(4),
        client_frame(Opcode.TEXT, bytes(60), fin=False)
        + b"\x80\xff"
        + struct.pack(">Q", 2**63)
        + bytes(4),
    ],
)
@virtual
async def test_a_message_over_the_limit_ends_the_connection(frames: bytes) -> None:
    _, browser, agent = linked(message_bytes=100)
    tracemalloc.start()
    try:
        browser.send(frames)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert close_of(browser.received()[-1])[0] == 1009
    assert browser.transport.is_closing()
    assert submitted(agent) == []


@virtual
async def test_a_message_as_large_as_the_limit_goes_through() -> None:
    _, browser, agent = linked(message_bytes=100)
    browser.send(text(bytes(100)), text(bytes(60), bytes(40)), text(*[b"x"] * 100))
    assert [len(payload) for _, _, payload in submitted(agent)] == [100, 100, 100]


@virtual
async def test_tiny_fragments_cost_no_more_than_what_they_hold() -> None:
    _, browser, agent = linked(message_frames=5_002)
    first = client_frame(Opcode.BINARY, b"", fin=False)
    many = client_frame(Opcode.CONT, b"ab", fin=False) * 100
    browser.send(first)
    tracemalloc.start()
    try:
        for _ in range(50):
            browser.send(many)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 5 * 10_000
    browser.send(client_frame(Opcode.CONT))
    assert submitted(agent) == [(1, False, b"ab" * 5_000)]


@virtual
async def test_a_message_in_as_many_frames_as_it_may_and_in_one_more() -> None:
    for pieces, code in ((5, None), (6, 1009)):
        _, browser, agent = linked(message_frames=5)
        # Its neighbours do not count, nor does what is between its frames.
        browser.send(text(b"x") + client_frame(Opcode.TEXT, b"", fin=False))
        for _ in range(pieces - 2):
            browser.send(client_frame(Opcode.CONT, fin=False) + client_frame(Opcode.PING))
        browser.send(client_frame(Opcode.CONT) + text(b"x"))
        closes = [frame for frame in browser.received() if frame.opcode is Opcode.CLOSE]
        if code is None:
            assert [payload for _, _, payload in submitted(agent)] == [b"x", b"", b"x"]
            assert closes == []
        else:
            assert close_of(closes[0])[0] == code
            assert "limits.message_frames" in close_of(closes[0])[1]
            assert [payload for _, _, payload in submitted(agent)] == [b"x"]


INVALID = [
    b"\x80",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xff",
    b"abc\xce",
    b"x" * 65_535 + b"\xce\xba\xff",
]


@pytest.mark.parametrize("invalid", INVALID)
@virtual
async def test_a_text_that_is_no_text(invalid: bytes) -> None:
    cuts = ([invalid], [invalid[:1], invalid[1:]], [invalid, b""], [b"", *invalid[-5:].split()])
    for pieces in cuts:
        _, browser, agent = linked()
        browser.send(text(*pieces) + text(b"later"))
        (close,) = browser.received()
        assert close_of(close) == (1007, "a text that is not UTF-8")
        # Neither that nor what follows is anybody's request.
        assert submitted(agent) == []
        # A Jupyter Server in gateway mode sends buffers so, and nothing says what is in binary.
        _, browser, agent = linked(any_text=True)
        browser.send(text(*pieces))
        _, other, also = linked()
        other.send(binary(*pieces))
        assert [each[2] for each in submitted(agent)] == [b"".join(pieces)]
        assert [each[2] for each in submitted(also)] == [b"".join(pieces)]


@virtual
async def test_a_text_may_be_cut_anywhere() -> None:
    whole = "κόσμε😀".encode() * 9000
    for size in (1, 2, 3, 65_535, 65_536, 65_537):
        few = whole if size > 3 else whole[:28]
        pieces = [few[start : start + size] for start in range(0, len(few), size)]
        _, browser, agent = linked()
        browser.send(text(*pieces))
        assert [payload for _, _, payload in submitted(agent)] == [few]


@virtual
async def test_who_breaks_off_a_text_may_begin_another() -> None:
    _, browser, agent = linked()
    browser.send(text(b"\xce", b"\xba") + binary(b"\xff") + text(b"\xce\xba"))
    assert [payload for _, _, payload in submitted(agent)] == [b"\xce\xba", b"\xff", b"\xce\xba"]


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
@virtual
async def test_control_frames_up_to_the_limit_and_one_more(opcode: Opcode) -> None:
    _, browser, agent = linked(control_frames=20)
    for _ in range(3):
        browser.send(client_frame(opcode) * 20 + text(b"x"))
        assert not [each for each in browser.received() if each.opcode is Opcode.CLOSE]
        await asyncio.sleep(1)
    browser.send(client_frame(opcode) * 20)
    await asyncio.sleep(0.9)
    browser.send(client_frame(opcode) + text(b"late"))
    (close,) = [each for each in browser.received() if each.opcode is Opcode.CLOSE]
    assert close_of(close) == (1008, "more than 20 control frames a second (limits.control_frames)")
    assert [payload for _, _, payload in submitted(agent)] == [b"x"] * 3
