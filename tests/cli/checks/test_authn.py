from __future__ import annotations

from typing import Any

import pytest

from tests.cli.checks.conftest import Place

ISSUER = {
    "issuer": "https://login.example",
    "audiences": ["relay"],
    "algorithms": ["RS256"],
    "keys": {"jwks_url": "https://login.example/keys"},
}


@pytest.mark.parametrize("name", ["proxy_protocol", "forwarded"])
@pytest.mark.parametrize("wide", ["0.0.0.0/0", "::/0", "128.0.0.0/1", "2000::/3"])
def test_proxies_that_anybody_may_be(place: Place, look: Any, name: str, wide: str) -> None:
    for kind in (place.edge, place.up):
        kind["proxies"] = {name: ["10.0.0.0/8", wide]}
    expected = [("warning", f"proxies.{name}.1")]
    assert look(place.edge_config()) == look(place.up_config()) == expected


def test_proxies_of_ones_own(place: Place, look: Any) -> None:
    own = ["10.0.0.0/8", "192.0.2.1", "fd00::/16", "2001:db8::1"]
    place.edge["proxies"] = {"proxy_protocol": own, "forwarded": own}
    assert look(place.edge_config()) == []


@pytest.mark.parametrize(
    ("ca", "found"), [("ca.pem", False), ("none.pem", True), ("ticket.key", True)]
)
def test_authorities_of_clients(place: Place, look: Any, ca: str, found: bool) -> None:
    mtls = {"robots.example": {"ca": ca}}
    place.edge["authentication"]["mtls"] = mtls
    place.up["authentication"] = {"mtls": mtls}
    expected = [("error", "authentication.mtls.robots.example.ca")] if found else []
    assert look(place.edge_config()) == look(place.up_config()) == expected


def test_tokens_in_paths(place: Place, look: Any) -> None:
    place.edge["authentication"]["path_tokens"] = {}
    place.up["path_tokens"] = {}
    assert look(place.edge_config()) == [("warning", "authentication.path_tokens")]
    assert look(place.up_config()) == [("warning", "path_tokens")]


@pytest.mark.parametrize("allowed", [True, False])
def test_keys_over_plain_http(place: Place, look: Any, allowed: bool) -> None:
    issuer = {**ISSUER, "keys": {**ISSUER["keys"], "allow_http": allowed}}  # type: ignore[dict-item]
    place.edge["authentication"]["jwt"] = {"corp": issuer}
    place.up["authentication"] = {"jwt": {"corp": issuer}}
    expected = [("warning", "authentication.jwt.corp.keys.allow_http")] if allowed else []
    assert look(place.edge_config()) == look(place.up_config()) == expected


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://hub:8081/hub/api", True),
        ("http://192.0.2.1:8081/hub/api", True),
        ("http://127.0.0.1:8081/hub/api", False),
        ("http://[::1]:8081/hub/api", False),
        ("https://hub:8081/hub/api", False),
    ],
)
def test_a_hub_over_plain_http(place: Place, look: Any, url: str, found: bool) -> None:
    place.up["authentication"] = {"jupyterhub": {"api_url": url, "service_name": "relay"}}
    expected = [("warning", "authentication.jupyterhub.api_url")] if found else []
    assert look(place.up_config()) == expected
