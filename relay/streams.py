"""Records on asyncio streams."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, NamedTuple

from relay.bridge.records import HEADER, RecordKind, check_header

_CREDENTIALS: Final = struct.Struct("iII")
"""``struct ucred``: pid, user id, group id."""


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


class PeerCredentials(NamedTuple):
    """The process at the other end of a unix socket, when it began to listen or connected."""

    pid: int
    uid: int


def peer_credentials(transport: asyncio.BaseTransport) -> PeerCredentials:
    """Return who is at the other end of a unix socket (``unix(7)``, SO_PEERCRED)."""
    connection: socket.socket = transport.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return PeerCredentials(pid, uid)


def peer_uid(writer: asyncio.StreamWriter) -> int:
    """Return the OS user at the other end of a unix socket."""
    return peer_credentials(writer.transport).uid


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
