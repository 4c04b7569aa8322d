"""Who comes to a real edge by certificate, or through a proxy."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import trustme

from relay import pki
from relay.auth.policy import Action
from relay.auth.tokens import TokenStore, generate
from relay.config import (
    AuthenticationSettings,
    ClusterSettings,
    EdgeConfig,
    ListenSettings,
    MtlsSettings,
    PolicySettings,
    ProxySettings,
    RuleSettings,
    TlsSettings,
    TokenSettings,
)
from tests.system.running import WAIT, environment
from tests.system.separate import Separate

ROBOTS = "robots.example"
NAME = "relay.example"
V1 = b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 8443\r\n"


class Door(NamedTuple):
    """An edge whose agent is away: nobody needs one to be let in, or not."""

    edge: Separate
    ca: trustme.CA
    robots: trustme.CA
    tokens: dict[str, str]

    def ask(
        self,
        name: str = NAME,
        *,
        robot: str | None = None,
        token: str | None = None,
        first: bytes = V1,
        **headers: str,
    ) -> int:
        """The status of a request; OPTIONS is answered by the edge itself."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if robot is not None:
            self.robots.issue_cert("x.example", common_name=robot).configure_cert(context)
        host, _, port = self.edge.ready["https"].rpartition(":")
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"token {self.tokens[token]}"
        connection = http.client.HTTPConnection(name)
        raw = socket.create_connection((host, int(port)), WAIT)
        try:
            raw.sendall(first)
            connection.sock = raw = context.wrap_socket(raw, server_hostname=name)
            connection.request("OPTIONS", "/alpha/api", headers=sent)
            return connection.getresponse().status
        finally:
            connection.close()
            raw.close()

    def address(self) -> str:
        """Where the last request came from, says the log."""
        told = [line for line in self.edge.lines if "address" in line]
        return str(told[-1]["address"])


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    ca, robots = trustme.CA(), trustme.CA()
    ca.issue_cert(NAME, ROBOTS).private_key_and_cert_chain_pem.write_to_path(folder / "edge.pem")
    robots.cert_pem.write_to_path(folder / "robots.pem")
    (folder / "ticket.key").write_bytes(pki.new_ticket_keys().private)
    made = {user: generate(user, time.time()) for user in ("r2d2", "ada", "stranger")}
    store = TokenStore(record for _, record in made.values())
    (folder / "tokens.json").write_bytes(store.dump())
    rules = [
        RuleSettings(authenticator=name, user=user, actions=[Action.LIST])
        for name, user in (("mtls", "r2d2"), ("token", "ada"))
    ]
    settings = EdgeConfig(
        https=ListenSettings(port=0),
        wss=ListenSettings(port=0),
        tls=TlsSettings(certificate=str(folder / "edge.pem"), key=str(folder / "edge.pem")),
        workers=1,
        clusters={"alpha": ClusterSettings(agents=["http://127.0.0.1:1"])},
        authentication=AuthenticationSettings(
            tokens=TokenSettings(file=str(folder / "tokens.json")),
            mtls={ROBOTS: MtlsSettings(ca=str(folder / "robots.pem"))},
            aliases={"token:r2d2": "mtls:r2d2"},
        ),
        policy=PolicySettings(rules=rules),
        ticket_key=str(folder / "ticket.key"),
        proxies=ProxySettings(proxy_protocol=["127.0.0.1"], forwarded=["198.51.100.0/24"]),
        drain=0.1,
    )
    with Separate(settings, folder, environment(folder)) as edge:
        tokens = {user: token for user, (token, _) in made.items()}
        yield Door(edge, ca, robots, tokens)


def test_a_certificate_lets_in_whom_the_rules_name(door: Door) -> None:
    assert door.ask(ROBOTS, robot="r2d2") == 204
    assert door.ask(ROBOTS, robot="c3po") == 404
    # Nobody's, though the authority is right.
    assert door.ask(ROBOTS, robot=" ") == 401


def test_a_certificate_that_is_not_asked_for_is_none(door: Door) -> None:
    assert door.ask(NAME, robot="r2d2") == 401
    assert door.ask(NAME, token="ada") == 204
    with pytest.raises(OSError, match=r".+"):
        door.ask(ROBOTS, token="ada")


def test_a_certificate_and_a_token_that_say_different_principals(door: Door) -> None:
    assert door.ask(ROBOTS, robot="r2d2", token="ada") == 401
    assert door.ask(ROBOTS, robot="c3po", token="stranger") == 401
    # An alias makes them one.
    assert door.ask(ROBOTS, robot="r2d2", token="r2d2") == 204
    # One that nobody knows does not fall back to the certificate.
    assert door.ask(ROBOTS, robot="r2d2", Authorization="token wrong") == 401


def test_where_a_request_comes_from(door: Door) -> None:
    assert door.ask(token="stranger") == 404
    assert door.address() == "192.0.2.1"
    # Not a proxy of ours: it may say what it likes.
    assert door.ask(token="stranger", X_Forwarded_For="203.0.113.1") == 404
    assert door.address() == "192.0.2.1"
    first = V1.replace(b"192.0.2.1", b"198.51.100.9")
    chain = {"X_Forwarded_For": "127.0.0.1, 203.0.113.1, 198.51.100.8", "Forwarded": "for=::1"}
    assert door.ask(token="stranger", first=first, **chain) == 404
    assert door.address() == "203.0.113.1"


@pytest.mark.parametrize("first", [b"", b"PROXY TCP4 192.0.2.1\r\n", V1 + V1])
def test_a_proxy_must_say_for_whom(door: Door, first: bytes) -> None:
    with pytest.raises(OSError, match=r".+"):
        door.ask(token="ada", first=first)
