from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import inspect

from relay.config import AgentConfig, EdgeConfig, UpConfig
from tests.cli.checks.conftest import Place

SECRET = json.dumps({"keys": [{"kty": "oct", "k": "A" * 43}]}).encode()
PUBLIC = json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}]}).encode()
HS = {"issuer": "corp", "audiences": ["relay"], "algorithms": ["HS256"]}
HUB = {"api_url": "http://127.0.0.1:8081/hub/api", "service_name": "relay"}
AUTHENTICATION: dict[str, dict[str, Any]] = {
    "jwt.corp.keys.secret": {"jwt": {"corp": {**HS, "keys": {"secret": "x"}}}},
    "jwt.corp.keys.jwks_file": {"jwt": {"corp": {**HS, "keys": {"jwks_file": "x"}}}},
    "jupyterhub.api_token_file": {"jupyterhub": {**HUB, "api_token_file": "x"}},
}
"""Settings of the edge and of `relay up` that name the file "x"."""


def settings_of(place: Place, found: dict[str, Any]) -> list[EdgeConfig | UpConfig]:
    place.edge["authentication"] |= found
    place.up["authentication"] = found
    return [place.edge_config(), place.up_config()]


@pytest.mark.parametrize("setting", AUTHENTICATION)
@pytest.mark.parametrize(
    ("mode", "warnings"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o660, 1), (0o666, 2)]
)
def test_secrets_of_authenticators(
    place: Place, look: Any, setting: str, mode: int, warnings: int
) -> None:
    place.write("x", SECRET).chmod(mode)
    for settings in settings_of(place, AUTHENTICATION[setting]):
        assert look(settings) == [("warning", f"authentication.{setting}")] * warnings


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (PUBLIC, []),
        (json.dumps({"keys": [{"kty": "OKP", "d": "A" * 43}]}).encode(), ["warning"]),
        (SECRET.replace(b'"keys"', b'"issuer": "x", "keys"'), ["warning"]),
        *((text, []) for text in (b"", b"{", b"[]", b'{"keys": 1}', b'{"keys": [1]}', b"\xff")),
        (b"[" * 100_000, []),
    ],
)
def test_a_jwk_set_is_a_secret_if_one_is_in_it(
    place: Place, look: Any, content: bytes, found: list[str]
) -> None:
    place.write("x", content).chmod(0o644)
    place.up["authentication"] = AUTHENTICATION["jwt.corp.keys.jwks_file"]
    assert [severity for severity, _ in look(place.up_config())] == found


def test_keys_of_agents_and_for_them(place: Place, look: Any) -> None:
    place.with_tls()
    for name in ("edge.key", "agent.key"):
        (place.folder / name).chmod(0o644)
    edge = [("warning", "clusters.alpha.tls.key"), ("warning", "tls.key")]
    assert sorted(look(place.edge_config())) == edge
    assert look(place.agent_config()) == [("warning", "tls.key")]


def test_a_log_that_others_read(place: Place, look: Any) -> None:
    place.write("audit.log", b"").chmod(0o644)
    for kind in (place.edge, place.up):
        kind["audit"] = {"file": "audit.log"}
    assert look(place.edge_config()) == look(place.up_config()) == [("warning", "audit.file")]


def test_the_tokens_of_relay_up(place: Place, look: Any) -> None:
    place.write("state/tokens.json", (place.folder / "tokens.json").read_bytes()).chmod(0o644)
    assert look(place.up_config()) == [("warning", "state_dir")]


def named(kind: inspect.Type, name: str = "") -> Iterator[tuple[str, bool]]:
    """Every setting of a file or folder, and whether its type says that it is a secret."""
    if isinstance(kind, inspect.Metadata):
        extra = kind.extra or {}
        if "path" in extra:
            yield name, "secret" in extra
        yield from named(kind.type, name)
    elif isinstance(kind, inspect.StructType):
        for each in kind.fields:
            yield from named(each.type, f"{kind.cls.__name__}.{each.name}")
    elif isinstance(kind, inspect.UnionType):
        for inner in kind.types:
            yield from named(inner, name)
    elif isinstance(kind, inspect.DictType | inspect.ListType):
        yield from named(
            kind.value_type if isinstance(kind, inspect.DictType) else kind.item_type, name
        )


OPEN = {
    *("AgentConfig.root_dir", "AgentConfig.runtime_dir", "AgentConfig.state_dir"),
    *("UpConfig.root_dir", "UpConfig.state_dir", "AgentConfig.ticket_keys", "PemSettings.file"),
    *("AgentTls.certificate", "TlsSettings.certificate", "UpstreamTls.certificate"),
    *("AgentTls.client_ca", "JupyterHubSettings.ca", "KeySettings.ca", "MtlsSettings.ca"),
    "UpstreamTls.ca",
}
"""Settings of folders, certificates and public keys."""


def test_every_file_is_a_secret_or_known_to_be_none() -> None:
    kinds = (EdgeConfig, AgentConfig, UpConfig)
    found = dict(each for kind in kinds for each in named(inspect.type_info(kind)))
    assert {name for name, secret in found.items() if not secret} == OPEN
    assert found.keys() > OPEN
