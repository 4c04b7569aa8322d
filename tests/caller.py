"""A client of one of our HTTP servers, without a network."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from relay.connections import HeadLimits, Timeouts, server
from tests.fakes import FakeTransport
from tests.virtualtime import settle


class Answer:
    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode("ascii").split("\r\n")
        self.status = int(status.split()[1])
        pairs = (line.partition(": ") for line in lines)
        self.headers = CIMultiDict((name, value) for name, _, value in pairs)

    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """A client of a server that answers by ``handler``, without a network."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        patience: Timeouts | None = None,
        visitor: Any = None,
        **limits: int,
    ) -> None:
        http = server(handler, HeadLimits(**limits), patience or Timeouts())
        self.transport = FakeTransport(http.connection(visitor))
        self.transport.protocol.connection_made(self.transport)

    async def send(self, *data: bytes) -> Answer:
        for piece in data:
            self.transport.protocol.data_received(piece)
            await settle()
        return Answer(self.transport.take())

    def leave(self) -> None:
        self.transport.lose()


def get(*headers: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST / HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*chunks: bytes) -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
