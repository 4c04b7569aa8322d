"""A `FakeKernel` behind aiohttp's server: REST and channels as the relay has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from relay.bridge.ws_codec import Subprotocol
from relay.client import RelayClient, Settings
from relay.client.delivery_tracker import parse_position
from relay.errors import NotFound, RelayError, Unauthorized
from relay.http import error_response
from tests.client.fakekernel import FakeKernel

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
FAST = Settings(retry_at_most=0.001, give_up_after=10.0, silent_after=5.0)


def answer(error: RelayError) -> Answer:
    async def give(_: web.Request) -> web.StreamResponse:
        return error_response(error, "r1")

    return give


def raw(status: int, text: str = "", **headers: str) -> Answer:
    async def give(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers)

    return give


async def broken(request: web.Request) -> web.StreamResponse:
    """No answer: the connection ends."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def late(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


class FakeRelay:
    """``trouble`` are answers to give, in this order, instead of the right ones."""

    def __init__(self) -> None:
        self.kernels: dict[str, FakeKernel] = {}
        self.trouble: list[Answer] = []
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[Any] = []
        self.queries: list[dict[str, str]] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.handshake: list[Answer] = []
        self.protocols: tuple[str, ...] = (Subprotocol.V1.value,)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        channels = request.path.endswith("/channels")
        self.requests.append((request.method, request.path))
        trouble = self.handshake if channels else self.trouble
        if trouble:
            return await trouble.pop(0)(request)
        try:
            if request.headers.get("Authorization") != "token secret":
                raise Unauthorized("A token is wanted.")
            return await (self._channels if channels else self._rest)(request)
        except RelayError as error:
            return error_response(error, "r1")

    async def _rest(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.removeprefix("/alpha/api/").split("/")
        if parts == ["kernelspecs"]:
            return web.json_response({"default": "python3", "kernelspecs": {}})
        if parts == ["kernels"] and request.method == "POST":
            body = await request.json()
            self.bodies.append(body)
            self.kernels.setdefault(body["kernel_id"], FakeKernel())
            return web.json_response(model(body["kernel_id"]), status=201)
        if parts == ["kernels"]:
            return web.json_response([model(each) for each in self.kernels])
        self._kernel(parts[1])
        if request.method == "DELETE":
            self.kernels.pop(parts[1])
            return web.Response(status=204)
        return web.json_response(model(parts[1]))

    def _kernel(self, kernel_id: str) -> FakeKernel:
        if kernel_id not in self.kernels:
            raise NotFound(f"Kernel does not exist: {kernel_id}")
        return self.kernels[kernel_id]

    async def _channels(self, request: web.Request) -> web.StreamResponse:
        kernel = self._kernel(request.path.split("/")[-2])
        socket = web.WebSocketResponse(protocols=self.protocols, max_msg_size=0, compress=False)
        await socket.prepare(request)
        self.sockets.append(socket)
        self.queries.append(dict(request.query))
        session, last_seq = request.query["session_id"], request.query["last_seq"]
        number = parse_position(last_seq).seq if last_seq else len(kernel.journal)
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(socket, kernel, session, number))
            with contextlib.suppress(RuntimeError):
                async for message in socket:
                    if message.type is WSMsgType.BINARY:
                        kernel.submit(message.data)
            writer.cancel()
        return socket

    async def _write(
        self, socket: web.WebSocketResponse, kernel: FakeKernel, session: str, number: int
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                number = await kernel.after(number, session)
                await socket.send_bytes(kernel.payload(number))

    def cut(self) -> None:
        """Break the newest WebSocket without a word."""
        transport = self.sockets[-1]._req.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.abort()


def model(kernel_id: str) -> dict[str, Any]:
    return {
        "id": kernel_id,
        "name": "python3",
        "last_activity": "2026-01-01T00:00:00.000000Z",
        "execution_state": "idle",
        "connections": 0,
    }


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[FakeRelay, str]]:
    """A relay, and the URL of its cluster."""
    relay = FakeRelay()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", relay.handle)
    async with TestServer(app) as server:
        yield relay, str(server.make_url("/alpha"))


@contextlib.asynccontextmanager
async def client_of(
    *, settings: Settings = FAST, **options: Any
) -> AsyncIterator[tuple[FakeRelay, RelayClient]]:
    """A relay, and a client of it."""
    given = {"token": "secret", **options}
    async with serving() as (relay, url), RelayClient(url, settings=settings, **given) as client:
        yield relay, client
