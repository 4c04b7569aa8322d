"""Records on asyncio streams."""

from __future__ import annotations

import asyncio
import socket
import struct

from relay.bridge.records import HEADER, RecordKind, check_header


async def read_record(reader: asyncio.StreamReader, max_payload: int) -> tuple[RecordKind, bytes]:
    """The next record. Raises ``EOFError`` at the end and `RecordError` for what is none."""
    length, kind = await read_head(reader, max_payload)
    return kind, await reader.readexactly(length)


async def read_head(reader: asyncio.StreamReader, max_payload: int) -> tuple[int, RecordKind]:
    """The next record's length and kind; its payload is still to be read. Raises as `read_record`.

    Who stops waiting for it loses nothing.
    """
    length, number = HEADER.unpack(await reader.readexactly(HEADER.size))
    return check_header(length, number, max_payload)


def peer_uid(writer: asyncio.StreamWriter) -> int:
    """The OS user at the other end of a unix socket, when it began to listen or connected."""
    connection: socket.socket = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("iII", credentials)
    return int(uid)


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
