from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from aiohttp.test_utils import make_mocked_request

from relay.config import ProxySettings
from relay.edge.listener.acceptor import ClientConnection
from relay.edge.listener.client_address import ClientAddresses


def request(address: str = "192.0.2.1", **headers: str) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    protocol = Mock(observer=ClientConnection(address))
    return make_mocked_request("GET", "/", headers=names, protocol=protocol)


def test_a_header_helps_nobody_past_it_but_a_proxy() -> None:
    alone = ClientAddresses(ProxySettings())
    trusting = ClientAddresses(ProxySettings(forwarded=["192.0.2.1"]))
    for number in range(4):
        asked = request(X_Forwarded_For=f"198.51.100.{number}", Forwarded="for=203.0.113.1")
        assert alone.of(asked) == "192.0.2.1"
        assert trusting.of(asked) == f"198.51.100.{number}"


def test_the_header_is_the_configured_one() -> None:
    addresses = ClientAddresses(ProxySettings(forwarded=["192.0.2.1"], header="forwarded"))
    asked = request(X_Forwarded_For="198.51.100.1", Forwarded="for=203.0.113.1")
    assert addresses.of(asked) == "203.0.113.1"
