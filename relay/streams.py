"""Records on asyncio streams."""

from __future__ import annotations

import asyncio

from relay.bridge.records import HEADER, Kind, check_header


async def read_record(reader: asyncio.StreamReader, max_payload: int) -> tuple[Kind, bytes]:
    """The next record. Raises ``EOFError`` at the end and `RecordError` for what is none."""
    length, number = HEADER.unpack(await reader.readexactly(HEADER.size))
    length, kind = check_header(length, number, max_payload)
    return kind, await reader.readexactly(length)


def adopt(
    transport: asyncio.Transport, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over a connection that another protocol has used so far.

    ``limit`` in bytes is how much is read ahead.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
