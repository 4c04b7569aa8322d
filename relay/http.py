"""What edge and agent say over HTTP: JSON, errors, bodies with a limit, and taking over.

aiohttp serves HTTP and the handshakes; once a connection carries something else, its transport
gets another protocol and aiohttp only waits for the handler to return.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from relay import limits
from relay.errors import RelayError, TooLarge, UnsupportedMedia

REQUEST_ID = "X-Request-Id"
ANSWER_HEADERS = web.RequestKey("answer_headers", dict[str, str])
"""Set on a request, these go out with its answer, whichever that will be."""


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
        limits.record(setting)
        raise TooLarge(msg)
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            limits.record(setting)
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


def transport_of(request: web.BaseRequest) -> asyncio.Transport:
    """The request's connection. Raises `ConnectionResetError` where it is gone."""
    transport = request.transport
    if transport is None or transport.is_closing():
        msg = "the client went away"
        raise ConnectionResetError(msg)
    return transport
