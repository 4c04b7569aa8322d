"""Clients who come by certificate, and what stays of them when it expires."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import math
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import trustme
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.system.channels import Channels, Message, connect, of
from tests.system.running import MANY, WAIT, Answer, RunningRelay, http_request
from tests.system.wire import refusal

NAME = "localhost"
"""The name of the relay under which it asks for certificates."""
AT_ONCE = 2.0
"""Seconds until what an expired certificate opened is ended."""
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


class Robots(NamedTuple):
    """A relay, and the authority of the certificates that it believes."""

    relay: RunningRelay
    authority: trustme.CA

    def at(self, port: str = "https") -> str:
        """The relay's URL, by the name under which it asks for certificates."""
        info = self.relay.info
        parts = urlsplit(info.wss_url if port == "wss" else info.https_url)
        return f"{parts.scheme}://{NAME}:{parts.port}"

    def tls(self, expires: float | None = None) -> ssl.SSLContext:
        """As r2d2, until ``expires`` (Unix seconds)."""
        context = ssl.create_default_context(cafile=self.relay.info.ca)
        until = None if expires is None else dt.datetime.fromtimestamp(expires, dt.UTC)
        made = self.authority.issue_cert("r2.example", common_name="r2d2", not_after=until)
        made.configure_cert(context)
        return context

    def ask(self, tls: ssl.SSLContext, method: str, target: str, body: Any = None) -> Answer:
        """Ask on a new connection."""
        return http_request(self.at(), method, target, body, headers={}, tls=tls)

    def open(self, kernel: str, tls: ssl.SSLContext, port: str = "wss") -> Channels:
        url = self.at(port).replace("http", "ws", 1)
        return connect(f"{url}/alpha/api/kernels/{kernel}/channels", headers={}, tls=tls)

    @contextlib.contextmanager
    def connection(self, tls: ssl.SSLContext) -> Iterator[http.client.HTTPSConnection]:
        """One that stays open."""
        parts = urlsplit(self.at())
        made = http.client.HTTPSConnection(NAME, parts.port, timeout=WAIT, context=tls)
        with contextlib.closing(made):
            yield made


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Robots]:
    folder = tmp_path_factory.mktemp("robots")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "robots.pem")
    config = folder / "up.yaml"
    config.write_text(f"authentication: {{mtls: {{{NAME}: {{ca: robots.pem}}}}}}\n")
    with RunningRelay(("alpha",), ("--config", str(config)), MANY) as relay:
        yield Robots(relay, authority)


def asked(
    connection: http.client.HTTPConnection, target: str, headers: Mapping[str, str]
) -> Answer:
    """What is answered on this very connection."""
    connection.request("GET", target, headers=dict(headers))
    response = connection.getresponse()
    assert not response.will_close
    return Answer(response.status, response.headers, response.read())


def read_on(response: http.client.HTTPResponse, got: bytearray) -> None:
    while piece := response.read1():
        got += piece


def followed(response: http.client.HTTPResponse) -> list[dict[str, Any]]:
    """The lines of an answer that never ends, until it is broken off: it must not seem whole."""
    got = bytearray()
    with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
        read_on(response, got)
    return [json.loads(line) for line in got.split(b"\n")[:-1] if line]


def listen(channels: Channels) -> None:
    while True:
        channels.receive(AT_ONCE)


def closed(channels: Channels) -> tuple[int, str]:
    """The close code and reason; whatever comes before is passed."""
    with pytest.raises(ConnectionClosed) as ended:
        listen(channels)
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


def test_what_a_certificate_opened_ends_with_it(robots: Robots) -> None:
    lasting = robots.tls()
    kernel = str(robots.ask(lasting, "POST", "/alpha/api/kernels", {"name": "python3"}).json["id"])
    path = f"/alpha/api/kernels/{kernel}"
    expires = float(math.ceil(time.time()) + 5)
    brief = robots.tls(expires)
    with (
        robots.open(kernel, brief) as channels,
        robots.open(kernel, brief, "https") as others,
        robots.connection(brief) as idle,
        robots.connection(brief) as following,
        robots.open(kernel, lasting) as spared,
    ):
        assert asked(idle, path, {}).status == 200
        following.request("GET", f"{path}/messages?follow=true")
        with following.getresponse() as response:
            assert response.status == 200
            cell = channels.submit("import time\nfor n in range(70): print(n); time.sleep(0.1)")
            lines = followed(response)
            broken_off = time.time()
        ends = {closed(each) for each in (channels, others)}
        all_over = time.time()
        assert ends == {(4401, "the credential has expired")}
        assert expires <= broken_off
        assert all_over < expires + AT_ONCE
        # It was no pause of the kernel's that ended it.
        assert any(line["parent_header"].get("msg_id") == cell for line in lines)
        # On a connection that was made in time, no more than on a new one.
        for part, headers in (("", {}), ("/messages", {}), ("/channels", UPGRADE)):
            refusal(asked(idle, f"{path}{part}", headers), 401, "Unauthorized")
        with pytest.raises(OSError, match=r".+"):
            robots.ask(brief, "GET", path)
        with pytest.raises((OSError, WebSocketException), match=r".+"):
            robots.open(kernel, brief)
        # The kernel has noticed nothing, nor has who came with another certificate.
        seen: list[Message] = []
        while "idle" not in of(seen, cell).states:
            seen.append(spared.receive())
        assert of(seen, cell).stdout == "".join(f"{n}\n" for n in range(70))
    with robots.open(kernel, robots.tls(time.time() + 60)) as renewed:
        assert renewed.execute("print(n)").stdout == "69\n"
