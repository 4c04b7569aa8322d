"""An HTTP server for edge and agent with limits on sizes and on time.

aiohttp limits neither the time that a head or a body may take nor the total size of the headers,
and its own error pages quote what the client sent. The server that is built here has these limits,
and its error responses quote nothing.
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
from relay.http import REQUEST_ID, RESPONSE_HEADERS, NoResponse, error_response

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = structlog.get_logger(__name__)

SERVER_NAME = "relay"
"""Value of the ``Server`` header; it names neither libraries nor versions."""


class _Request(web.BaseRequest):
    """A request whose response gets the common headers, and no names of libraries."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers[hdrs.SERVER] = SERVER_NAME
        response.headers.update(self.get(RESPONSE_HEADERS, {}))


class HeadLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on a request's head, in bytes; ``headers`` is a number."""

    request_line_bytes: int = 8192
    header_bytes: int = 8192
    """Of one header's value."""
    headers: int = 100
    head_bytes: int = 32768
    """Of the request line and all headers together."""


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client may take, in seconds; None means no limit."""

    head: float | None = None
    body: float | None = None
    write: float | None = None
    """Until the client reads data that waits to be sent."""
    idle: float = 75.0
    """Until the next request on a kept-alive connection."""
    linger: float = 10.0
    """Until the rest of an unread request body has arrived, before the connection is closed."""


class ConnectionObserver(Protocol):
    """Receives the beginning and the end of one connection."""

    def opened(self, transport: asyncio.BaseTransport, /) -> None:
        """Handle a connection that is established, TLS included."""

    def closed(self) -> None:
        """Handle the end of the connection."""


class HttpConnection(RequestHandler):
    """A connection with limits on heads and on time; its error responses quote nothing."""

    __slots__ = (
        "_body",
        "_body_timer",
        "_head_bytes",
        "_head_timer",
        "_limits",
        "_refused",
        "_timeouts",
        "_write_timer",
        "observer",
    )

    def __init__(
        self,
        manager: HttpServer,
        *,
        head_limits: HeadLimits,
        timeouts: Timeouts,
        observer: ConnectionObserver | None,
        **options: Any,  # noqa: ANN401 - aiohttp's
    ) -> None:
        super().__init__(manager, **options)
        self.observer = observer
        self._limits = head_limits
        self._timeouts = timeouts
        self._body: StreamReader = EMPTY_PAYLOAD
        """Of the newest request."""
        self._head_bytes = 0
        """Received of a head that is not complete yet."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer for the first request's head."""
        super().connection_made(transport)
        if self.observer is not None:
            self.observer.opened(transport)
        self._head_timer = self._after(self._timeouts.head, self._on_head_timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers and tell the observer."""
        for timer in (self._head_timer, self._body_timer, self._write_timer):
            _stop(timer)
        if self.observer is not None:
            self.observer.closed()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, and apply the limits to the part of a request they belong to."""
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
        """Handle complete heads. The limit on a next head counts from its next bytes on."""
        _stop(self._head_timer)
        self._head_timer, self._head_bytes = None, 0
        message, self._body = self._messages[-1]
        # Nothing behind malformed HTTP can be trusted to be a request.
        self._refused = isinstance(message, _ErrInfo)
        self._on_body()

    def _on_body(self) -> None:
        if self._body.is_eof():
            _stop(self._body_timer)
            self._body_timer = None
        elif self._body_timer is None:
            self._body_timer = self._after(self._timeouts.body, self._on_body_timeout)

    def _on_part_of_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes:
            # Refused now, before the parser collects more headers.
            self._refuse(_too_large("limits.head_bytes", self._limits.head_bytes, "head"))
        elif self._head_timer is None:
            self._head_timer = self._after(self._timeouts.head, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        if self._buffer_paused:
            # The server has paused reading: the client is not to blame.
            self._head_timer = self._after(self._timeouts.head, self._on_head_timeout)
            return
        limits.record("connections.head_timeout")
        log.info("request_head_timeout", setting="connections.head_timeout", size=self._head_bytes)
        if self._head_bytes:
            self._refuse(_timeout("connections.head_timeout", self._timeouts.head, "head"))
        else:
            # No request has begun, so there is nothing to respond to.
            self.force_close()

    def _on_body_timeout(self) -> None:
        limits.record("connections.body_timeout")
        log.info("request_body_timeout", setting="connections.body_timeout")
        # The handler that reads the body turns the exception into a response.
        self._body.set_exception(_timeout("connections.body_timeout", self._timeouts.body, "body"))
        self._refused = True
        self.close()
        self._cut_soon()

    def _refuse(self, error: RelayError) -> None:
        """Read nothing more; respond with ``error`` unless a response has begun already."""
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
            self._loop.call_later(_CLOSE_DELAY, self.transport.abort)

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read its response."""
        super().pause_writing()
        self._write_timer = self._after(self._timeouts.write, self._on_write_timeout)

    def resume_writing(self) -> None:
        """Stop the timer: the client reads again."""
        _stop(self._write_timer)
        super().resume_writing()

    def _on_write_timeout(self) -> None:
        limits.record("connections.write_timeout")
        log.info("response_write_timeout", setting="connections.write_timeout")
        if self.transport is not None:
            connection = self.transport.get_extra_info("socket")
            if connection is not None:
                # Without a reset Linux would keep the unsent data for minutes.
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
        """Respond to malformed HTTP, or to an error that no handler expected."""
        del request, message
        if isinstance(exc, ConnectionError):
            # The client disconnected while it was sent its response.
            log.info("client_disconnected")
            return NoResponse()
        request_id = uuid.uuid4().hex
        error: RelayError = BadRequest("The request is not valid HTTP.")
        if isinstance(exc, RelayError):
            error = exc
            log.info("refused", status=error.http_status, request_id=request_id)
        elif isinstance(exc, LineTooLong):
            error = _line_too_long(exc, self._limits)
        elif status == BadRequest.http_status:
            log.info("malformed_request", request_id=request_id)
        else:
            error = RelayError("An internal error occurred.")
            log.error("unexpected_error", request_id=request_id, exc_info=exc)
        response = error_response(error, request_id)
        response.headers[REQUEST_ID] = request_id
        response.force_close()
        return response


_RESET: Final = struct.pack("ii", 1, 0)
"""Closing sends a reset and waits for nothing (socket(7), SO_LINGER)."""
_CLOSE_DELAY: Final = 2.0
"""Seconds in which a client can read why it was refused, before the connection is aborted."""


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _timeout(setting: str, seconds: float | None, part: str) -> TooSlow:
    return TooSlow(f"The request's {part} took longer than {seconds:g} seconds ({setting}).")


def _too_large(setting: str, limit: int, part: str, unit: str = "bytes") -> BadRequest:
    limits.record(setting)
    log.info("request_head_too_large", setting=setting)
    return BadRequest(f"The request's {part} is over {limit} {unit} ({setting}).")


def _line_too_long(exc: LineTooLong, bounds: HeadLimits) -> BadRequest:
    """Name the limit that the parser's error is about; `server` makes the two limits differ."""
    if exc.args[1] == bounds.request_line_bytes:
        return _too_large("limits.request_line_bytes", bounds.request_line_bytes, "target")
    return _too_large("limits.header_bytes", bounds.header_bytes, "header")


def _with_head_limits(bounds: HeadLimits, handler: Handler) -> Handler:
    """Wrap ``handler`` so that it only gets requests whose head is within ``bounds``."""

    async def bounded(request: web.BaseRequest) -> web.StreamResponse:
        headers = request.raw_headers
        if len(headers) > bounds.headers:
            raise _too_large("limits.headers", bounds.headers, "head", "headers")
        if any(len(value) > bounds.header_bytes for _, value in headers):
            raise _too_large("limits.header_bytes", bounds.header_bytes, "header")
        # The size on the wire: with spaces, version, colons and line ends.
        size = len(request.method) + len(request.raw_path) + len("  HTTP/1.1\r\n\r\n")
        size += sum(len(name) + len(value) + len(": \r\n") for name, value in headers)
        if size > bounds.head_bytes:
            raise _too_large("limits.head_bytes", bounds.head_bytes, "head")
        return await handler(request)

    return bounded


class HttpServer(web.Server):
    """aiohttp's low-level server, which makes `HttpConnection` objects."""

    def __call__(self) -> HttpConnection:
        """Make the protocol object of one connection."""
        return self.connection(None)

    def connection(self, observer: ConnectionObserver | None) -> HttpConnection:
        """Make the protocol object of one connection that ``observer`` is told about."""
        return HttpConnection(self, loop=self._loop, observer=observer, **self._kwargs)

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)


_HEAD_LIMITS: Final = HeadLimits()
_TIMEOUTS: Final = Timeouts()


def server(
    handler: Handler, head_limits: HeadLimits = _HEAD_LIMITS, timeouts: Timeouts = _TIMEOUTS
) -> HttpServer:
    """Make a server that passes requests within the limits to ``handler``."""
    field_bytes = head_limits.header_bytes + _NAME_BYTES
    return HttpServer(
        _with_head_limits(head_limits, handler),
        access_log=None,
        max_line_size=head_limits.request_line_bytes,
        # Of name and value together. It differs from the line's limit, so that the parser's error
        # shows which of the two was exceeded.
        max_field_size=field_bytes + (field_bytes == head_limits.request_line_bytes),
        # One more than allowed, so that the error can name the setting.
        max_headers=head_limits.headers + 1,
        keepalive_timeout=timeouts.idle,
        lingering_time=timeouts.linger,
        auto_decompress=False,
        head_limits=head_limits,
        timeouts=timeouts,
    )


_NAME_BYTES: Final = 256
"""Bytes that the parser allows for a header's name, beside its value."""


def page_server(path: str, page: Callable[[str], tuple[bytes, str]]) -> HttpServer:
    """Make a server that serves one page to everybody.

    ``page`` takes the request's ``Accept`` header and returns the body and its content type.
    """

    def refused(error: RelayError) -> web.Response:
        request_id = uuid.uuid4().hex
        response = error_response(error, request_id)
        response.headers[REQUEST_ID] = request_id
        return response

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != path:
            return refused(NotFound("There is no such resource."))
        if request.method not in {"GET", "HEAD"}:
            response = refused(MethodNotAllowed("This path takes GET and HEAD."))
            response.headers[hdrs.ALLOW] = "GET, HEAD"
            return response
        body, content_type = page(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    return server(answer)
