from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
import uvloop
from aiohttp import web

from relay import limits
from relay.config import (
    ConnectionSettings,
    LoginSettings,
    MtlsSettings,
    QuotaSettings,
    TlsSettings,
)
from relay.connections import HeadLimits, Timeouts, server
from relay.edge.ipc.client import ParentClient
from relay.edge.ipc.quotas import Quotas, quotas_service
from relay.edge.ipc.server import ParentServer, socket_path
from relay.edge.listener.acceptor import Acceptor, ClientConnection, connection_of
from relay.edge.listener.client_certs import ClientCertificates, server_context
from relay.edge.listener.proxy_headers import V2_SIGNATURE, Networks
from relay.errors import Unauthorized
from relay.model import Identity, Principal
from tests.virtualtime import settle
from tests.waiting import until

WAIT = 20.0
ROBOTS = "robots.example"
V1 = b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n"
V2 = (
    V2_SIGNATURE
    + struct.pack(">BBH", 0x21, 0x11, 12)
    + bytes([192, 0, 2, 2, 10, 0, 0, 1])
    + b"abcd"
)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Pki(NamedTuple):
    ca: trustme.CA
    robots_ca: trustme.CA
    other_ca: trustme.CA
    server: TlsSettings
    robots: MtlsSettings


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    ca, robots_ca, other_ca = trustme.CA(), trustme.CA(), trustme.CA()
    certificate = ca.issue_cert("relay.example", ROBOTS, "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(folder / "server.pem", append=number > 0)
    robots_ca.cert_pem.write_to_path(folder / "robots.pem")
    return Pki(
        ca,
        robots_ca,
        other_ca,
        TlsSettings(certificate=str(folder / "server.pem"), key=str(folder / "key.pem")),
        MtlsSettings(ca=str(folder / "robots.pem")),
    )


class Running:
    """An acceptor at work; what it serves tells who asks."""

    def __init__(self, pki: Pki, port: int, quotas: Quotas) -> None:
        self.pki = pki
        self.port = port
        self.quotas = quotas

    def tls(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.pki.ca.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return context

    async def connect(
        self, first: bytes = b"", name: str = "relay.example", tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        raw = socket.socket()
        raw.settimeout(0)
        try:
            await loop.sock_connect(raw, ("127.0.0.1", self.port))
            for byte in first:
                await loop.sock_sendall(raw, bytes([byte]))
            return await asyncio.open_connection(
                sock=raw, ssl=tls or self.tls(), server_hostname=name
            )
        except BaseException:
            raw.close()
            raise

    async def ask(self, *arguments: Any, **named: Any) -> str:
        """Who the server says that we are."""
        reader, writer = await self.connect(*arguments, **named)
        try:
            return await self.ask_again(reader, writer)
        finally:
            writer.close()

    async def ask_again(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return (await reader.readexactly(size)).decode()

    async def refused(self, *arguments: Any, **named: Any) -> None:
        # A reset in the middle of a handshake, or, where TLS 1.3 told us already, right after it.
        with pytest.raises((OSError, EOFError)):
            await self.ask(*arguments, **named)

    async def empty(self) -> None:
        await until(lambda: len(self.quotas) == 0)


async def whoami(request: web.BaseRequest) -> web.StreamResponse:
    visitor = connection_of(request)
    who = visitor.identity.principal if visitor.identity else "-"
    return web.Response(text=f"{visitor.address} {who}")


def handshakes() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("handshake")]


@contextlib.asynccontextmanager
async def running(
    pki: Pki, folder: Path, *, proxies: tuple[str, ...] = (), mtls: bool = False, **settings: Any
) -> AsyncIterator[Running]:
    connections = ConnectionSettings(**settings)
    quotas = Quotas(connections, QuotaSettings(), LoginSettings())
    parent = ParentServer(socket_path(folder), [quotas_service(quotas)], is_worker=lambda _: True)
    await parent.listen()
    client = await ParentClient.connect(socket_path(folder), os.getpid(), lambda: None)
    http = server(whoami, HeadLimits(), Timeouts(head=connections.head_timeout))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        acceptor = Acceptor(
            listener,
            http,
            parent=client,
            tls=server_context(pki.server),
            certificates=ClientCertificates(pki.server, {ROBOTS: pki.robots} if mtls else {}),
            proxies=Networks(proxies),
            settings=connections,
        )
        made = Running(pki, listener.getsockname()[1], quotas)
        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
            task = group.create_task(acceptor.run())
            yield made
            await http.shutdown(0)
            await made.empty()
            task.cancel()
        client.close()
        parent.close()


def on_uvloop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        async def main() -> None:
            await test(*arguments, **named)

        uvloop.run(main())

    return run


@pytest.fixture(autouse=True)
def hits() -> Iterator[Any]:
    limits.counts.clear()
    yield limits.counts
    limits.counts.clear()


# --- counts ---


@on_uvloop
async def test_connections_at_the_limit_and_past_it(pki: Pki, tmp_path: Path, hits: Any) -> None:
    async with running(pki, tmp_path, per_address=2) as door:
        first = await door.connect()
        second = await door.connect()
        await door.refused()
        assert hits == {"connections.per_address": 1}
        # Those that are there don't feel it.
        assert await door.ask_again(*first) == "127.0.0.1 -"
        assert await door.ask_again(*second) == "127.0.0.1 -"
        first[1].close()
        await first[1].wait_closed()
        await until(lambda: door.quotas._limiter._counts[("all",)] <= 1)
        assert await door.ask() == "127.0.0.1 -"
        second[1].close()


@on_uvloop
async def test_connections_in_all(pki: Pki, tmp_path: Path, hits: Any) -> None:
    async with running(pki, tmp_path, total=1) as door:
        _, writer = await door.connect()
        await door.refused()
        assert hits == {"connections.total": 1}
        writer.close()


@on_uvloop
async def test_a_handshake_that_fails_or_stalls_is_counted_no_longer(
    pki: Pki, tmp_path: Path, hits: Any
) -> None:
    async with running(pki, tmp_path, tls_timeout=0.3, per_address=3) as door:
        loop = asyncio.get_running_loop()
        stalled = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(3)]
        stalled[1].sendall(b"\x16\x03\x01\x02\x00")
        stalled[2].sendall(b"GET / HTTP/1.1\r\n\r\n")
        for each in stalled:
            each.settimeout(0)
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(each, 100):
                    pass
            each.close()
        await door.empty()
        assert hits == {"connections.tls_timeout": 2}
        assert await door.ask() == "127.0.0.1 -"


@on_uvloop
async def test_what_is_stopped_cuts_its_handshakes(pki: Pki, tmp_path: Path) -> None:
    async with running(pki, tmp_path, tls_timeout=3600.0) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as stalled:
            stalled.settimeout(0)
            await until(lambda: len(handshakes()) == 1)
            await settle()
            assert len(door.quotas) == 2
            handshakes()[0].cancel()
            assert await asyncio.get_running_loop().sock_recv(stalled, 1) == b""


# --- the PROXY protocol ---


@pytest.mark.parametrize(("header", "address"), [(V1, "192.0.2.1"), (V2, "192.0.2.2")])
@on_uvloop
async def test_a_proxy_is_believed(pki: Pki, tmp_path: Path, header: bytes, address: str) -> None:
    async with running(pki, tmp_path, proxies=("127.0.0.1",), mtls=True) as door:
        assert await door.ask(header) == f"{address} -"


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2[:12] + b"\x20\x00\x00\x00"])
@on_uvloop
async def test_a_proxys_own_connection(pki: Pki, tmp_path: Path, header: bytes) -> None:
    async with running(pki, tmp_path, proxies=("127.0.0.0/8",)) as door:
        assert await door.ask(header) == "127.0.0.1 -"


@pytest.mark.parametrize("header", [V1, V2])
@on_uvloop
async def test_nobody_else_is(pki: Pki, tmp_path: Path, header: bytes) -> None:
    async with running(pki, tmp_path, proxies=("10.0.0.0/8",)) as door:
        await door.refused(header)


@pytest.mark.parametrize(
    "header",
    [b"", b"PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n", V2[:13] + b"\x12" + V2[14:], V1 + V1, V1 + V2],
)
@on_uvloop
async def test_a_proxy_that_says_nothing_or_nonsense_is_closed(
    pki: Pki, tmp_path: Path, header: bytes
) -> None:
    async with running(pki, tmp_path, proxies=("127.0.0.1",), tls_timeout=1.0) as door:
        await door.refused(header)
        await door.empty()


@on_uvloop
async def test_a_proxy_that_falls_silent_is_not_waited_for(
    pki: Pki, tmp_path: Path, hits: Any
) -> None:
    async with running(pki, tmp_path, proxies=("127.0.0.1",), tls_timeout=0.3) as door:
        for part in (b"", V1[:20], V2[:14], V2[:20]):
            with socket.create_connection(("127.0.0.1", door.port)) as stalled:
                stalled.sendall(part)
                stalled.settimeout(0)
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.get_running_loop().sock_recv(stalled, 1) == b""
        assert hits == {"connections.tls_timeout": 4}


@on_uvloop
async def test_limits_are_for_who_is_behind_the_proxy(pki: Pki, tmp_path: Path, hits: Any) -> None:
    async with running(pki, tmp_path, proxies=("127.0.0.1",), per_address=1) as door:
        _, one = await door.connect(V1)
        _, other = await door.connect(V2)
        await door.refused(V1)
        assert hits == {"connections.per_address": 1}
        one.close()
        other.close()


# --- mTLS ---


@on_uvloop
async def test_a_certificate_says_who_it_is(pki: Pki, tmp_path: Path) -> None:
    robot = pki.robots_ca.issue_cert("robot.example", common_name="r2d2")
    async with running(pki, tmp_path, mtls=True) as door:
        assert await door.ask(name=ROBOTS, tls=door.tls(robot)) == "127.0.0.1 mtls:r2d2"


@on_uvloop
async def test_under_another_name_none_is_asked_for(pki: Pki, tmp_path: Path) -> None:
    robot = pki.robots_ca.issue_cert("robot.example", common_name="r2d2")
    async with running(pki, tmp_path, mtls=True) as door:
        for name in ("relay.example", "127.0.0.1"):
            assert await door.ask(name=name, tls=door.tls(robot)) == "127.0.0.1 -"
            assert await door.ask(name=name) == "127.0.0.1 -"


def yesterday(ca: trustme.CA) -> trustme.LeafCert:
    return ca.issue_cert(
        "x.example", common_name="r2d2", not_after=datetime.now(UTC) - timedelta(days=1)
    )


@pytest.mark.parametrize(
    "certificate",
    [
        lambda pki: None,
        lambda pki: pki.other_ca.issue_cert("x.example", common_name="r2d2"),
        # The one that signed the server's own.
        lambda pki: pki.ca.issue_cert("x.example", common_name="r2d2"),
        lambda pki: yesterday(pki.robots_ca),
    ],
    ids=["none", "another authority's", "the server's authority's", "expired"],
)
@on_uvloop
async def test_without_a_good_certificate_there_is_no_connection(
    pki: Pki, tmp_path: Path, certificate: Callable[[Pki], trustme.LeafCert | None]
) -> None:
    async with running(pki, tmp_path, mtls=True) as door:
        await door.refused(name=ROBOTS, tls=door.tls(certificate(pki)))
        await door.empty()
        assert await door.ask() == "127.0.0.1 -"


@on_uvloop
async def test_no_session_is_taken_up_again_without_a_certificate(pki: Pki, tmp_path: Path) -> None:
    robot = pki.robots_ca.issue_cert("robot.example", common_name="r2d2")
    async with running(pki, tmp_path, mtls=True) as door:

        def twice() -> list[bool]:
            context, found = door.tls(robot), []
            session = None
            for _ in range(2):
                with (
                    socket.create_connection(("127.0.0.1", door.port), WAIT) as raw,
                    context.wrap_socket(raw, server_hostname=ROBOTS, session=session) as tls,
                ):
                    tls.sendall(LAST)
                    with tls.makefile("rb") as answer:
                        assert any(
                            line.endswith(b"mtls:r2d2") for line in iter(answer.readline, b"")
                        )
                    session = tls.session
                    found.append(bool(tls.session_reused or (session and session.has_ticket)))
            return found

        assert await asyncio.to_thread(twice) == [False, False]


@on_uvloop
async def test_the_name_comes_in_pieces(pki: Pki, tmp_path: Path) -> None:
    """TLS is not begun before the whole of ClientHello is there."""
    robot = pki.robots_ca.issue_cert("robot.example", common_name="r2d2")
    async with running(pki, tmp_path, mtls=True) as door:

        def slowly() -> bytes:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = door.tls(robot).wrap_bio(incoming, outgoing, server_hostname=ROBOTS)
            with socket.create_connection(("127.0.0.1", door.port), WAIT) as raw:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sent = False
                while True:
                    try:
                        if not sent:
                            tls.do_handshake()
                            tls.write(GET)
                            sent = True
                        answer: bytes = tls.read(1000)
                    except ssl.SSLWantReadError:
                        data = outgoing.read()
                        for start in range(0, len(data), 60):
                            raw.sendall(data[start : start + 60])
                        incoming.write(raw.recv(16384))
                    else:
                        if b"mtls" in answer:
                            return answer

        assert b"mtls:r2d2" in await asyncio.to_thread(slowly)


# What a connection tells of its client


def certified(identity: Identity | None) -> ClientConnection:
    connection = ClientConnection("192.0.2.1")
    connection.expect_certificate(lambda _: identity)
    connection.identity = identity
    return connection


def test_who_a_certificate_says_it_is() -> None:
    ada = Identity(principal=Principal("mtls", "ada"), via="mtls", expires=100.0)
    assert ClientConnection("192.0.2.1").certificate_identity(0.0) is None
    assert certified(ada).certificate_identity(0.0) == ada
    with pytest.raises(Unauthorized, match="nobody's"):
        certified(None).certificate_identity(0.0)
    # It was good when the connection began.
    with pytest.raises(Unauthorized, match="expired"):
        certified(ada).certificate_identity(100.0)
