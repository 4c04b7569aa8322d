from __future__ import annotations

import asyncio
import re
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close as CloseFrame
from websockets.frames import Frame, Opcode

from relay.bridge.records import (
    BUSY,
    Close,
    Detach,
    Disconnect,
    Position,
    RecordKind,
    frames_record,
    number_record,
    read_message,
    read_number,
    read_struct,
    record,
    struct_record,
)
from relay.config import EdgeLimits, WebSocketSettings
from relay.edge.pipe import Pipe
from relay.metrics import EdgeMetrics
from tests.fakes import Agent, Browser, FakeTransport, binary, client_frame, message, text
from tests.virtualtime import settle, virtual

START = Position("e1", 10)
PROOF, PING, PONG_TIMEOUT = 0.2, 25.0, 60.0


def opened(*, any_text: bool = False, **limits: int) -> tuple[Pipe, Browser]:
    """A client that has been let in."""
    transport = FakeTransport()
    settings = WebSocketSettings(
        ping_interval=PING, pong_timeout=PONG_TIMEOUT, proof_interval=PROOF
    )
    traffic = EdgeMetrics.local().traffic("alpha")
    pipe = Pipe(transport, EdgeLimits(**limits), settings, traffic, any_text=any_text)
    transport.set_protocol(pipe)
    return pipe, Browser(transport)


def linked(*, any_text: bool = False, **limits: int) -> tuple[Pipe, Browser, Agent]:
    """A client with a kernel."""
    pipe, browser = opened(any_text=any_text, **limits)
    agent = Agent.attached(START)
    pipe.bind(agent.link)
    return pipe, browser, agent


def relinked(pipe: Pipe, acknowledged: int = 0, position: Position | None = None) -> Agent:
    """The next agent takes over."""
    agent = Agent.attached(position or pipe.position or START, acknowledged)
    pipe.bind(agent.link)
    return agent


def submitted(agent: Agent) -> list[tuple[int, bool, bytes]]:
    """The client messages that came to the agent."""
    return [
        (number, is_text, bytes(payload))
        for number, is_text, payload in (
            read_message(payload)
            for kind, payload in agent.received()
            if kind is RecordKind.MESSAGE
        )
    ]


def proofs(agent: Agent) -> list[int]:
    return [read_number(payload) for kind, payload in agent.received() if kind is RecordKind.PROVED]


def farewell(agent: Agent) -> Detach:
    """The last thing that the agent heard before the edge hung up."""
    assert agent.transport.is_closing()
    kind, payload = agent.received()[-1]
    assert kind is RecordKind.DETACH
    return read_struct(payload, Detach)


def without_pings(data: bytes) -> bytes:
    return re.sub(rb"\x89\x08.{8}", b"", data, flags=re.DOTALL)


def output(seq: int, fragment: int = 0, frames: bytes = b"\x81\x01x") -> bytes:
    return frames_record(seq, fragment, [frames])


def acknowledge(number: int) -> bytes:
    return number_record(RecordKind.ACK, number)


def close_of(frame: Frame) -> tuple[int, str]:
    assert frame.opcode is Opcode.CLOSE
    close = CloseFrame.parse(frame.data)
    return int(close.code), close.reason


# From the client

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


@virtual
async def test_a_client_that_does_not_read_is_owed_one_pong() -> None:
    pipe, browser, _ = linked()
    pipe.pause_writing()
    for number in range(150):
        browser.send(client_frame(Opcode.PING, b"%d" % number))
    assert browser.received() == []
    pipe.resume_writing()
    (pong,) = browser.received()
    assert (pong.opcode, pong.data) == (Opcode.PONG, b"149")
    pipe.resume_writing()
    assert browser.received() == []


@virtual
async def test_who_was_sent_away_is_not_heard_any_more() -> None:
    pipe, browser, agent = linked()
    pipe.close(4401, "expired")
    for _ in range(100):
        browser.send(text(b"x" * 1000))
    assert submitted(agent) == []
    assert pipe._kept_bytes == 0


# To the client


@virtual
async def test_frames_go_to_the_client_as_they_came() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11, 0, b"\x81\x02hi\x82\x01\0"), output(14, 2, b"\x01\x03abc"))
    assert without_pings(browser.transport.take()) == b"\x81\x02hi\x82\x01\0\x01\x03abc"
    # One write per record: nobody looks into them.
    # Two records, and a ping behind the first.
    assert browser.transport.writes == 3
    assert pipe.position == Position("e1", 14, 2)


@virtual
async def test_output_input_and_a_busy_kernel_are_activity_and_a_quiet_one_is_not() -> None:
    pipe, browser, agent = linked()
    loop = asyncio.get_running_loop()
    quiet = [record(RecordKind.PONG), record(RecordKind.PONG, b"\0"), acknowledge(1)]
    for data, active in (
        *((each, False) for each in quiet),
        (record(RecordKind.PONG, BUSY), True),
        (output(11), True),
    ):
        await asyncio.sleep(1)
        agent.send(data)
        assert (pipe.last_activity == loop.time()) is active, data
    await asyncio.sleep(1)
    browser.send(client_frame(Opcode.PONG))
    assert pipe.last_activity == loop.time() - 1
    browser.send(client_frame(Opcode.TEXT, b"x"))
    assert pipe.last_activity == loop.time()


@virtual
async def test_a_record_in_pieces_is_written_when_it_is_whole() -> None:
    pipe, browser, agent = linked()
    data = output(11)
    agent.send(data[:-1])
    assert not browser.transport.written
    assert pipe.position == START
    agent.send(data[-1:])
    assert pipe.position == Position("e1", 11)


@virtual
async def test_what_came_with_the_answer_to_attach_waits_for_the_client() -> None:
    pipe, browser = opened()
    agent = Agent.attached(START)
    agent.send(output(11))
    # Meanwhile no more is read.
    assert not agent.transport.is_reading()
    pipe.bind(agent.link)
    assert agent.transport.is_reading()
    assert without_pings(browser.transport.take()) == b"\x81\x01x"
    assert pipe.position == Position("e1", 11)


@pytest.mark.parametrize(
    "data",
    [
        record(RecordKind.FRAMES, b"short"),
        record(RecordKind.ACK, b"short"),
        record(RecordKind.CLOSE, b"{}"),
        b"\0\0\0\0\xff",
        b"\xff\xff\xff\xff\x03",
    ],
)
@virtual
async def test_an_agent_that_speaks_no_records_costs_the_link_only(data: bytes) -> None:
    pipe, browser, agent = linked()
    agent.send(data)
    await settle()
    assert agent.transport.lost
    assert pipe.unlinked.is_set()
    assert not browser.transport.is_closing()


# Links that come and go


@virtual
async def test_a_lost_link_is_not_the_clients_business() -> None:
    pipe, browser, agent = linked()
    assert not pipe.unlinked.is_set()
    agent.transport.lose(ConnectionResetError())
    assert pipe.unlinked.is_set()
    assert not pipe.finished.is_set()
    assert not browser.transport.is_closing()
    relinked(pipe)
    assert not pipe.unlinked.is_set()


@virtual
async def test_what_was_not_acknowledged_is_sent_again_in_order() -> None:
    pipe, browser, agent = linked()
    browser.send(text(b"1"), text(b"2"), text(b"3"))
    agent.send(acknowledge(1))
    agent.transport.lose()
    browser.send(text(b"4"), binary(b"5"))
    # The holder had the second, but the link broke before it could say so.
    agent = relinked(pipe, acknowledged=2)
    again = [(3, True, b"3"), (4, True, b"4"), (5, False, b"5")]
    assert submitted(agent) == again
    browser.send(text(b"6"))
    assert submitted(agent) == [(6, True, b"6")]
    agent.transport.lose()
    assert submitted(relinked(pipe, acknowledged=0)) == [*again, (6, True, b"6")]


@virtual
async def test_what_was_acknowledged_is_never_sent_again() -> None:
    pipe, browser, agent = linked()
    browser.send(text(b"1"), text(b"2"))
    agent.send(acknowledge(2), acknowledge(1))
    agent.transport.lose()
    assert submitted(relinked(pipe)) == []


@virtual
async def test_half_a_message_from_the_client_outlives_a_link() -> None:
    pipe, browser, agent = linked()
    data = text(b"a", b"b", b"c")
    browser.send(data[:9])
    agent.transport.lose()
    browser.send(data[9:16])
    agent = relinked(pipe)
    browser.send(data[16:])
    assert submitted(agent) == [(1, True, b"abc")]


@virtual
async def test_the_next_link_goes_on_in_the_middle_of_a_message() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11, 1, b"\x01\x01a"))
    agent.transport.lose()
    agent = relinked(pipe)
    agent.send(output(12, 0, b"\x80\x01b"))
    assert without_pings(browser.transport.take()) == b"\x01\x01a\x80\x01b"
    assert pipe.position == Position("e1", 12)


@pytest.mark.parametrize(
    "other", [Position("e1", 11), Position("e2", 11, 1), Position("e1", 12, 1)]
)
@virtual
async def test_half_a_message_is_not_continued_with_another(other: Position) -> None:
    pipe, browser, agent = linked()
    agent.send(output(11, 1, b"\x01\x01a"))
    agent.transport.lose()
    agent = relinked(pipe, position=other)
    agent.send(output(12, 0, b"\x80\x01b"))
    # Not even the client's library takes this for a clean end.
    close = Frame(Opcode.CLOSE, CloseFrame(1011, "the rest of a message is lost").serialize())
    assert without_pings(browser.transport.take()) == b"\x01\x01a" + close.serialize(mask=False)
    assert farewell(agent).disconnect is None
    # Nobody should look for yet another link.
    assert not pipe.unlinked.is_set()


@virtual
async def test_between_messages_the_next_link_may_stand_elsewhere() -> None:
    pipe, _, agent = linked()
    agent.send(output(11))
    agent.transport.lose()
    relinked(pipe, position=Position("e2", 3))
    assert pipe.position == Position("e2", 3)


@virtual
async def test_a_link_that_is_lost_before_it_is_used_is_lost() -> None:
    pipe, browser = opened()
    browser.send(text(b"1"))
    agent = Agent.attached(START)
    agent.transport.lose()
    pipe.bind(agent.link)
    assert pipe.unlinked.is_set()
    assert submitted(relinked(pipe)) == [(1, True, b"1")]


@virtual
async def test_a_link_that_comes_after_the_client_left_is_hung_up() -> None:
    pipe, browser, agent = linked()
    agent.transport.lose()
    browser.transport.lose()
    late = relinked(pipe)
    assert farewell(late).disconnect is Disconnect.ABNORMAL


@virtual
async def test_a_link_that_comes_after_a_close_frame_is_hung_up() -> None:
    pipe, browser, agent = linked()
    agent.transport.lose()
    pipe.close(1012, "the relay is restarting")
    late = relinked(pipe)
    late.send(output(11))
    assert [frame.opcode for frame in browser.received()] == [Opcode.CLOSE]
    assert farewell(late).disconnect is None
    assert not pipe.unlinked.is_set()


# Back-pressure


@virtual
async def test_a_slow_agent_pauses_the_client() -> None:
    _, browser, agent = linked()
    agent.link.pause_writing()
    assert not browser.transport.is_reading()
    agent.link.resume_writing()
    assert browser.transport.is_reading()


@virtual
async def test_a_client_is_paused_while_too_much_is_unacknowledged() -> None:
    _, browser, agent = linked(unacknowledged_bytes=250)
    browser.send(text(bytes(100)))
    browser.send(text(bytes(100)))
    assert browser.transport.is_reading()
    browser.send(text(bytes(100)))
    assert not browser.transport.is_reading()
    agent.send(acknowledge(1))
    assert browser.transport.is_reading()


@virtual
async def test_a_client_without_a_link_is_paused_in_time() -> None:
    pipe, browser, agent = linked(unacknowledged_bytes=250)
    agent.transport.lose()
    for _ in range(3):
        assert browser.transport.is_reading()
        browser.send(text(bytes(100)))
    assert not browser.transport.is_reading()
    relinked(pipe, acknowledged=2)
    assert browser.transport.is_reading()


@virtual
async def test_both_reasons_to_pause_must_be_gone() -> None:
    _, browser, agent = linked(unacknowledged_bytes=50)
    agent.link.pause_writing()
    browser.send(text(bytes(100)))
    agent.link.resume_writing()
    assert not browser.transport.is_reading()
    agent.link.pause_writing()
    agent.send(acknowledge(1))
    assert not browser.transport.is_reading()
    agent.link.resume_writing()
    assert browser.transport.is_reading()


@virtual
async def test_a_slow_client_pauses_the_link() -> None:
    pipe, _, agent = linked()
    pipe.pause_writing()
    assert not agent.transport.is_reading()
    pipe.resume_writing()
    assert agent.transport.is_reading()


@virtual
async def test_a_slow_client_is_slow_for_the_next_link_too() -> None:
    pipe, _, agent = linked()
    pipe.pause_writing()
    agent.transport.lose()
    agent = relinked(pipe)
    assert not agent.transport.is_reading()
    pipe.resume_writing()
    assert agent.transport.is_reading()


@virtual
async def test_a_client_may_catch_up_while_there_is_no_link() -> None:
    pipe, _, agent = linked()
    pipe.pause_writing()
    agent.transport.lose()
    pipe.resume_writing()
    assert relinked(pipe).transport.is_reading()


@virtual
async def test_a_new_link_is_not_full() -> None:
    pipe, browser, agent = linked()
    agent.link.pause_writing()
    agent.transport.lose()
    relinked(pipe)
    assert browser.transport.is_reading()


# The end


@virtual
async def test_a_client_that_says_goodbye_is_answered() -> None:
    pipe, browser, agent = linked()
    goodbye = CloseFrame(1001, "going away").serialize()
    browser.send(client_frame(Opcode.CLOSE, goodbye))
    agent.send(output(11))
    await settle()
    # What came after its goodbye is not for it.
    assert browser.received() == [Frame(Opcode.CLOSE, goodbye)]
    assert browser.transport.is_closing()
    assert pipe.finished.is_set()
    assert pipe.unlinked.is_set()
    assert farewell(agent).disconnect is Disconnect.CLEAN


@virtual
async def test_a_client_that_vanishes_has_not_said_goodbye() -> None:
    pipe, browser, agent = linked()
    browser.transport.lose(ConnectionResetError())
    assert pipe.finished.is_set()
    assert farewell(agent).disconnect is Disconnect.ABNORMAL


@virtual
async def test_a_client_that_closes_its_half_is_gone() -> None:
    pipe, _, _ = linked()
    assert pipe.eof_received() is False


@virtual
async def test_a_client_that_leaves_while_there_is_no_link_is_finished() -> None:
    pipe, browser, agent = linked()
    agent.transport.lose()
    browser.transport.lose()
    assert pipe.finished.is_set()


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("why", "why"),
        ("", ""),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        # A character is not cut in two.
        ("x" * 122 + "\u00e9", "x" * 122),
        ("\U0001f600" * 40, "\U0001f600" * 30),
    ],
)
@virtual
async def test_a_close_record_closes_the_clients_websocket(reason: str, shown: str) -> None:
    pipe, browser, agent = linked()
    agent.send(output(11), struct_record(RecordKind.CLOSE, Close(1007, reason)), output(12))
    first, _, last = browser.received()
    assert first.opcode is Opcode.TEXT
    assert close_of(last) == (1007, shown)
    assert len(last.data) <= 125
    # The client has the last word.
    assert not browser.transport.is_closing()
    assert farewell(agent).disconnect is None
    browser.send(client_frame(Opcode.CLOSE, bytes(last.data)))
    assert browser.transport.is_closing()
    await settle()
    assert pipe.finished.is_set()
    assert pipe.position == Position("e1", 11)


@virtual
async def test_a_close_record_that_waited_ends_what_waited_behind_it() -> None:
    pipe, browser = opened()
    agent = Agent.attached(START)
    agent.send(struct_record(RecordKind.CLOSE, Close(1000, "")), output(11))
    pipe.bind(agent.link)
    assert [frame.opcode for frame in browser.received()] == [Opcode.CLOSE]


@virtual
async def test_a_client_that_does_not_answer_a_close_frame_is_cut_off() -> None:
    pipe, browser, _ = linked()
    pipe.close(1012, "the relay is restarting")
    await asyncio.sleep(4.9)
    assert not browser.transport.is_closing()
    await asyncio.sleep(0.2)
    assert browser.transport.aborted
    assert pipe.finished.is_set()


@virtual
async def test_a_paused_client_is_heard_when_it_answers_a_close_frame() -> None:
    pipe, browser, agent = linked()
    agent.link.pause_writing()
    pipe.close(1012, "")
    assert browser.transport.is_reading()


@virtual
async def test_a_client_is_sent_one_close_frame_only() -> None:
    pipe, browser, _ = linked()
    pipe.close(1012, "")
    pipe.close(1011, "")
    assert [close_of(frame)[0] for frame in browser.received()] == [1012]


@virtual
async def test_what_comes_with_a_goodbye_is_sent_on_and_nothing_after_it() -> None:
    _, browser, agent = linked()
    browser.send(text(b"1"), client_frame(Opcode.CLOSE), text(b"2"))
    assert submitted(agent) == [(1, True, b"1")]


# Proofs


def pings(browser: Browser) -> list[bytes]:
    return [bytes(f.data) for f in browser.received() if f.opcode is Opcode.PING]


def seq(number: int) -> bytes:
    return struct.pack("<Q", number)


def pong(data: bytes) -> bytes:
    return client_frame(Opcode.PONG, data)


@virtual
async def test_a_pong_proves_what_was_sent_before_its_ping() -> None:
    _, browser, agent = linked()
    agent.send(output(11))
    # Right behind the first frames: what comes alone is proved at once.
    (frame, ping) = browser.received()
    assert (frame.opcode, ping.opcode, ping.data) == (Opcode.TEXT, Opcode.PING, seq(11))
    assert proofs(agent) == []
    browser.send(pong(seq(11)))
    assert proofs(agent) == [11]
    agent.send(output(12), output(12, 1, b"\x01\x01a"))
    await asyncio.sleep(PROOF * 0.9)
    assert pings(browser) == []
    await asyncio.sleep(PROOF * 0.2)
    # It stands behind the frames, within a message, whose seq it does not count.
    assert pings(browser) == [seq(12)]
    agent.send(output(13, 0, b"\x80\x01b"))
    browser.send(pong(seq(12)))
    assert proofs(agent) == [12]


@virtual
async def test_half_a_message_is_nothing_to_ask_for() -> None:
    _, browser, agent = linked()
    agent.send(output(10, 1, b"\x01\x01a"))
    await asyncio.sleep(10 * PROOF)
    assert pings(browser) == []


@virtual
async def test_one_ping_at_a_time_and_no_more_than_needed() -> None:
    _, browser, agent = linked()
    agent.send(output(11))
    await asyncio.sleep(10 * PROOF)
    agent.send(output(12))
    await asyncio.sleep(10 * PROOF)
    assert pings(browser) == [seq(11)]
    browser.send(pong(seq(11)))
    await asyncio.sleep(2 * PROOF)
    assert pings(browser) == [seq(12)]
    browser.send(pong(seq(12)))
    # Everything is proved: only the usual pings go on.
    await asyncio.sleep(PING - PROOF)
    assert pings(browser) == []
    await asyncio.sleep(2 * PROOF)
    assert pings(browser) == [seq(12)]
    browser.send(pong(seq(12)))
    assert proofs(agent) == [11, 12]


@virtual
async def test_a_busy_stream_is_proved_at_the_set_rhythm() -> None:
    _, browser, agent = linked()
    count = 0
    for number in range(200):
        agent.send(output(11 + number))
        await asyncio.sleep(0.01)
        for data in pings(browser):
            browser.send(pong(data))
            count += 1
    assert 10 <= count <= 11


@pytest.mark.parametrize("data", [b"x", seq(12), seq(2**63), seq(11) + b"\0"])
@virtual
async def test_a_pong_that_answers_no_ping_proves_nothing(data: bytes) -> None:
    _, browser, agent = linked()
    agent.send(output(11), output(12))
    browser.send(pong(data))
    await asyncio.sleep(2 * PROOF)
    assert pings(browser) == [seq(11)]
    browser.send(pong(data[:-1] + b"\0"), pong(b"\0" + data))
    assert proofs(agent) == []
    browser.send(pong(seq(11)), pong(seq(11)))
    assert proofs(agent) == [11]


@virtual
async def test_where_reading_starts_needs_no_proof() -> None:
    _, browser, agent = linked()
    await asyncio.sleep(PING - 1)
    assert pings(browser) == []
    await asyncio.sleep(2)
    browser.send(pong(*pings(browser)))
    assert proofs(agent) == []


@virtual
async def test_a_proof_without_a_link_is_told_to_the_next() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11))
    await asyncio.sleep(2 * PROOF)
    agent.transport.lose()
    browser.send(pong(seq(11)))
    assert proofs(relinked(pipe)) == [11]


@virtual
async def test_a_proof_means_nothing_in_another_epoch() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11))
    await asyncio.sleep(2 * PROOF)
    agent.transport.lose()
    agent = relinked(pipe, position=Position("e2", 5))
    browser.send(pong(seq(11)))
    agent.send(output(6))
    assert proofs(agent) == []
    assert pings(browser) == [seq(11), seq(6)]
    browser.send(pong(seq(6)))
    assert proofs(agent) == [6]


# Silence


@virtual
async def test_a_quiet_client_is_pinged_and_stays() -> None:
    _, browser, _ = linked()
    for _ in range(10):
        await asyncio.sleep(PING)
        await settle()
        (data,) = pings(browser)
        browser.send(pong(data))
    assert not browser.transport.is_closing()


@virtual
async def test_a_silent_client_is_cut_off() -> None:
    pipe, browser, agent = linked()
    await asyncio.sleep(PING + PONG_TIMEOUT - 1)
    assert not browser.transport.is_closing()
    await asyncio.wait_for(pipe.finished.wait(), PING + 2)
    assert browser.transport.aborted
    assert farewell(agent).disconnect is None


@virtual
async def test_a_silent_client_that_is_sent_output_is_cut_off_at_the_timeout() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11))
    await asyncio.sleep(PONG_TIMEOUT)
    assert not browser.transport.is_closing()
    await asyncio.wait_for(pipe.finished.wait(), 3 * PROOF)


@virtual
async def test_whoever_talks_is_not_silent() -> None:
    _, browser, _ = linked()
    for _ in range(100):
        await asyncio.sleep(PING / 2)
        browser.send(text(b"{}"))
    assert not browser.transport.is_closing()


@virtual
async def test_a_client_that_we_do_not_read_from_is_not_silent() -> None:
    _, browser, agent = linked()
    await asyncio.sleep(PING + 1)
    agent.link.pause_writing()
    await asyncio.sleep(10 * PONG_TIMEOUT)
    agent.link.resume_writing()
    assert not browser.transport.is_closing()
    # From now on it has its time to answer.
    await asyncio.sleep(PONG_TIMEOUT - 1)
    assert not browser.transport.is_closing()
    await asyncio.sleep(PING + 2)
    assert browser.transport.aborted


@virtual
async def test_nothing_is_left_over_when_the_client_is_gone() -> None:
    _, browser, agent = linked()
    agent.send(output(11))
    await settle()
    browser.transport.lose()
    loop: Any = asyncio.get_running_loop()
    assert not [timer for timer in loop._scheduled if not timer.cancelled()]
    await asyncio.sleep(10 * PING)
