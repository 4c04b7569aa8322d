"""What edge and agent share of HTTP: error bodies, a server that says little, taking over.

aiohttp serves HTTP and the handshakes; once a connection carries something else, its transport
gets another protocol and aiohttp only waits for the handler to return.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from relay import limits
from relay.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    RelayError,
    TooLarge,
    UnsupportedMedia,
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = structlog.get_logger(__name__)

REQUEST_ID = "X-Request-Id"
SERVER_NAME = "relay"
"""Sent as ``Server`` instead of the names and versions of our libraries."""


def json_response(body: object, status: int = 200) -> web.Response:
    """A JSON response; ``body`` is anything msgspec encodes."""
    data = msgspec.json.encode(body)
    return web.Response(body=data, status=status, content_type="application/json")


def error_response(error: RelayError, request_id: str) -> web.Response:
    """What a client sees of an error: Jupyter shows ``message``, support asks for the id."""
    body = {"message": error.message, "reason": error.reason, "request_id": request_id}
    response = json_response(body, error.http_status)
    if error.retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(error.retry_after)
    return response


async def read_body(request: web.BaseRequest, limit: int, setting: str) -> bytes:
    """The request's body. Raises `TooLarge` past ``limit`` bytes, naming the setting."""
    msg = f"The request body is over {limit} bytes ({setting})."
    codings = request.headers.getall(hdrs.CONTENT_ENCODING, [])
    if any(coding.lower() != "identity" for coding in codings):
        # Ten kilobytes of one compressed may be ten megabytes of the other.
        text = "Compressed request bodies are not accepted."
        raise UnsupportedMedia(text)
    if (request.content_length or 0) > limit:
        limits.hit(setting)
        raise TooLarge(msg)
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            limits.hit(setting)
            raise TooLarge(msg)
    return bytes(body)


class TakenOver(web.StreamResponse):
    """Returned by a handler that has used up its connection itself: nothing is sent for it."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send nothing."""
        del request
        self.force_close()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send nothing."""
        del data


ANSWER_HEADERS = web.RequestKey("answer_headers", dict[str, str])
"""Set on a request, these go out with its answer, whichever that will be."""


class _Request(web.BaseRequest):
    """A request whose answer says what every answer says, and not what it was made with."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers[hdrs.SERVER] = SERVER_NAME
        response.headers.update(self.get(ANSWER_HEADERS, {}))


class _Connection(RequestHandler):
    """A connection whose own error pages quote nothing of what came in."""

    __slots__ = ()

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
        if status == BadRequest.http_status:
            log.info("not_http", request_id=request_id)
        else:
            error = RelayError("Something went wrong here.")
            log.error("unforeseen", request_id=request_id, exc_info=exc)
        response = error_response(error, request_id)
        response.headers[REQUEST_ID] = request_id
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's low-level server, with our connections."""

    def __call__(self) -> RequestHandler:
        """One connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)


def server(
    handler: Handler,
    *,
    request_line_bytes: int = 8192,
    header_bytes: int = 8192,
    headers: int = 100,
) -> Server:
    """A server for ``handler``, with limits on what comes before a body."""
    return Server(
        handler,
        access_log=None,
        max_line_size=request_line_bytes,
        max_field_size=header_bytes,
        max_headers=headers,
        keepalive_timeout=75.0,
        auto_decompress=False,
    )


def page_server(path: str, page: Callable[[str], tuple[bytes, str]]) -> Server:
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


def transport_of(request: web.BaseRequest) -> asyncio.Transport:
    """The request's connection. Raises `ConnectionResetError` where it is gone."""
    transport = request.transport
    if transport is None or transport.is_closing():
        msg = "the client went away"
        raise ConnectionResetError(msg)
    return transport
