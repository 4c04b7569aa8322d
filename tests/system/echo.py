"""An agent that says back what a client says, so that only an edge's WebSocket is tried."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Final
from urllib.parse import urlsplit

from relay.bridge.control import Attached, Position
from relay.bridge.records import (
    RecordKind,
    frames_record,
    number_record,
    read_message,
    record,
    struct_record,
)
from relay.bridge.ws_codec import Payload, frames
from relay.streams import read_record

_UPGRADE: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: relay-records\r\n\r\n"
)
_MAX_RECORD: Final = 1 << 28
KERNEL: Final = "/alpha/api/kernels/00000000-0000-4000-8000-000000000000/channels"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"Upgrade: relay-records" not in head:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        return
    writer.write(_UPGRADE)
    while True:
        kind, payload = await read_record(reader, _MAX_RECORD)
        if kind is RecordKind.ATTACH:
            position = Position("e1", 0)
            writer.write(
                struct_record(RecordKind.ATTACHED, Attached(position=position, acknowledged=0))
            )
        elif kind is RecordKind.MESSAGE:
            number, text, message = read_message(payload)
            writer.write(number_record(RecordKind.ACK, number))
            said = Payload(text=text, parts=(bytes(message),), size=len(message))
            for frame in frames(said):
                # No seq: so no ping asks how far the client has come.
                writer.write(frames_record(0, 0, [frame]))
            await writer.drain()
        elif kind is RecordKind.PING:
            writer.write(record(RecordKind.PONG))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


class Front:
    """Plain WebSockets for clients that know neither TLS nor our paths; all else goes through."""

    def __init__(self, url: str, tls: ssl.SSLContext, token: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._tls = tls
        self._token = token

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, _, head = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        line = f"GET {KERNEL} HTTP/1.1\r\nAuthorization: Bearer {self._token}\r\n".encode()
        there, onwards = await asyncio.open_connection(*self._address, ssl=self._tls)
        onwards.write(line + head)
        try:
            async with asyncio.TaskGroup() as tasks:
                both = [
                    tasks.create_task(_carry(reader, onwards), name="inwards"),
                    tasks.create_task(_carry(there, writer), name="outwards"),
                ]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                for task in both:
                    task.cancel()
        finally:
            writer.close()
            onwards.close()


class _Served:
    """A server of streams in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.servers: list[asyncio.Server] = []

    def listen(self, attend: Callable[..., Awaitable[None]]) -> int:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await attend(reader, writer)
            except* (OSError, EOFError):
                pass
            finally:
                writer.close()

        start = asyncio.start_server(guarded, "127.0.0.1", 0, limit=1 << 20)
        server = asyncio.run_coroutine_threadsafe(start, self.loop).result()
        self.servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        async def end() -> None:
            for server in self.servers:
                server.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@contextlib.contextmanager
def echoing() -> Iterator[int]:
    """The port of an agent that says everything back."""
    served = _Served()
    try:
        yield served.listen(_attend)
    finally:
        served.stop()


@contextlib.contextmanager
def fronting(url: str, tls: ssl.SSLContext, token: str) -> Iterator[int]:
    """The port on which an edge's kernel is a plain WebSocket."""
    served = _Served()
    try:
        yield served.listen(Front(url, tls, token).attend)
    finally:
        served.stop()
