from __future__ import annotations

from pathlib import Path

import pytest

from relay.config import ConfigError
from relay.config.admission import check_network
from tests.config.files import EDGE, edge, problems


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "proxies: {proxy_protocol: [10.0.0.1/8]}",
            "proxies.proxy_protocol.0: 10.0.0.1/8 has host",
        ),
        ("proxies: {forwarded: [localhost]}", "proxies.forwarded.0: 'localhost' does not appear"),
        ("proxies: {forwarded: 10.0.0.0/8}", "proxies.forwarded: expected a list"),
        ("proxies: {header: X-Real-IP}", "proxies.header: 'X-Real-IP' is not one of"),
        ("connections: {total: 0}", "connections.total: expected a whole number, at least 1"),
        ("connections: {head_timeout: 0}", "connections.head_timeout: expected a number, over 0"),
        ("connections: {head_timeout: null}", "connections.head_timeout: expected a number"),
        ("quotas: {user_requests: 0}", "quotas.user_requests: expected a number, over 0"),
        ("quotas: {user_sockets: null}", "quotas.user_sockets: expected a whole number, got null"),
        ("logins: {failures: -1}", "logins.failures: expected a whole number, at least 1"),
        ("logins: {tries: 1}", "logins.tries: no such setting"),
    ],
)
def test_mistakes_in_what_the_door_lets_in(file: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        edge(file, f"{EDGE}{line}\n")
    assert [each.startswith(problem) for each in problems(caught, file)] == [True]


@pytest.mark.parametrize(
    "network", ["192.0.2.1", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::1", "2001:db8::/32"]
)
def test_a_network(network: str) -> None:
    check_network(network)


@pytest.mark.parametrize(
    "network", ["", "localhost", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "2001:db8::1/32", "*"]
)
def test_what_is_no_network_is_refused(network: str) -> None:
    with pytest.raises(ValueError, match=r"does not appear|has host bits"):
        check_network(network)


def test_quotas_that_can_be_switched_off(file: Path) -> None:
    off = "{user_kernels: null, user_requests: null, cluster_sockets: null}"
    quotas = edge(file, f"{EDGE}quotas: {off}\n").quotas
    assert (quotas.user_kernels, quotas.user_requests, quotas.cluster_sockets) == (None, None, None)
    assert quotas.user_sockets == 64
