"""aiohttp's WebSockets to a kernel's channels, and its errors made the relay's."""

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
    """A WebSocket as `Channels` uses it."""

    async def send(self, payload: bytes) -> None:
        """Send a message. Raises `ConnectionLost`."""

    async def receive(self) -> bytes:
        """The next message. Raises a `RelayError` at the end."""

    async def close(self) -> None:
        """Say goodbye, if there is still somebody."""


class WebSocket:
    """aiohttp's. It answers pings by itself, while `receive` is being called."""

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
        """The next message. Raises a `RelayError` at the end."""
        try:
            message = await self._socket.receive(self._silent_after)
        except TimeoutError:
            msg = f"Nothing was heard for {self._silent_after:g} s (silent_after)."
            raise ConnectionLost(msg) from None
        if message.type is aiohttp.WSMsgType.BINARY:
            payload: bytes = message.data
            return payload
        if message.type is aiohttp.WSMsgType.CLOSE:
            raise errors.of_close(message.data, message.extra or "")
        # Broken, or something that is no message of the v1 subprotocol.
        raise errors.of_close(self._socket.close_code, "")

    async def close(self) -> None:
        """Say goodbye, if there is still somebody."""
        await self._socket.close()


async def connect(
    session: aiohttp.ClientSession, url: str, parameters: dict[str, str], settings: Settings
) -> WebSocket:
    """Open channels. Raises an `AgentError` where coming again may help, else `RelayError`."""
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
        raise of_failure(error) from error
    if socket.protocol != v1:
        await socket.close()
        msg = f"The server does not speak {v1}."
        raise ClientError(msg)
    return WebSocket(socket, settings.silent_after)


def of_failure(error: Exception) -> RelayError:
    """What an exception of aiohttp's means."""
    if isinstance(error, aiohttp.WSServerHandshakeError):
        text = f"The relay refused the kernel's channels ({error.status})."
        return errors.of_answer(error.status, text, retry_after=retry_after(error.headers))
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        # Not its text: it may be long, and nothing gets better by trying again.
        return ClientError("The relay's certificate is not trusted; see the parameter ssl.")
    return ConnectionLost(f"The relay does not answer ({type(error).__name__}).")


def retry_after(headers: object) -> int | None:
    """The seconds in ``Retry-After``; None where there are none, or a date."""
    value = headers.get(hdrs.RETRY_AFTER, "") if hasattr(headers, "get") else ""
    return int(value) if value.isascii() and value.isdecimal() else None
