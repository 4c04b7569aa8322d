"""An agent that writes down, byte for byte, all that an edge sends it, and always agrees."""

from __future__ import annotations

import contextlib
import re
import shutil
import socketserver
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from relay import pki
from relay.auth.tokens import TokenStore, generate
from relay.config import ClusterSettings, EdgeConfig, EdgeLimits, ListenSettings, TlsSettings
from relay.files import write_atomic
from tests.system.running import environment
from tests.system.separate import Separate, admitting

_LINE: Final = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[!-~]*) HTTP/1\.1")
_FIELD: Final = re.compile(rb"([A-Za-z-]+): ([ -~]*)")
_ANSWER: Final = b'{"answer": true}'


class Seen(NamedTuple):
    """One request as the agent read it, strictly."""

    method: str
    target: str
    headers: dict[str, str]
    """By lower-case name; none came twice."""
    body: bytes


class Recorder(socketserver.ThreadingTCPServer):
    """Every request that came, and what was no request at all."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.seen: list[Seen] = []
        self.strange: list[bytes] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def take(self) -> list[Seen]:
        """What came since the last time, once it is sure that all of it was a request."""
        assert self.strange == []
        seen, self.seen = self.seen, []
        return seen


class _Connection(socketserver.StreamRequestHandler):
    """Takes of HTTP only what an edge is to send: one form of everything."""

    server: Recorder

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := self.rfile.readline():
                seen = self._read(line)
                if seen is None:
                    self.server.strange.append(line)
                    return
                self.server.seen.append(seen)
                body = b"" if seen.method == "HEAD" else _ANSWER
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                self.wfile.write(head + b"Content-Length: %d\r\n\r\n" % len(_ANSWER) + body)

    def _read(self, line: bytes) -> Seen | None:
        asked = _LINE.fullmatch(line.removesuffix(b"\r\n"))
        if asked is None:
            return None
        headers: dict[str, str] = {}
        while (line := self.rfile.readline()) != b"\r\n":
            field = _FIELD.fullmatch(line.removesuffix(b"\r\n"))
            if field is None or field[1].decode().lower() in headers:
                return None
            headers[field[1].decode().lower()] = field[2].decode()
        if "transfer-encoding" in headers:
            return None
        body = self.rfile.read(int(headers.get("content-length", 0)))
        return Seen(asked[1].decode(), asked[2].decode(), headers, body)


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """One that listens."""
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Watched(NamedTuple):
    """An edge whose only cluster is alpha."""

    url: str
    wss: str
    tls: ssl.SSLContext
    token: str
    agent: Recorder
    edge: Separate


@contextlib.contextmanager
def watched(
    port: int = 0, limits: EdgeLimits | None = None, origins: Sequence[str] = ()
) -> Iterator[Watched]:
    """An edge before an agent that listens at ``port``; 0: before a recorder."""
    folder = Path(tempfile.mkdtemp(prefix="watched-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        agent = stack.enter_context(recording())
        token, record = generate("ada", time.time())
        authority = pki.new_authority(time.time())
        server = pki.new_server(authority, ["127.0.0.1", "localhost"], time.time())
        files = {
            "ca.pem": authority.public,
            "edge.pem": server.public,
            "edge.key": server.private,
            "ticket.key": pki.new_ticket_keys().private,
            "tokens.json": TokenStore([record]).dump(),
        }
        for name, content in files.items():
            write_atomic(folder / name, content)
        settings = EdgeConfig(
            https=ListenSettings(port=0),
            wss=ListenSettings(port=0),
            tls=TlsSettings(certificate=str(folder / "edge.pem"), key=str(folder / "edge.key")),
            workers=1,
            clusters={"alpha": ClusterSettings(agents=[f"http://127.0.0.1:{port or agent.port}"])},
            **admitting(folder / "tokens.json"),
            ticket_key=str(folder / "ticket.key"),
            limits=limits or EdgeLimits(),
            origins=list(origins),
        )
        edge = stack.enter_context(Separate(settings, folder, environment(folder)))
        ready, tls = edge.ready, ssl.create_default_context(cafile=folder / "ca.pem")
        urls = f"https://{ready['https']}", f"https://{ready['wss']}"
        yield Watched(*urls, tls, token, agent, edge)


@pytest.fixture(scope="module")
def edge() -> Iterator[Watched]:
    """For a whole file of tests."""
    with watched() as running:
        yield running
