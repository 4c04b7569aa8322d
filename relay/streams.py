"""Reads records from asyncio streams, and makes streams of an existing connection."""

from __future__ import annotations

import asyncio

from relay.bridge.records import HEADER, RecordKind, check_header
from relay.peer_credentials import peer_credentials


async def read_record(reader: asyncio.StreamReader, max_payload: int) -> tuple[RecordKind, bytes]:
    """Read the next record. Raises ``EOFError`` at the end, `RecordError` for anything else."""
    length, kind = await read_header(reader, max_payload)
    return kind, await reader.readexactly(length)


async def read_header(reader: asyncio.StreamReader, max_payload: int) -> tuple[int, RecordKind]:
    """Read the next record's length and kind, not its payload; raises as `read_record`.

    Cancelling the wait loses no bytes.
    """
    length, number = HEADER.unpack(await reader.readexactly(HEADER.size))
    return check_header(length, number, max_payload)


def peer_uid(writer: asyncio.StreamWriter) -> int:
    """Return the OS user of the process at the other end of a unix socket."""
    return peer_credentials(writer.get_extra_info("socket")).uid


def streams_over(
    transport: asyncio.Transport, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Make streams over a connection that another protocol has used so far.

    ``limit`` is the number of bytes that are read ahead.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
