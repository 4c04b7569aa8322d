from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from relay.bridge.control import Attach, Attached, Close, Position
from relay.bridge.records import (
    HEADER,
    RecordKind,
    number_record,
    read_struct,
    record,
    struct_record,
)
from relay.edge.upstream.link import Link
from relay.errors import AgentUnavailable, OtherVersion
from tests.fakes import Agent, FakeResponse
from tests.virtualtime import settle, virtual

ATTACH = Attach(link="ab", principal="token:ada", position=Position("e1", 4, 1))
ATTACHED = Attached(position=Position("e1", 4, 1), acknowledged=7)
ANSWER = struct_record(RecordKind.ATTACHED, ATTACHED)
START = ATTACHED.position
WATCH = 15.0


class Ends:
    """What a link is bound to."""

    def __init__(self, link: Link) -> None:
        self.heard: list[tuple[RecordKind, bytes]] = []
        self.losses = 0
        self.writable: list[bool] = []
        link.bind(self.on_record, self.on_lost, self.writable.append)

    def on_record(self, kind: RecordKind, payload: bytes) -> None:
        self.heard.append((kind, payload))

    def on_lost(self) -> None:
        self.losses += 1


def ack(number: int) -> tuple[RecordKind, bytes]:
    return RecordKind.ACK, number_record(RecordKind.ACK, number)[HEADER.size :]


async def begun(attaching: Coroutine[Any, Any, None], tasks: asyncio.TaskGroup) -> Any:
    task = tasks.create_task(attaching)
    await settle()
    return task


@virtual
async def test_attach_asks_and_waits_for_the_answer() -> None:
    agent = Agent()
    async with asyncio.TaskGroup() as tasks:
        attaching = await begun(agent.link.attach(ATTACH), tasks)
        ((kind, payload),) = agent.received()
        assert (kind, read_struct(payload, Attach)) == (RecordKind.ATTACH, ATTACH)
        assert not attaching.done()
        agent.send(ANSWER)
    assert agent.link.attached == ATTACHED


@virtual
async def test_an_answer_in_pieces_is_an_answer() -> None:
    agent = Agent()
    async with asyncio.TaskGroup() as tasks:
        attaching = await begun(agent.link.attach(ATTACH), tasks)
        agent.send(ANSWER[:-1])
        await settle()
        assert not attaching.done()
        agent.send(ANSWER[-1:])
    assert agent.link.attached == ATTACHED


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (
            record(RecordKind.ATTACHED, b'{"version":2}'),
            OtherVersion,
            "The agent has version 2 of the relay's records, the edge has version 1.",
        ),
        (
            struct_record(RecordKind.CLOSE, Close(1012, "The edge has version 1.")),
            AgentUnavailable,
            "The edge has version 1.",
        ),
    ],
)
@virtual
async def test_a_refusal_is_told_in_its_words(
    answer: bytes, error: type[AgentUnavailable], words: str
) -> None:
    agent = Agent()
    asyncio.get_running_loop().call_soon(agent.send, answer)
    with pytest.raises(error) as caught:
        await agent.link.attach(ATTACH)
    assert words in caught.value.message
    agent.transport.lose()


@pytest.mark.parametrize("problem", [None, OSError("no route"), ConnectionResetError("reset")])
@virtual
async def test_an_agent_that_goes_before_it_answers_has_hung_up(
    problem: Exception | None,
) -> None:
    # Whatever it was, the one who opens links has one kind of error to expect.
    agent = Agent()
    asyncio.get_running_loop().call_soon(agent.transport.lose, problem)
    with pytest.raises(ConnectionResetError) as caught:
        await agent.link.attach(ATTACH)
    assert caught.value.__cause__ is problem
    assert agent.link.lost
    assert agent.response.closed


@pytest.mark.parametrize(
    "answer",
    [
        record(RecordKind.ATTACHED, b"{}"),
        b"\0\0\0\0\xff",
        HEADER.pack(2**32 - 1, RecordKind.ATTACHED),
        HEADER.pack(4 * 2**20 + 1, RecordKind.FRAMES),
    ],
)
@virtual
async def test_an_answer_that_is_none_ends_the_link(answer: bytes) -> None:
    agent = Agent()
    asyncio.get_running_loop().call_soon(agent.send, answer)
    with pytest.raises(ConnectionResetError):
        await agent.link.attach(ATTACH)
    assert agent.transport.aborted


@virtual
async def test_a_connection_that_is_gone_already_makes_no_link() -> None:
    response = FakeResponse(None)
    with pytest.raises(ConnectionResetError):
        Link(response)  # type: ignore[arg-type]
    response.connection = None
    with pytest.raises(ConnectionResetError):
        Link(response)  # type: ignore[arg-type]


@virtual
async def test_nobody_else_need_hold_the_response() -> None:
    # aiohttp closes the connection of a response that is collected.
    agent = Agent()
    response = weakref.ref(agent.response)
    del agent.response
    assert response() is not None


@virtual
async def test_records_wait_for_whoever_takes_them() -> None:
    agent = Agent()
    agent.send(ANSWER, number_record(RecordKind.ACK, 1))
    agent.send(number_record(RecordKind.ACK, 2))
    assert not agent.transport.is_reading()
    ends = Ends(agent.link)
    assert ends.heard == [ack(1), ack(2)]
    assert agent.transport.is_reading()
    agent.send(number_record(RecordKind.ACK, 3))
    assert ends.heard == [ack(1), ack(2), ack(3)]


@virtual
async def test_a_link_that_is_lost_says_so_once() -> None:
    agent = Agent.attached(START)
    ends = Ends(agent.link)
    assert ends.losses == 0
    agent.transport.lose()
    assert ends.losses == 1
    assert agent.link.lost
    assert agent.response.closed


@virtual
async def test_a_link_that_was_lost_says_so_to_whoever_comes() -> None:
    agent = Agent.attached(START)
    agent.send(number_record(RecordKind.ACK, 1))
    agent.transport.lose()
    ends = Ends(agent.link)
    assert (ends.heard, ends.losses) == ([ack(1)], 1)


@virtual
async def test_a_lost_link_can_still_be_used_without_harm() -> None:
    agent = Agent.attached(START)
    Ends(agent.link)
    agent.transport.lose()
    reading = agent.transport.is_reading()
    agent.link.write(b"x")
    agent.link.pause()
    assert agent.transport.is_reading() == reading
    agent.link.resume()
    agent.link.keep_watch(WATCH)
    agent.link.close()
    assert not agent.transport.written


@virtual
async def test_whoever_hangs_up_hears_no_more() -> None:
    agent = Agent.attached(START)
    ends = Ends(agent.link)
    agent.link.close()
    # Over TLS more may come while the connection is being closed.
    agent.send(number_record(RecordKind.ACK, 1))
    await settle()
    assert agent.transport.lost
    assert (ends.heard, ends.losses) == ([], 0)
    assert agent.link._waiting == []


@virtual
async def test_a_link_that_was_hung_up_does_not_tell_when_it_is_full() -> None:
    agent = Agent.attached(START)
    ends = Ends(agent.link)
    agent.link.close()
    # What was written may still be on its way out.
    agent.link.pause_writing()
    agent.link.resume_writing()
    assert ends.writable == []


@virtual
async def test_whoever_hangs_up_over_a_record_is_not_given_the_next() -> None:
    agent = Agent.attached(START)
    agent.send(number_record(RecordKind.ACK, 1), number_record(RecordKind.ACK, 2))
    heard = []

    def hang_up(kind: RecordKind, payload: bytes) -> None:
        heard.append((kind, payload))
        agent.link.close()

    agent.link.bind(hang_up, lambda: None, lambda _: None)
    assert heard == [ack(1)]


@virtual
async def test_a_full_connection_is_told() -> None:
    agent = Agent.attached(START)
    agent.link.pause_writing()
    ends = Ends(agent.link)
    agent.link.pause_writing()
    agent.link.resume_writing()
    assert ends.writable == [False, True]


@virtual
async def test_pause_and_resume_are_the_connections() -> None:
    agent = Agent.attached(START)
    Ends(agent.link)
    agent.link.pause()
    assert not agent.transport.is_reading()
    agent.link.resume()
    assert agent.transport.is_reading()


@virtual
async def test_an_agent_that_answers_pings_is_kept() -> None:
    agent = Agent.attached(START)
    Ends(agent.link)
    agent.link.keep_watch(WATCH)
    for _ in range(10):
        assert agent.received() == [(RecordKind.PING, b"")]
        agent.send(record(RecordKind.PONG))
        await asyncio.sleep(WATCH)
        await settle()
    assert not agent.transport.is_closing()


@virtual
async def test_an_agent_that_sends_anything_is_kept() -> None:
    agent = Agent.attached(START)
    Ends(agent.link)
    agent.link.keep_watch(WATCH)
    for number in range(10):
        await asyncio.sleep(WATCH - 1)
        agent.send(number_record(RecordKind.ACK, number))
    assert not agent.transport.is_closing()


@virtual
async def test_a_silent_agent_is_lost() -> None:
    agent = Agent.attached(START)
    ends = Ends(agent.link)
    agent.link.keep_watch(WATCH)
    await asyncio.sleep(WATCH - 1)
    assert ends.losses == 0
    await asyncio.sleep(2)
    assert agent.transport.aborted
    assert ends.losses == 1


@virtual
async def test_an_agent_that_we_do_not_read_from_is_not_silent() -> None:
    agent = Agent.attached(START)
    Ends(agent.link)
    agent.link.keep_watch(WATCH)
    agent.link.pause()
    await asyncio.sleep(10 * WATCH)
    assert not agent.transport.is_closing()
    agent.link.resume()
    await asyncio.sleep(WATCH)
    assert not agent.transport.is_closing()
    await asyncio.sleep(WATCH)
    assert agent.transport.aborted


@virtual
async def test_nobody_watches_a_link_that_was_hung_up() -> None:
    agent = Agent.attached(START)
    agent.link.keep_watch(WATCH)
    agent.received()
    agent.link.close()
    await asyncio.sleep(3 * WATCH)
    assert not agent.transport.aborted
    assert not agent.transport.late
