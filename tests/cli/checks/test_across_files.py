from __future__ import annotations

import time
from typing import Any

import pytest

from relay import pki
from relay.cli.checks.across_files import findings_between
from tests.cli.checks.conftest import Place


@pytest.fixture
def both(place: Place, look: Any) -> Any:
    return lambda: look(findings_between(place.edge_config(), place.agent_config()))


@pytest.mark.parametrize("tls", [False, True])
def test_two_that_fit(place: Place, both: Any, tls: bool) -> None:
    if tls:
        place.with_tls()
    assert both() == []


def test_a_cluster_that_the_edge_does_not_know(place: Place, both: Any) -> None:
    place.agent["cluster"] = "beta"
    assert both() == [("error", "cluster")]


def test_ticket_keys_that_do_not_belong_together(place: Place, both: Any) -> None:
    place.write("ticket.key", pki.new_ticket_keys().private)
    assert both() == [("error", "ticket_keys")]
    place.write("other.pub", pki.new_ticket_keys().public)
    place.agent["ticket_keys"].append("other.pub")
    assert both() == [("error", "ticket_keys")]


def test_another_port(place: Place, both: Any) -> None:
    place.agent["listen"]["port"] = 8452
    assert both() == [("warning", "listen.port")]


@pytest.mark.parametrize("side", ["edge", "agent"])
def test_tls_on_one_side_only(place: Place, both: Any, side: str) -> None:
    before = dict(place.agent)
    place.with_tls()
    if side == "edge":
        place.agent = before
    else:
        place.edge["clusters"]["alpha"] = {"agents": ["http://127.0.0.1:8451"]}
    assert both() == [("error", "tls")]


def test_certificates_of_strangers(place: Place, both: Any) -> None:
    place.with_tls()
    stranger = pki.new_authority(time.time())
    place.write_pair("agent", pki.new_server(stranger, ["localhost"], time.time()))
    assert both() == [("error", "tls.certificate")]
    place.write("other-ca.pem", stranger.public)
    place.agent["tls"]["client_ca"] = "other-ca.pem"
    assert both() == [("error", "tls.certificate"), ("error", "tls.client_ca")]
    del place.edge["clusters"]["alpha"]["tls"]["certificate"]
    del place.edge["clusters"]["alpha"]["tls"]["key"]
    assert both() == [("error", "tls.certificate"), ("error", "tls.client_ca")]


def test_sizes(place: Place, both: Any) -> None:
    place.agent |= {"body_bytes": 1024, "kernels": {"message_bytes": "64 MiB"}}
    assert both() == [("warning", "kernels.message_bytes"), ("warning", "body_bytes")]
