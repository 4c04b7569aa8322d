from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from relay.config import ConfigError, EdgeConfig, PathTokenSettings
from tests.config.files import AUTHENTICATION, EDGE, edge, problems


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("{}", ": no authenticator is set, so nobody could be authenticated"),
        ("{tokens: null}", ": no authenticator is set, so nobody could be authenticated"),
        ("{chain: [token]}", ": no authenticator is set, so nobody could be authenticated"),
        ("{tokens: {}}", ".tokens.file: is required"),
        ("{tokens: {file: ''}}", ".tokens.file: expected text of at least 1 character"),
        ("{tokens: {file: null}}", ".tokens.file: expected text, got null"),
        ("{tokens: t.json}", ".tokens: expected a mapping of settings"),
        ("{tokens: {file: t, flie: t}}", ".tokens.flie: no such setting; did you mean file?"),
        ("{tokens: {file: t}, jwks: {}}", ".jwks: no such setting"),
        ("{tokens: {file: t}, chain: token}", ".chain: expected a list"),
        ("{tokens: {file: t}, chain: null}", ".chain: expected a list"),
        ("{tokens: {file: t}, chain: [corp]}", ".chain: corp is not set here; known are token"),
        ("{tokens: {file: t}, chain: [token, x]}", ".chain: x is not set here; known are token"),
        ("{tokens: {file: t}, chain: [tokens]}", ".chain: tokens is not set here"),
        ("{tokens: {file: t}, chain: [token, token]}", ".chain: a name appears twice"),
        ("{tokens: {file: t}, chain: [Token]}", ".chain.0: expected text that matches"),
        ("{tokens: {file: t}, chain: ['']}", ".chain.0: expected text that matches"),
        ("{tokens: {file: t}, chain: ['token:']}", ".chain.0: expected text that matches"),
        ('{tokens: {file: t}, chain: ["token\\n"]}', ".chain.0: expected text that matches"),
        ("{tokens: {file: t}, aliases: [a]}", ".aliases: expected a mapping"),
        ("{tokens: {file: t}, aliases: {a: 't:b'}}", ".aliases.a: a principal is written"),
        ("{tokens: {file: t}, aliases: {'a:b': t}}", ".aliases.a:b: a principal is written"),
        ("{tokens: {file: t}, aliases: {'a:': 't:b'}}", ".aliases.a:: a principal is written"),
        ("{tokens: {file: t}, aliases: {'a:b': ':b'}}", ".aliases.a:b: a principal is written"),
        ("{tokens: {file: t}, aliases: {'a:b': null}}", ".aliases.a:b: expected text, got null"),
        ("{tokens: {file: t}, aliases: {'a:b': [t]}}", ".aliases.a:b: expected text"),
        (
            "{tokens: {file: t}, aliases: {'token:b': 't:c', 'token:b': 't:d'}}",
            ".aliases.token:b: is set twice",
        ),
        (
            "{tokens: {file: t}, aliases: {'a:b': 't:c'}}",
            ".aliases: the authenticator of a:b is not set",
        ),
        ("{tokens: {file: t}, aliases: {'token:b': '*:c'}}", ".aliases.token:b: expected the name"),
        (
            "{tokens: {file: t}, aliases: {'token:b': 't:c '}}",
            ".aliases.token:b: expected 1 to 255 print",
        ),
    ],
)
def test_mistakes_in_who_may_come_in(file: Path, written: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        edge(file, EDGE.replace(AUTHENTICATION, f"authentication: {written}\n"))
    (only,) = problems(error, file)
    assert only.startswith(f"authentication{problem}")


def test_who_may_come_in_has_to_be_said(file: Path) -> None:
    with pytest.raises(ConfigError, match="authentication: is required"):
        edge(file, EDGE.replace(AUTHENTICATION, ""))
    with pytest.raises(ConfigError, match="tokens_file: no such setting"):
        edge(file, EDGE + "tokens_file: tokens.json\n")


def test_who_may_come_in(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    written = "{tokens: {file: t}, chain: [token], aliases: {'token:a:b': 'corp:a'}}"
    text = EDGE.replace(AUTHENTICATION, f"authentication: {written}\n")
    settings = edge(file, text).authentication
    assert settings.tokens is not None
    assert settings.tokens.file == str(tmp_path / "t")
    assert settings.chain == settings.chainable == ["token"]
    assert settings.of_principals == ["token", "corp"]
    assert settings.aliases == {"token:a:b": "corp:a"}
    moved = edge(file, text, {"RELAY_AUTHENTICATION__TOKENS__FILE": "u"}).authentication
    assert moved.tokens is not None
    assert moved.tokens.file == "/u"


def test_certificates_alone_let_people_in(file: Path, tmp_path: Path) -> None:
    written = "{mtls: {robots.example: {ca: r.pem}}, aliases: {'mtls:r2': 'corp:r2'}}"
    text = EDGE.replace(AUTHENTICATION, f"authentication: {written}\n")
    settings = edge(file, text + "policy: {rules: [{authenticator: mtls, actions: [list]}]}\n")
    known = settings.authentication
    assert known.mtls["robots.example"].ca == str(tmp_path / "r.pem")
    assert (known.chainable, known.authenticators, known.of_principals) == (
        [],
        ["mtls"],
        ["mtls", "corp"],
    )
    with pytest.raises(ConfigError, match="chain: mtls is not set here"):
        edge(file, text.replace("aliases:", "chain: [mtls], aliases:"))
    with pytest.raises(ConfigError, match="authenticator mtls is not set"):
        edge(file, EDGE + "policy: {rules: [{authenticator: mtls, actions: [list]}]}\n")


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("Robots.example", "{ca: r.pem}", "expected text that matches"),
        ("'*.example'", "{ca: r.pem}", "expected text that matches"),
        ("robots.example", "{}", "ca: is required"),
        ("robots.example", "{ca: r.pem, user_from: subject}", "user_from: 'subject' is not one of"),
        ("robots.example", "{ca: r.pem, users: {r2: ''}}", "users.r2: expected 1 to 255 printable"),
    ],
)
def test_mistakes_in_certificates(file: Path, name: str, settings: str, problem: str) -> None:
    written = f"authentication: {{mtls: {{{name}: {settings}}}}}\n"
    with pytest.raises(ConfigError) as caught:
        edge(file, EDGE.replace(AUTHENTICATION, written))
    assert [problem in each for each in problems(caught, file)] == [True]


JWT = """
issuer: "https://login.example.org"
audiences: [relay]
algorithms: [RS256]
keys: {discovery: true}
"""


def with_jwt(file: Path, changes: str, name: str = "corp", base: str = JWT) -> EdgeConfig:
    """An edge with an issuer whose settings are changed."""
    written = {**yaml.safe_load(base), **yaml.safe_load(changes)}
    settings = {"jwt": {name: {k: v for k, v in written.items() if v != "GONE"}}}
    return edge(file, EDGE.replace(AUTHENTICATION, f"authentication: {json.dumps(settings)}\n"))


def test_an_issuer_is_an_authenticator_by_its_name(file: Path) -> None:
    loaded = with_jwt(file, "{}").authentication
    assert loaded.chainable == ["corp"]
    assert loaded.jwt["corp"].required == ["nbf"]
    assert loaded.jwt["corp"].leeway == 30.0
    assert loaded.jwt["corp"].keys.keep == 7200.0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ("issuer: GONE", ".issuer: is required"),
        ("audiences: GONE", ".audiences: is required"),
        ("algorithms: GONE", ".algorithms: is required"),
        ("keys: GONE", ".keys: is required"),
        ("audiences: []", ": audiences, algorithms and types each need at least one"),
        ("algorithms: []", ": audiences, algorithms and types each need at least one"),
        ("types: []", ": audiences, algorithms and types each need at least one"),
        ("audiences: relay", ".audiences: expected a list"),
        ("audiences: ['']", ".audiences.0: expected 1 to 255 print"),
        ("algorithms: [none]", ".algorithms.0: 'none' is not one of"),
        ("algorithms: [rs256]", ".algorithms.0: 'rs256' is not one of"),
        ("algorithms: [ES256K]", ".algorithms.0: 'ES256K' is not one of"),
        ("types: [relay-ticket+jwt]", ".types.0: 'relay-ticket+jwt' is not one of"),
        ("required: [exp]", ".required.0: 'exp' is not one of"),
        ("leeway: 60.1", ".leeway: expected a number, at most 60"),
        ("leeway: -1", ".leeway: expected a number, at least 0"),
        ("algorithms: [RS256, HS256]", ".algorithms: HS cannot be combined with others"),
        ("algorithms: [HS256]", ".keys: for HS they must be in secret or in jwks_file"),
        (
            "{algorithms: [HS256], keys: {jwks_url: 'https://h/k'}}",
            ".keys: for HS they must be in secret or in jwks_file",
        ),
        (
            "{algorithms: [HS256], keys: {pem: [{file: f}]}}",
            ".keys: for HS they must be in secret or in jwks_file",
        ),
        ("keys: {secret: s}", ".keys.secret: it can be used with HS only"),
        ("keys: {}", ".keys: set exactly one of discovery"),
        ("keys: {discovery: true, jwks_file: f}", ".keys: set exactly one of discovery"),
        ("keys: {pem: [{file: f}], secret: s}", ".keys: set exactly one of discovery"),
        ("keys: {pem: [{file: a}, {file: b}]}", ".keys.pem: two keys need different kids"),
        ("keys: {jwks_url: 'http://h/k'}", ".keys: http://h/k: expected https"),
        ("keys: {jwks_url: 'http://127.0.0.1/k'}", ".keys: http://127.0.0.1/k: expected https"),
        (
            "keys: {jwks_url: 'http://10.0.0.1/k', allow_http: true}",
            ".keys: http://10.0.0.1/k: expected https",
        ),
        ("keys: {jwks_url: 'file:///etc/keys'}", ".keys.jwks_url: expected https://host/path"),
        ("keys: {jwks_url: keys.json}", ".keys.jwks_url: expected https://host/path"),
        ("keys: {jwks_url: 'https://u:p@h/k'}", ".keys.jwks_url: expected only"),
        ("keys: {discovery: true, keep: 3599}", ".keys.keep: expected a number, at least 3600"),
        ("keys: {discovery: true, cool_down: 0}", ".keys.cool_down: expected a number, over 0"),
        ("issuer: relay", ": expected https://host/path"),
        ("issuer: 'http://login.example.org'", "expected https"),
        ("claims: {user: ''}", ".claims.user: expected text that matches"),
        ("claims: {user: null}", ".claims.user: expected text, got null"),
        ("claims: {groups: 'a b'}", ".claims.groups: expected text that matches"),
    ],
)
def test_mistakes_in_an_issuer(file: Path, changes: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_jwt(file, changes)
    (only,) = problems(error, file)
    assert only.startswith("authentication.jwt.corp")
    assert problem in only


@pytest.mark.parametrize("name", ["token", "jupyterhub", "mtls"])
def test_an_issuer_has_no_other_authenticators_name(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"jwt: {name} is the name of another authenticator"):
        with_jwt(file, "{}", name)


@pytest.mark.parametrize("name", ["Corp", "a:b", "", "a.b"])
def test_an_issuers_name_is_an_authenticators(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected text that matches"):
        with_jwt(file, "{}", name)


def test_an_issuer_is_there_once(file: Path) -> None:
    one = yaml.safe_load(JWT)
    settings = {"jwt": {"corp": one, "other": {**one, "audiences": ["other"]}}}
    with pytest.raises(ConfigError, match="jwt: an issuer appears twice"):
        edge(file, EDGE.replace(AUTHENTICATION, f"authentication: {json.dumps(settings)}\n"))


def test_the_chain_follows_the_order_of_the_settings(file: Path) -> None:
    issuers = {"corp": yaml.safe_load(JWT), "other": {**yaml.safe_load(JWT), "issuer": "https://o"}}
    settings = {"tokens": {"file": "t"}, "jwt": issuers, "mtls": {"robots.example": {"ca": "r"}}}
    written = f"authentication: {json.dumps(settings)}\n"
    found = edge(file, EDGE.replace(AUTHENTICATION, written)).authentication
    assert found.chainable == ["token", "corp", "other"]
    assert found.authenticators == ["token", "corp", "other", "mtls"]


def test_path_tokens_need_the_file_of_the_tokens(file: Path) -> None:
    written = "authentication: {mtls: {robots.example: {ca: r}}, path_tokens: {}}\n"
    with pytest.raises(ConfigError, match="path_tokens: they need tokens"):
        edge(file, EDGE.replace(AUTHENTICATION, written))
    both = "authentication: {tokens: {file: t}, path_tokens: {}}\n"
    settings = edge(file, EDGE.replace(AUTHENTICATION, both)).authentication
    assert settings.path_tokens == PathTokenSettings(max_lifetime=43_200.0)
