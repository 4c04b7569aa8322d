from __future__ import annotations

import asyncio
import os
import socket

import pytest

from relay.bridge.records import HEADER, RecordError, RecordKind, RecordTooLarge, record
from relay.streams import peer_uid, read_record, streams_over
from tests.fakes import FakeTransport
from tests.virtualtime import settle, virtual

STREAM = [(RecordKind.PING, b""), (RecordKind.FRAMES, b"x" * 300), (RecordKind.ACK, b"y" * 8)]
BYTES = b"".join(record(kind, payload) for kind, payload in STREAM)


def stream(data: bytes, limit: int = 2**16) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit)
    reader.feed_data(data)
    return reader


@virtual
async def test_records_are_read_one_by_one() -> None:
    reader = stream(BYTES)
    assert [await read_record(reader, 300) for _ in STREAM] == STREAM


@virtual
async def test_a_record_may_be_larger_than_what_is_read_ahead() -> None:
    assert await read_record(stream(record(RecordKind.FRAMES, bytes(5000)), 16), 5000) == (
        RecordKind.FRAMES,
        bytes(5000),
    )


@virtual
async def test_a_record_is_waited_for() -> None:
    reader = stream(BYTES[:7])
    assert await read_record(reader, 300) == STREAM[0]
    asyncio.get_running_loop().call_later(5, reader.feed_data, BYTES[7:])
    assert await read_record(reader, 300) == STREAM[1]


@pytest.mark.parametrize("cut", [0, 1, HEADER.size, HEADER.size + 1, HEADER.size + 299])
@virtual
async def test_the_end_is_an_end_wherever_it_comes(cut: int) -> None:
    reader = stream(record(*STREAM[1])[:cut])
    reader.feed_eof()
    with pytest.raises(EOFError):
        await read_record(reader, 300)


@virtual
async def test_what_is_over_the_limit_is_refused_by_its_header() -> None:
    with pytest.raises(RecordTooLarge):
        await read_record(stream(HEADER.pack(301, RecordKind.FRAMES)), 300)


@virtual
async def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(RecordError):
        await read_record(stream(HEADER.pack(0, 0)), 300)


@virtual
async def test_an_adopted_connection_is_read_and_written() -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    reader, writer = streams_over(transport, 2**16)
    far.send(b"in")
    assert await reader.readexactly(2) == b"in"
    writer.write(b"out")
    await writer.drain()
    assert far.recv(10) == b"out"
    far.close()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


@virtual
async def test_an_adopted_connection_is_read_no_further_than_the_limit() -> None:
    transport = FakeTransport()
    reader, writer = streams_over(transport, 1000)
    transport.protocol.data_received(bytes(2000))
    assert transport.is_reading()
    transport.protocol.data_received(b"x")
    assert not transport.is_reading()
    await reader.readexactly(1500)
    assert transport.is_reading()
    writer.close()
    await writer.wait_closed()


@virtual
async def test_drain_waits_for_an_adopted_connection() -> None:
    transport = FakeTransport()
    _, writer = streams_over(transport, 1000)
    transport.protocol.pause_writing()
    async with asyncio.TaskGroup() as tasks:
        drained = tasks.create_task(writer.drain())
        await settle()
        assert not drained.done()
        transport.protocol.resume_writing()
    writer.close()
    await writer.wait_closed()


@virtual
async def test_the_os_user_at_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = FakeTransport()
        transport.extra["socket"] = ours
        _, writer = streams_over(transport, 1000)
        assert peer_uid(writer) == os.geteuid()
        writer.close()
        await writer.wait_closed()
