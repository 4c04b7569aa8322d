from __future__ import annotations

from pathlib import Path

import pytest

from relay.config import ConfigError, UpConfig, load


def test_nothing_needs_to_be_configured_for_relay_up() -> None:
    settings = load(UpConfig, None, {})
    assert settings == UpConfig()
    assert (settings.https.port, settings.wss.port) == (8443, 8444)
    assert settings.clusters == ["alpha", "beta"]


@pytest.mark.parametrize(("clusters", "problem"), [("[]", "at least one"), ("[a, a]", "twice")])
def test_the_clusters_of_relay_up(clusters: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(UpConfig, None, {"RELAY_CLUSTERS": clusters})


def test_relay_up_knows_its_own_tokens_and_who_is_configured(file: Path) -> None:
    rules = "policy: {rules: [{authenticator: %s, actions: [list]}]}\n"
    besides = "authentication: {mtls: {robots.example: {ca: r.pem}}, aliases: {'mtls:r': 'hr:r'}}\n"
    for known in ("token", "mtls", "hr"):
        file.write_text(besides + rules % known)
        assert load(UpConfig, file, {}).policy
    file.write_text(besides + rules % "corp")
    with pytest.raises(ConfigError, match="corp is not set; known are token, mtls, hr"):
        load(UpConfig, file, {})


def test_relay_up_keeps_its_tokens_where_it_keeps_all(file: Path) -> None:
    file.write_text("authentication: {tokens: {file: t.json}}\n")
    with pytest.raises(ConfigError, match="tokens cannot be set"):
        load(UpConfig, file, {})
