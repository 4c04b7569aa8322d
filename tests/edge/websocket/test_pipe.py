from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.frames import Close as CloseFrame
from websockets.frames import Frame, Opcode

from relay.bridge.control import Close, Disconnect, Position
from relay.bridge.records import BUSY, RecordKind, record, struct_record
from tests.edge.websocket.ends import (
    PONG_TIMEOUT,
    START,
    acknowledge,
    close_of,
    farewell,
    linked,
    opened,
    output,
    relinked,
    submitted,
    without_pings,
)
from tests.fakes import Agent, client_frame, text
from tests.virtualtime import settle, virtual

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
    assert pipe._unacked.bytes == 0


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


@virtual
async def test_a_client_that_was_paused_for_long_has_its_time_to_answer_a_close_frame() -> None:
    pipe, browser, agent = linked()
    agent.send(output(11))
    agent.link.pause_writing()
    await asyncio.sleep(10 * PONG_TIMEOUT)
    pipe.close(1012, "")
    await asyncio.sleep(4.9)
    assert not browser.transport.is_closing()
    await asyncio.sleep(0.2)
    assert browser.transport.aborted


@virtual
async def test_a_client_that_is_gone_is_not_closed() -> None:
    pipe, browser, agent = linked()
    agent.transport.lose()
    browser.transport.lose()
    # No agent came back for it in time.
    pipe.close(1012, "the kernel's agent is not reachable")
    assert browser.received() == []
    loop: Any = asyncio.get_running_loop()
    assert not [timer for timer in loop._scheduled if not timer.cancelled()]


@virtual
async def test_nobody_waits_for_a_client_that_answered_a_close_frame() -> None:
    pipe, browser, _ = linked()
    pipe.close(1012, "")
    browser.send(client_frame(Opcode.CLOSE, CloseFrame(1012, "").serialize()))
    await settle()
    assert pipe.finished.is_set()
    loop: Any = asyncio.get_running_loop()
    assert not [timer for timer in loop._scheduled if not timer.cancelled()]


@pytest.mark.parametrize("broken", [client_frame(Opcode.CONT), text(b"\xff")])
@virtual
async def test_a_websocket_that_failed_is_fed_no_more_and_cut_off_in_time(broken: bytes) -> None:
    pipe, browser, agent = linked()
    # The client does not read: what was written to it does not go out.
    browser.transport.stuck = True
    browser.send(broken)
    assert browser.transport.is_closing()
    assert farewell(agent).disconnect is None
    agent.send(output(11))
    assert not browser.transport.late
    await asyncio.sleep(4.9)
    assert not pipe.finished.is_set()
    await asyncio.sleep(0.2)
    assert browser.transport.aborted
    assert pipe.finished.is_set()


@virtual
async def test_a_link_that_is_detached_is_left_without_a_word() -> None:
    pipe, browser, agent = linked()
    agent.received()
    pipe.detach_link()
    assert agent.transport.is_closing()
    # To the holder it is as if the link were lost: the session stays.
    assert agent.received() == []
    assert pipe.unlinked.is_set()
    assert not browser.transport.is_closing()
    browser.send(text(b"1"))
    assert submitted(relinked(pipe)) == [(1, True, b"1")]
