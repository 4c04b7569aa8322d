"""WebSockets to a kernel's channels over aiohttp, with its errors turned into the relay's."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import aiohttp
from aiohttp import hdrs

from relay.bridge.ws_codec import Subprotocol
from relay.client import errors
from relay.client.errors import ConnectionLost
from relay.client.settings import Settings
from relay.errors import ClientError, RelayError

_CLOSE_TIMEOUT: Final = 2.0
"""Seconds for the relay to answer a close frame."""


class Socket(Protocol):
    """The interface of a WebSocket for `Channels`."""

    async def send(self, payload: bytes) -> None:
        """Send a message. Raises `ConnectionLost`."""

    async def receive(self) -> bytes:
        """Return the next message. Raises a `RelayError` at the end."""

    async def close(self) -> None:
        """Close the WebSocket, with a close frame if it is still open."""


class WebSocket:
    """A WebSocket of aiohttp's; it answers pings by itself while `receive` is running."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, silent_after: float) -> None:
        self._socket = socket
        self._silent_after = silent_after

    async def send(self, payload: bytes) -> None:
        """Send a message. Raises `ConnectionLost`."""
        try:
            await self._socket.send_bytes(payload)
        except (aiohttp.ClientError, OSError) as error:
            msg = "The connection broke."
            raise ConnectionLost(msg) from error

    async def receive(self) -> bytes:
        """Return the next message. Raises a `RelayError` at the end."""
        try:
            message = await self._socket.receive(self._silent_after)
        except TimeoutError:
            msg = f"Nothing was received for {self._silent_after:g} s (silent_after)."
            raise ConnectionLost(msg) from None
        if message.type is aiohttp.WSMsgType.BINARY:
            payload: bytes = message.data
            return payload
        if message.type is aiohttp.WSMsgType.CLOSE:
            raise errors.from_close(message.data, message.extra or "")
        # The connection broke, or the message is not one of the v1 subprotocol.
        raise errors.from_close(self._socket.close_code, "")

    async def close(self) -> None:
        """Close the WebSocket, with a close frame if it is still open."""
        await self._socket.close()


async def connect(
    session: aiohttp.ClientSession, url: str, parameters: dict[str, str], settings: Settings
) -> WebSocket:
    """Open a kernel's channels. Raises `RelayError`; an `AgentError` where retrying may help."""
    v1 = Subprotocol.V1.value
    try:
        async with asyncio.timeout(settings.request_timeout):
            socket = await session.ws_connect(
                url,
                params=parameters,
                protocols=(v1,),
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT),
            )
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise from_exception(error) from error
    if socket.protocol != v1:
        await socket.close()
        msg = f"The server does not support {v1}."
        raise ClientError(msg)
    return WebSocket(socket, settings.silent_after)


def from_exception(error: Exception) -> RelayError:
    """Return the error for an exception of aiohttp's."""
    if isinstance(error, aiohttp.WSServerHandshakeError):
        text = f"The relay refused the kernel's channels ({error.status})."
        return errors.from_response(error.status, text, retry_after=retry_after(error.headers))
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        # Without aiohttp's text, which may be long. Retrying does not help.
        return ClientError(
            "The relay's certificate is not trusted: pass ssl, or set SSL_CERT_FILE."
        )
    return ConnectionLost(f"The relay does not respond ({type(error).__name__}).")


def retry_after(headers: object) -> int | None:
    """Return the seconds in ``Retry-After``; None where there are none, or a date."""
    value = headers.get(hdrs.RETRY_AFTER, "") if hasattr(headers, "get") else ""
    return int(value) if value.isascii() and value.isdecimal() else None
