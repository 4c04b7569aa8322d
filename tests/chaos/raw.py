"""A client without a library of its own: a WebSocket, and a loop that opens it again."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from tests.chaos.desk import until
from tests.chaos.silence import Network
from tests.chaos.tally import Heard
from tests.system.channels import V1, execute_request, pack, unpack

_PAUSE: Final = 0.1
"""Seconds between two attempts."""


class Door(NamedTuple):
    """Where a WebSocket is opened, and how."""

    url: str
    """That of the channels."""
    headers: Mapping[str, str]
    tls: ssl.SSLContext | None = None
    v1: bool = True
    network: Network | None = None
    """Where it is opened from, if not from here."""
    patience: float | None = None
    """Seconds of silence after which the connection is taken for dead, and a ping is sent, which
    may take as long; None believes in it for ever."""


class _Counting(ClientConnection):
    """Counts the pings that it answers."""

    pings = 0

    def process_event(self, event: Event) -> None:
        """Take a frame, as the library does."""
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            _Counting.pings += 1
        super().process_event(event)


def pings() -> int:
    """How many pings all of them have answered so far."""
    return _Counting.pings


class RawSeat:
    """Opens its WebSocket again whenever it breaks. What was asked it never repeats."""

    def __init__(
        self,
        door: Door,
        hear: Callable[[Heard], None],
        *,
        named: bool = True,
        ports: Callable[[], set[int]] | None = None,
    ) -> None:
        """With ``named`` it sends a ``session_id``.

        ``ports``: what `ports` tells, where it is not the relay that the door leads to.
        """
        self.session = secrets.token_hex(16)
        self.gone = False
        """The server says that there is no such kernel."""
        self._door = door
        self._url = f"{door.url}?session_id={self.session}" if named else door.url
        self._hear = hear
        self._ports = ports
        self._socket: ClientConnection | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Stay connected until closed."""
        while not self._stopped.is_set():
            try:
                await self._connect_once()
            except InvalidStatus as error:
                self.gone = error.response.status_code == HTTPStatus.NOT_FOUND
            except (OSError, WebSocketException):
                pass
            finally:
                self._socket = None
            if self.gone:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE):
                    await self._stopped.wait()

    async def _connect_once(self) -> None:
        parts = urlsplit(self._url)
        network = self._door.network
        assert parts.hostname is not None
        assert parts.port is not None
        made = None if network is None else await network.connect(parts.hostname, parts.port)
        async with connect(
            self._url,
            ssl=self._door.tls,
            sock=made,
            additional_headers=self._door.headers,
            subprotocols=[V1] if self._door.v1 else None,
            create_connection=_Counting,
            compression=None,
            max_size=None,
            proxy=None,
            # Not less than the relay takes: a handshake that is given up at the last moment may
            # have heard, and acknowledged, what nobody reads then.
            open_timeout=60.0,
            ping_interval=self._door.patience,
            ping_timeout=self._door.patience,
            close_timeout=1.0,
        ) as opened:
            if self._stopped.is_set():
                return
            self._socket = opened
            v1 = opened.subprotocol == V1
            async for payload in opened:
                self._hear(Heard.of(unpack(payload, v1=v1)))

    def ports(self) -> set[int]:
        """Its own, if it is connected."""
        if self._ports is not None:
            return self._ports()
        return set() if self._socket is None else {self._socket.local_address[1]}

    async def ask(self, key: str, code: str) -> None:
        """Send it once there is a connection."""
        await until("a connection", lambda: self._socket is not None or self.gone)
        if (connected := self._socket) is not None:
            request = execute_request(code, session=self.session, msg_id=key)
            with contextlib.suppress(ConnectionClosed):
                await connected.send(pack(request, v1=connected.subprotocol == V1))

    def cut(self) -> None:
        """Break the connection, as a network does."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def close(self) -> None:
        """End it; `run` returns soon after."""
        self._stopped.set()
        if self._socket is not None:
            await self._socket.close()
