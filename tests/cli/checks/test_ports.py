from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.cli.checks.conftest import Place


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_nothing_to_warn_of(place: Place, look: Any, host: str) -> None:
    url = f"http://{f'[{host}]' if ':' in host else host}:8451"
    place.edge |= {"metrics": {"host": host, "port": 9101}}
    place.edge["clusters"] = {"alpha": {"agents": [url]}}
    place.agent["listen"] = {"host": host, "port": 8451}
    place.up["https"] = {"host": host, "port": 0}
    for settings in (place.edge_config(), place.agent_config(), place.up_config()):
        assert look(settings) == []


@pytest.mark.parametrize("host", ["::", "10.1.2.3", "gpu.example"])
def test_plain_http_beyond_this_machine(place: Place, look: Any, host: str) -> None:
    url = f"http://{f'[{host}]' if ':' in host else host}:8451"
    place.edge["clusters"]["alpha"]["agents"] = [url]
    assert look(place.edge_config()) == [("warning", "clusters.alpha.agents.0")]


def test_a_listener_beyond_this_machine(place: Place, look: Any) -> None:
    place.agent["listen"]["host"] = "0.0.0.0"  # noqa: S104 - this is what is warned of
    assert look(place.agent_config()) == [("warning", "tls")]
    place.with_tls()
    assert look(place.agent_config()) == []
    place.up["wss"]["host"] = "0.0.0.0"  # noqa: S104
    assert look(place.up_config()) == [("warning", "wss.host")]


def test_metrics_beyond_this_machine(place: Place, look: Any) -> None:
    for kind in (place.edge, place.agent):
        kind["metrics"] = {"host": "0.0.0.0", "port": 9101}  # noqa: S104
    assert look(place.edge_config()) == [("warning", "metrics.host")]
    assert look(place.agent_config()) == [("warning", "metrics.host")]
    place.edge["metrics"]["port"] = None
    assert look(place.edge_config()) == []


def test_a_port_that_is_taken_may_be_taken_by_this_relay(place: Place, look: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place.edge["https"]["port"] = taken.getsockname()[1]
        assert look(place.edge_config()) == [("warning", "https.port")]


def test_a_port_for_two(place: Place, look: Any) -> None:
    place.edge |= {"metrics": {"port": 9101}, "wss": {"port": 9101}}
    assert look(place.edge_config()) == [("error", "metrics.port")]


def test_an_address_of_another_machine(place: Place, look: Any) -> None:
    place.edge["https"] = {"host": "192.0.2.1", "port": 9443}
    assert look(place.edge_config()) == [("error", "https.host")]
