"""JSON and error responses, bodies with a limit, and connections that leave HTTP.

aiohttp serves HTTP and the WebSocket handshakes. When a connection then carries another protocol,
its transport gets another protocol object, and aiohttp only waits until the handler returns.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from relay import limits
from relay.errors import RelayError, TooLarge, UnsupportedMedia

REQUEST_ID = "X-Request-Id"
RESPONSE_HEADERS = web.RequestKey("answer_headers", dict[str, str])
"""Request key for headers that are added to the response, whichever that will be."""


def json_response(body: object, status: int = 200) -> web.Response:
    """Make a JSON response from anything that msgspec can encode."""
    data = msgspec.json.encode(body)
    return web.Response(body=data, status=status, content_type="application/json")


def error_response(error: RelayError, request_id: str) -> web.Response:
    """Make a client's view of an error: Jupyter shows ``message``; the id leads to the logs."""
    body = {"message": error.message, "reason": error.reason, "request_id": request_id}
    response = json_response(body, error.http_status)
    if error.retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(error.retry_after)
    return response


async def read_body(request: web.BaseRequest, limit: int, setting: str) -> bytes:
    """Read the request's body.

    Raises:
        TooLarge: the body is over ``limit`` bytes; the message names ``setting``.
        UnsupportedMedia: the body is compressed.
    """
    msg = f"The request body is over {limit} bytes ({setting})."
    codings = request.headers.getall(hdrs.CONTENT_ENCODING, [])
    if any(coding.lower() != "identity" for coding in codings):
        # A few compressed kilobytes can become many megabytes.
        text = "Compressed request bodies are not accepted."
        raise UnsupportedMedia(text)
    if (request.content_length or 0) > limit:
        limits.record(setting)
        raise TooLarge(msg)
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            limits.record(setting)
            raise TooLarge(msg)
    return bytes(body)


class NoResponse(web.StreamResponse):
    """A response of which nothing is sent: the handler has used the connection itself."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send no head."""
        del request
        self.force_close()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send no body."""
        del data


def transport_of(request: web.BaseRequest) -> asyncio.Transport:
    """Return the request's connection. Raises `ConnectionResetError` where it is closed."""
    transport = request.transport
    if transport is None or transport.is_closing():
        msg = "the client has disconnected"
        raise ConnectionResetError(msg)
    return transport
