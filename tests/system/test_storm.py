"""A storm of slow clients: the good one must hardly notice, and nothing of them must stay."""

from __future__ import annotations

import socket
import ssl
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import NamedTuple, Self

import msgspec
import psutil
import pytest

from tests.system.running import RunningRelay, wait_for
from tests.system.test_door import bearer, channels_path, head
from tests.system.wire import HANDSHAKE

EACH = 60
"""Clients of each of the five kinds."""
LIMIT = 5.0
"""Seconds for TLS, heads and bodies here, so that the test is short."""
MARGIN = 10.0
"""Seconds beyond it, on a busy machine."""
MIB = 1024 * 1024
CONFIG = {
    "connections": {
        "per_address": 1000,
        "tls_timeout": LIMIT,
        "head_timeout": LIMIT,
        "body_timeout": LIMIT,
        "write_timeout": LIMIT,
        "idle_timeout": LIMIT,
    },
    "websocket": {"ping_interval": 1.0, "pong_timeout": LIMIT},
    "quotas": {"user_sockets": 1000, "user_requests": None},
}
GOOD = 80
"""Requests of the good client, with and without the storm."""


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    path = tmp_path_factory.mktemp("storm") / "up.yaml"
    path.write_bytes(msgspec.yaml.encode(CONFIG))
    with RunningRelay(("alpha",), ("--config", str(path))) as running:
        yield running


class Load(NamedTuple):
    """What the edge's workers take, all together."""

    memory: int
    descriptors: int


def workers(relay: RunningRelay) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in relay.info.pids.edge]


def load(relay: RunningRelay) -> Load:
    found = workers(relay)
    return Load(
        sum(each.memory_info().rss for each in found),
        sum(each.num_fds() for each in found),
    )


def good_requests(relay: RunningRelay) -> list[float]:
    """Seconds of each, its TLS handshake too. One that fails is an error."""
    took = []
    for _ in range(GOOD):
        begin = time.monotonic()
        assert relay.request("GET", "/alpha/api/kernels", timeout=20.0).status == 200
        took.append(time.monotonic() - begin)
        time.sleep(0.05)
    return took


def told(what: str, took: list[float]) -> float:
    percentiles = statistics.quantiles(took, n=100)
    print(f"{what}: p50 {percentiles[49] * 1000:.0f} ms, p99 {percentiles[98] * 1000:.0f} ms")  # noqa: T201
    return percentiles[98]


class Client(NamedTuple):
    """A connection whose TLS is in our own hands: it sends what it is told, when it is told."""

    raw: socket.socket
    tls: ssl.SSLObject
    outgoing: ssl.MemoryBIO

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.raw.sendall(self.outgoing.read())


class Slow:
    """Clients that stall, each at another point; a thread sends some of them a byte at times."""

    def __init__(self, relay: RunningRelay, kernel: str) -> None:
        self._port = int(relay.info.https_url.rpartition(":")[2])
        self._tls = ssl.create_default_context(cafile=relay.info.ca)
        self._held = ExitStack()
        self._all: list[socket.socket] = []
        self._trickling: list[Client] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._trickle)
        token = bearer(relay)
        upgrade = head(channels_path(kernel), token, HANDSHAKE)
        past = head(f"/alpha/api/kernels/{kernel}/messages", token)
        self._heads = {
            "head": b"GET /alpha/api/kernels HTTP/1.1\r\nX: ",
            "body": head("/alpha/api/kernels", token, "Content-Length: 9999", method="POST"),
            # Has its WebSocket, and neither reads nor answers from then on.
            "half-open": upgrade,
            # Asks for much, and reads nothing of it.
            "reader": past,
        }

    def __enter__(self) -> Self:
        for _ in range(EACH):
            self._open().sendall(b"\x16\x03\x01\x02\x00")
        for kind, first in self._heads.items():
            for _ in range(EACH):
                client = self._shake_hands()
                with suppress(BlockingIOError):
                    client.send(first)
                if kind in ("head", "body"):
                    self._trickling.append(client)
        self._thread.start()
        return self

    def _open(self) -> socket.socket:
        raw = self._held.enter_context(socket.create_connection(("127.0.0.1", self._port), 20.0))
        self._all.append(raw)
        return raw

    def _shake_hands(self) -> Client:
        raw, incoming, outgoing = self._open(), ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._tls.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                data = raw.recv(65536)
                assert data, "the edge hung up on a good handshake"
                incoming.write(data)
            else:
                raw.sendall(outgoing.read())
                raw.settimeout(0)
                return Client(raw, tls, outgoing)

    def _trickle(self) -> None:
        while not self._stop.wait(0.5):
            for client in self._trickling:
                with suppress(OSError):
                    client.send(b"x")

    def left(self, relay: RunningRelay) -> int:
        """How many of them the edge still has. We may not know: who does not read sees no end."""
        ours = {each.getsockname()[1] for each in self._all}
        return sum(
            bool(each.raddr) and each.raddr.port in ours
            for worker in workers(relay)
            for each in worker.net_connections("tcp")
        )

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._held.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_good_client_hardly_notices(relay: RunningRelay) -> None:
    kernel = relay.start_kernel("alpha")
    with relay.connect("alpha", kernel) as channels:
        channels.execute("for _ in range(100): print('x' * 100_000)")
    good_requests(relay)
    before = load(relay)
    calm = told("calm", good_requests(relay))
    begin = time.monotonic()
    with Slow(relay, kernel) as slow:
        print(f"{len(slow._all)} slow clients in {time.monotonic() - begin:.1f} s")  # noqa: T201
        stormy = told("storm", good_requests(relay))
        during = load(relay)
        assert len(slow._all) == 5 * EACH
        wait_for("an end of all", lambda: slow.left(relay) == 0, 4 * LIMIT + MARGIN)
        print(f"all ended after {time.monotonic() - begin:.1f} s")  # noqa: T201
    growth = during.memory - before.memory
    print(f"{growth / MIB:.1f} MiB more in all workers")  # noqa: T201
    # A machine that is busy with other things may take its time.
    assert stormy < max(20 * calm, 5.0)
    assert growth < 100 * MIB
    wait_for("descriptors as before", lambda: load(relay).descriptors <= before.descriptors + 10)
    hits = relay.metrics()
    for setting in ("tls_timeout", "head_timeout", "body_timeout", "write_timeout"):
        assert f'relay_limit_hits_total{{setting="connections.{setting}"}}' in hits
