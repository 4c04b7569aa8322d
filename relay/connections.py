"""HTTP connections of edge and agent, which send no more and take no longer than they may.

aiohttp has no limit on how long a head or a body may take, nor on all headers together, and its
own error pages quote what they were sent: its server is made one here that has the limits, and
says little.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from relay import limits
from relay.errors import BadRequest, MethodNotAllowed, NotFound, RelayError, TooSlow
from relay.http import ANSWER_HEADERS, REQUEST_ID, TakenOver, error_response

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = structlog.get_logger(__name__)

SERVER_NAME = "relay"
"""Sent as ``HttpServer`` instead of the names and versions of our libraries."""


class _Request(web.BaseRequest):
    """A request whose answer says what every answer says, and not what it was made with."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers[hdrs.SERVER] = SERVER_NAME
        response.headers.update(self.get(ANSWER_HEADERS, {}))


class HeadLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What may come before a body, in bytes but for the number of ``headers``."""

    request_line_bytes: int = 8192
    header_bytes: int = 8192
    """Of one value."""
    headers: int = 100
    head_bytes: int = 32768
    """Of all together, the request line too."""


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client may take, in seconds; ``None``: as long as it likes."""

    head: float | None = None
    body: float | None = None
    write: float | None = None
    """To take what waits for it."""
    idle: float = 75.0
    """Until its next request."""
    linger: float = 10.0
    """To send the rest of a body that nobody wants, before the connection ends."""


class ConnectionWatch(Protocol):
    """Somebody who wants to know when a connection begins and ends."""

    def begin(self, transport: asyncio.BaseTransport, /) -> None:
        """It stands, TLS too."""

    def end(self) -> None:
        """It is gone."""


class HttpConnection(RequestHandler):
    """A connection that takes no longer than it may, and whose own error pages quote nothing."""

    __slots__ = (
        "_body",
        "_body_timer",
        "_head_bytes",
        "_head_timer",
        "_limits",
        "_patience",
        "_refused",
        "_write_timer",
        "visitor",
    )

    def __init__(
        self,
        manager: HttpServer,
        *,
        head_limits: HeadLimits,
        patience: Timeouts,
        visitor: ConnectionWatch | None,
        **options: Any,  # noqa: ANN401 - aiohttp's
    ) -> None:
        super().__init__(manager, **options)
        self.visitor = visitor
        self._limits = head_limits
        self._patience = patience
        self._body: StreamReader = EMPTY_PAYLOAD
        """Of the newest request."""
        self._head_bytes = 0
        """So far of a head that has no end yet."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; the first head is due."""
        super().connection_made(transport)
        if self.visitor is not None:
            self.visitor.begin(transport)
        self._head_timer = self._after(self._patience.head, self._on_slow_head)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End, however it came to that."""
        for timer in (self._head_timer, self._body_timer, self._write_timer):
            _stop(timer)
        if self.visitor is not None:
            self.visitor.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and see what they are part of."""
        if self._refused:
            return
        count, in_body = self._request_count, not self._body.is_eof()
        super().data_received(data)
        if self._request_count > count:
            self._on_head()
        elif in_body:
            self._on_body()
        elif data and not self._upgraded:
            self._on_part_of_head(len(data))

    def _on_head(self) -> None:
        """Heads are complete. What may have come of the next counts from its next bytes on."""
        _stop(self._head_timer)
        self._head_timer, self._head_bytes = None, 0
        message, self._body = self._messages[-1]
        # Behind what is no HTTP there is nothing to be found.
        self._refused = isinstance(message, _ErrInfo)
        self._on_body()

    def _on_body(self) -> None:
        if self._body.is_eof():
            _stop(self._body_timer)
            self._body_timer = None
        elif self._body_timer is None:
            self._body_timer = self._after(self._patience.body, self._on_slow_body)

    def _on_part_of_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes:
            # So that not each of its headers comes to be collected.
            self._refuse(_over("limits.head_bytes", self._limits.head_bytes, "head"))
        elif self._head_timer is None:
            self._head_timer = self._after(self._patience.head, self._on_slow_head)

    def _on_slow_head(self) -> None:
        if self._buffer_paused:
            # It is this side that does not read.
            self._head_timer = self._after(self._patience.head, self._on_slow_head)
            return
        limits.record("connections.head_timeout")
        log.info("head_too_slow", setting="connections.head_timeout", size=self._head_bytes)
        if self._head_bytes:
            self._refuse(_slow("connections.head_timeout", self._patience.head, "head"))
        else:
            # It has asked for nothing, so it gets no answer.
            self.force_close()

    def _on_slow_body(self) -> None:
        limits.record("connections.body_timeout")
        log.info("body_too_slow", setting="connections.body_timeout")
        # Whoever reads it says so to the client.
        self._body.set_exception(_slow("connections.body_timeout", self._patience.body, "body"))
        self._refused = True
        self.close()
        self._cut_soon()

    def _refuse(self, error: RelayError) -> None:
        """Take nothing more: answer with ``error``, unless an answer is on its way already."""
        self._refused = True
        if self._current_request is None and not self._messages:
            self._messages.append(
                (_ErrInfo(error.http_status, error, error.message), EMPTY_PAYLOAD)
            )
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        else:
            self.close()
        self._cut_soon()

    def _cut_soon(self) -> None:
        if self.transport is not None:
            self._loop.call_later(_GOODBYE, self.transport.abort)

    def pause_writing(self) -> None:
        """The client does not take what it asked for."""
        super().pause_writing()
        self._write_timer = self._after(self._patience.write, self._on_slow_reader)

    def resume_writing(self) -> None:
        """It takes it."""
        _stop(self._write_timer)
        super().resume_writing()

    def _on_slow_reader(self) -> None:
        limits.record("connections.write_timeout")
        log.info("reader_too_slow", setting="connections.write_timeout")
        if self.transport is not None:
            connection = self.transport.get_extra_info("socket")
            if connection is not None:
                # Else the kernel would keep what it has of the answer, for minutes.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def _after(
        self, seconds: float | None, callback: Callable[[], None]
    ) -> asyncio.TimerHandle | None:
        return None if seconds is None else self._loop.call_later(seconds, callback)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is not HTTP, or that ended in an error nobody foresaw."""
        del request, message
        if isinstance(exc, ConnectionError):
            # The client left in the middle of its answer: there is nobody to tell.
            log.info("client_left")
            return TakenOver()
        request_id = uuid.uuid4().hex
        error: RelayError = BadRequest("The request is not valid HTTP.")
        if isinstance(exc, RelayError):
            error = exc
            log.info("refused", status=error.http_status, request_id=request_id)
        elif isinstance(exc, LineTooLong):
            error = _too_long(exc, self._limits)
        elif status == BadRequest.http_status:
            log.info("not_http", request_id=request_id)
        else:
            error = RelayError("Something went wrong here.")
            log.error("unforeseen", request_id=request_id, exc_info=exc)
        response = error_response(error, request_id)
        response.headers[REQUEST_ID] = request_id
        response.force_close()
        return response


_RESET: Final = struct.pack("ii", 1, 0)
"""On closing, nothing is waited for (socket(7), SO_LINGER)."""
_GOODBYE: Final = 2.0
"""Seconds for a client that was refused to read why."""


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _slow(setting: str, seconds: float | None, part: str) -> TooSlow:
    return TooSlow(f"The request's {part} took longer than {seconds:g} seconds ({setting}).")


def _over(setting: str, limit: int, part: str, unit: str = "bytes") -> BadRequest:
    limits.record(setting)
    log.info("head_too_large", setting=setting)
    return BadRequest(f"The request's {part} is over {limit} {unit} ({setting}).")


def _too_long(exc: LineTooLong, bounds: HeadLimits) -> BadRequest:
    """The parser's own limits differ by what they are for, see `server`."""
    if exc.args[1] == bounds.request_line_bytes:
        return _over("limits.request_line_bytes", bounds.request_line_bytes, "target")
    return _over("limits.header_bytes", bounds.header_bytes, "header")


def _within(bounds: HeadLimits, handler: Handler) -> Handler:
    """``handler`` for requests whose head is within its bounds."""

    async def bounded(request: web.BaseRequest) -> web.StreamResponse:
        headers = request.raw_headers
        if len(headers) > bounds.headers:
            raise _over("limits.headers", bounds.headers, "head", "headers")
        if any(len(value) > bounds.header_bytes for _, value in headers):
            raise _over("limits.header_bytes", bounds.header_bytes, "header")
        # As it was sent: a space, the version and line ends are around it.
        size = len(request.method) + len(request.raw_path) + len("  HTTP/1.1\r\n\r\n")
        size += sum(len(name) + len(value) + len(": \r\n") for name, value in headers)
        if size > bounds.head_bytes:
            raise _over("limits.head_bytes", bounds.head_bytes, "head")
        return await handler(request)

    return bounded


class HttpServer(web.Server):
    """aiohttp's low-level server, with our connections."""

    def __call__(self) -> HttpConnection:
        """One connection."""
        return self.connection(None)

    def connection(self, visitor: ConnectionWatch | None) -> HttpConnection:
        """One connection, of which ``visitor`` hears."""
        return HttpConnection(self, loop=self._loop, visitor=visitor, **self._kwargs)

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)


_HEAD: Final = HeadLimits()
_PATIENCE: Final = Timeouts()


def server(
    handler: Handler, head: HeadLimits = _HEAD, patience: Timeouts = _PATIENCE
) -> HttpServer:
    """A server for ``handler``, with limits on what comes before a body, and on time."""
    field_bytes = head.header_bytes + _NAME_BYTES
    return HttpServer(
        _within(head, handler),
        access_log=None,
        max_line_size=head.request_line_bytes,
        # Of name and value together. Another number than the line's: it tells which it was.
        max_field_size=field_bytes + (field_bytes == head.request_line_bytes),
        # One more, so that whoever is over it hears which limit that was.
        max_headers=head.headers + 1,
        keepalive_timeout=patience.idle,
        lingering_time=patience.linger,
        auto_decompress=False,
        head_limits=head,
        patience=patience,
    )


_NAME_BYTES: Final = 256
"""Bytes of a header's name that nobody is refused for, as long as its value is short enough."""


def page_server(path: str, page: Callable[[str], tuple[bytes, str]]) -> HttpServer:
    """A server for one page, to whoever asks: ``page`` takes what the request accepts.

    It returns the body and its content type.
    """

    def refused(error: RelayError) -> web.Response:
        request_id = uuid.uuid4().hex
        response = error_response(error, request_id)
        response.headers[REQUEST_ID] = request_id
        return response

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != path:
            return refused(NotFound("no such resource"))
        if request.method not in {"GET", "HEAD"}:
            response = refused(MethodNotAllowed("this path takes GET, HEAD"))
            response.headers[hdrs.ALLOW] = "GET, HEAD"
            return response
        body, content_type = page(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    return server(answer)
