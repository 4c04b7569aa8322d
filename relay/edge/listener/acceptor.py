"""Accepts connections: counts them, hears who they come from, and begins TLS with them.

accept → the parent's count → PROXY protocol → the name in ClientHello → TLS → HTTP. Whatever is
over a limit, late or malformed is closed without a word, before anything was spent on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import web

from relay import limits
from relay.config import ConnectionSettings
from relay.connections import HttpServer
from relay.edge.ipc.client import ParentClient, Permit, Refused
from relay.edge.ipc.quotas import AddressPermit, ConnectionPermit
from relay.edge.listener import proxy_headers, sni
from relay.edge.listener.client_certs import ClientCertificates
from relay.edge.listener.proxy_headers import Networks
from relay.errors import Unauthorized
from relay.model import Identity

log = structlog.get_logger(__name__)

_PAUSE: Final = 0.2
"""Seconds without a new connection when there is no descriptor left for one."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_MOMENT: Final = 0.01
"""Seconds before a deadline in which a timer may go off."""
_STEP: Final = 4096
"""Bytes that are read of a PROXY header at once."""


class ClientConnection:
    """Who is at the other end of one connection, and what is counted for it."""

    def __init__(self, address: str) -> None:
        self.address = address
        """Where it comes from; a trusted proxy's word counts."""
        self.identity: Identity | None = None
        """Who its certificate says that it is."""
        self.certificate_required = False
        self._permits: list[Permit[None]] = []
        self._identify: Callable[[bytes], Identity | None] | None = None

    def hold(self, permit: Permit[None]) -> None:
        """Release ``permit`` when the connection ends."""
        self._permits.append(permit)

    def expect_certificate(self, identify: Callable[[bytes], Identity | None]) -> None:
        """It will show one in the handshake."""
        self.certificate_required = True
        self._identify = identify

    def opened(self, transport: asyncio.BaseTransport) -> None:
        """TLS stands."""
        if self._identify is not None:
            tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
            certificate = tls.getpeercert(binary_form=True)
            # ValueError: signed by the right authority, and malformed all the same.
            with contextlib.suppress(ValueError):
                self.identity = self._identify(certificate or b"")

    def certificate_identity(self, now: float) -> Identity | None:
        """Return the identity in the client's certificate; ``None`` where none was asked for.

        ``now`` is in Unix seconds. Raises `Unauthorized` for a certificate that maps to no user,
        and for one that has expired since the handshake.
        """
        if not self.certificate_required:
            return None
        if self.identity is None:
            raise Unauthorized("the certificate is nobody's")
        if self.identity.expires <= now:
            raise Unauthorized("the certificate has expired")
        return self.identity

    def closed(self) -> None:
        """The connection is gone."""
        while self._permits:
            self._permits.pop().release()


def connection_of(request: web.BaseRequest) -> ClientConnection:
    """Return the connection that a request came on."""
    connection = request.protocol.observer  # type: ignore[attr-defined]  # our own connections have it
    assert isinstance(connection, ClientConnection)  # noqa: S101 - set where they are made
    return connection


class Acceptor:
    """Takes connections from one listening socket to one HTTP server."""

    def __init__(
        self,
        listener: socket.socket,
        http: HttpServer,
        *,
        parent: ParentClient,
        tls: ssl.SSLContext,
        certificates: ClientCertificates,
        proxies: Networks,
        settings: ConnectionSettings,
    ) -> None:
        self._listener = listener
        self._http = http
        self._parent = parent
        self._tls = tls
        self._certificates = certificates
        self._proxies = proxies
        self._settings = settings

    async def run(self) -> None:
        """Accept until cancelled; connections whose TLS does not stand by then are cut."""
        async with asyncio.TaskGroup() as handshakes:
            while True:
                accepted = await self._accept()
                if accepted is None:
                    continue
                connection, address = accepted
                visitor = ClientConnection(address)
                proxied = address in self._proxies
                # One after the other: a flood waits in the kernel's queue, not in our memory.
                wanted = ConnectionPermit(None if proxied else proxy_headers.counted(address))
                if await self._admit(visitor, wanted):
                    handshakes.create_task(
                        self._welcome(connection, visitor, proxied=proxied),
                        name=f"handshake with {address}",
                    )
                else:
                    connection.close()

    async def _accept(self) -> tuple[socket.socket, str] | None:
        try:
            connection, peer = await asyncio.get_running_loop().sock_accept(self._listener)
        except OSError as error:
            # Of the connection that was to be, which is gone again; or there is no room.
            if error.errno in _EXHAUSTED:
                log.error("accept_failed", problem=error.strerror)  # noqa: TRY400 - says it all
                await asyncio.sleep(_PAUSE)
            return None
        connection.settimeout(0)
        return connection, str(peer[0])

    async def _admit(
        self, visitor: ClientConnection, wanted: ConnectionPermit | AddressPermit
    ) -> bool:
        try:
            visitor.hold(await self._parent.acquire(wanted))
        except Refused as refused:
            setting = refused.code
            log.info("connection_refused", address=visitor.address, setting=setting)
            limits.record(setting)
            return False
        return True

    async def _welcome(
        self, connection: socket.socket, visitor: ClientConnection, *, proxied: bool
    ) -> None:
        """From the first byte until TLS stands, in ``tls_timeout`` seconds all in all."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.tls_timeout
        try:
            async with asyncio.timeout_at(deadline):
                if proxied and not await self._hear_proxy(connection, visitor):
                    connection.close()
                    visitor.closed()
                    return
                context = await self._context(connection, visitor)
            await loop.connect_accepted_socket(
                lambda: self._http.connection(visitor),
                connection,
                ssl=context,
                # Its own, and never 0: uvloop's ends what is half done in the right way.
                ssl_handshake_timeout=max(deadline - loop.time(), 0.001),
                ssl_shutdown_timeout=self._settings.write_timeout,
            )
        except BaseException as error:
            connection.close()
            visitor.closed()
            if not isinstance(error, Exception):
                raise
            self._tell(error, visitor, late=loop.time() >= deadline - _MOMENT)

    def _tell(self, error: Exception, visitor: ClientConnection, *, late: bool) -> None:
        """Why a connection came to nothing. Whatever it was, others go on."""
        setting = "connections.tls_timeout"
        if late and isinstance(error, ConnectionAbortedError | TimeoutError):
            log.info("handshake_timeout", address=visitor.address, setting=setting)
            limits.record(setting)
        elif isinstance(error, OSError | ValueError):  # ssl's errors are among them
            log.debug("handshake_failed", address=visitor.address, problem=str(error))
        else:
            log.error("unexpected_error", address=visitor.address, exc_info=error)

    async def _hear_proxy(self, connection: socket.socket, visitor: ClientConnection) -> bool:
        """Take the PROXY header, and count the connection for whom it is; whether it may stay.

        Raises ``ValueError`` for anything else.
        """
        address = await _proxy_header(connection)
        if address is None:
            # Its own, to see whether we live.
            return True
        visitor.address = address
        return await self._admit(visitor, AddressPermit(proxy_headers.counted(address)))

    async def _context(
        self, connection: socket.socket, visitor: ClientConnection
    ) -> ssl.SSLContext:
        """How to speak with it; a certificate is asked for by the name that it asked for."""
        if not self._certificates:
            return self._tls
        name = await _server_name(connection)
        context = self._certificates.context(name)
        if name is None or context is None:
            return self._tls
        visitor.expect_certificate(lambda found: self._certificates.identify(name, found))
        return context


async def _proxy_header(connection: socket.socket) -> str | None:
    head = await _exactly(connection, len(proxy_headers.V2_SIGNATURE))
    if head == proxy_headers.V2_SIGNATURE:
        head += await _exactly(connection, proxy_headers.V2_HEAD - len(head))
        return proxy_headers.read_v2(head, await _exactly(connection, proxy_headers.v2_rest(head)))
    # Not a byte more than the line is taken: TLS begins behind it.
    while not head.endswith(b"\n") and len(head) < proxy_headers.V1_LINE:
        ahead = await _peek(connection, 1, proxy_headers.V1_LINE - len(head))
        head += await _exactly(connection, (ahead.find(b"\n") + 1) or len(ahead))
    return proxy_headers.read_v1(head)


async def _server_name(connection: socket.socket) -> str | None:
    """The name that TLS will be asked for. It stays unread for TLS itself."""
    try:
        length = sni.record_length(await _peek(connection, sni.RECORD_HEAD, sni.RECORD_HEAD))
        return sni.server_name(await _peek(connection, length, length))
    except ValueError:
        # TLS will say what is wrong with it.
        return None
    finally:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _peek(connection: socket.socket, least: int, most: int) -> bytes:
    """What is there to be read, once that is ``least`` bytes. Raises ``ValueError`` at the end."""
    # Readable means that so many are there (socket(7)).
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    data = connection.recv(most, socket.MSG_PEEK)
    if len(data) < least:
        raise ValueError("it ends too early")
    return data


async def _exactly(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes. Raises ``ValueError`` at the end."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(connection, min(size - len(data), _STEP))
        if not more:
            raise ValueError("it ends too early")
        data += more
    return data
