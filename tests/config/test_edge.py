from __future__ import annotations

from pathlib import Path

import pytest

from relay.config import ConfigError, UpConfig, load
from tests.config.files import EDGE, edge, problems


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ("agents: ['http://h:1'], tls: {ca: a}", "tls is set, but the URL of an agent is http"),
        (
            "agents: ['https://h:1'], tls: {ca: a, key: b}",
            "certificate and key must be set together",
        ),
        ("agents: ['https://h']", "expected http://host:port or https://host:port"),
        ("agents: ['ftp://h:1']", "expected http://host:port or https://host:port"),
        ("agents: ['http://h:99999']", "Port out of range"),
        ("agents: ['http://u:p@h:1']", "expected only a scheme, a host and a port"),
        ("agents: ['http://h:1?x']", "expected only a scheme, a host and a port"),
        ("agents: ['http://h:1'], tls: {ca: null}", "expected text, got null"),
    ],
)
def test_mistakes_in_a_cluster(file: Path, cluster: str, problem: str) -> None:
    text = EDGE.replace("""agents: ["http://127.0.0.1:1"]""", cluster)
    with pytest.raises(ConfigError) as error:
        edge(file, text)
    (only,) = problems(error, file)
    assert problem in only
    assert only.startswith("clusters.alpha")


def test_two_ports_are_two(file: Path) -> None:
    with pytest.raises(ConfigError, match="different ports"):
        edge(file, EDGE + "https: {port: 8444}\n")
    with pytest.raises(ConfigError, match="different ports"):
        load(UpConfig, None, {"RELAY_WSS__PORT": "8443"})
    free = load(UpConfig, None, {"RELAY_WSS__PORT": "0", "RELAY_HTTPS__PORT": "0"})
    assert free.https.port == free.wss.port == 0


def test_an_audit_log_that_is_required_needs_a_file(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.required: it needs audit\.file"):
        edge(file, EDGE + "audit: {required: true}\n")
    settings = edge(file, EDGE + "audit: {required: true, file: audit.log}\n").audit
    assert (settings.required, settings.file) == (True, str(tmp_path / "audit.log"))


@pytest.mark.parametrize(
    ("lifetime", "problem"), [(1, None), (120, None), (0.9, "at least 1"), (121, "at most 120")]
)
def test_a_ticket_lives_as_long_as_agents_accept(
    file: Path, lifetime: float, problem: str | None
) -> None:
    text = f"{EDGE}ticket_lifetime: {lifetime}\n"
    if problem is None:
        assert edge(file, text).ticket_lifetime == lifetime
    else:
        with pytest.raises(ConfigError, match=f"ticket_lifetime: expected a number, {problem}"):
            edge(file, text)
