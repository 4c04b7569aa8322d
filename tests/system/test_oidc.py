"""Users who come with JWTs of a real OpenID provider, whose keys change and which goes away."""

from __future__ import annotations

import json
import secrets
import ssl
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import jwt
import pytest

from relay.auth.policy import Action
from relay.config import (
    AuthenticationSettings,
    ClaimSettings,
    ClusterSettings,
    EdgeConfig,
    JwtSettings,
    KeySettings,
    ListenSettings,
    LogSettings,
    MetricsSettings,
    PolicySettings,
    RuleSettings,
    TlsSettings,
    TokenSettings,
    load,
)
from tests import jwts
from tests.system.channels import connect
from tests.system.oidc import Provider
from tests.system.running import MANY, Answer, RunningRelay, http_request, wait_for
from tests.system.separate import Separate

pytestmark = pytest.mark.timeout(300)

WORKERS: Final = 2
COOL_DOWN: Final = 4.0
REFRESH: Final = 8.0


class Edge:
    """An edge of its own before the agents of a relay, and a client of it."""

    def __init__(self, running: Separate, tls: ssl.SSLContext) -> None:
        self.running = running
        self.tls = tls

    def ask(self, token: str, method: str = "GET", path: str = "", body: Any = None) -> Answer:
        return http_request(
            f"https://{self.running.ready['https']}",
            method,
            f"/alpha/api/kernels{path}",
            body,
            headers={"Authorization": f"Bearer {token}"},
            tls=self.tls,
        )

    def knows(self, token: str) -> bool:
        """Whether a token is accepted, by all that are asked of several workers."""
        found = {self.ask(token).status for _ in range(4 * WORKERS)}
        assert found <= {200, 401}, found
        return found == {200}

    def refuses(self, token: str) -> bool:
        """Whether none of them accepts it."""
        return {self.ask(token).status for _ in range(4 * WORKERS)} == {401}


def settings(provider: Provider, **changes: Any) -> JwtSettings:
    fields: dict[str, Any] = {
        "issuer": provider.url,
        "audiences": ["relay"],
        "algorithms": ["RS256"],
        "keys": KeySettings(
            discovery=True, ca=provider.ca, refresh=REFRESH, cool_down=COOL_DOWN, timeout=3.0
        ),
        "claims": ClaimSettings(groups="groups", scopes="scope"),
        # This provider, as many, says nothing of the time from which on a token is good.
        "required": ["iat", "jti"],
        "leeway": 1.0,
    }
    return JwtSettings(**{**fields, **changes})


@contextmanager
def edge_with(relay: RunningRelay, folder: Path, issuer: JwtSettings) -> Iterator[Edge]:
    at_work = load(EdgeConfig, relay.state / "run" / "edge.yaml", {})
    config = EdgeConfig(
        https=ListenSettings(port=0),
        wss=ListenSettings(port=0),
        tls=TlsSettings(
            certificate=str(relay.state / "pki/server.pem"), key=str(relay.state / "pki/server.key")
        ),
        workers=WORKERS,
        clusters={"alpha": ClusterSettings(agents=at_work.clusters["alpha"].agents)},
        authentication=AuthenticationSettings(
            tokens=TokenSettings(file=str(relay.state / "tokens.json")), jwt={"corp": issuer}
        ),
        policy=PolicySettings(
            rules=[
                RuleSettings(authenticator="token", actions=list(Action)),
                RuleSettings(authenticator="corp", scope="kernels", actions=[Action.LIST]),
                RuleSettings(
                    authenticator="corp", scope="kernels", group="staff", actions=list(Action)
                ),
            ]
        ),
        ticket_key=str(relay.state / "keys/ticket.key"),
        log=LogSettings(format="json"),
        metrics=MetricsSettings(port=0),
    )
    with Separate(config, folder, relay.environ) as running:
        yield Edge(running, relay.tls_for_threads)


@pytest.fixture(scope="module")
def relay() -> Iterator[RunningRelay]:
    """One in which the provider's users run kernels too, whoever came first."""
    with RunningRelay(("alpha",), ("--shared-uid",), MANY) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oidc")


@pytest.fixture(scope="module")
def provider(folder: Path) -> Iterator[Provider]:
    with Provider(folder, "one") as running:
        yield running


@pytest.fixture(scope="module")
def edge(relay: RunningRelay, provider: Provider, folder: Path) -> Iterator[Edge]:
    with edge_with(relay, folder, settings(provider)) as running:
        yield running


def test_a_user_runs_a_kernel(edge: Edge, provider: Provider) -> None:
    token = provider.token("alice")
    started = edge.ask(token, "POST", body={"name": "python3"})
    assert started.status == 201, started
    kernel = started.json["id"]
    try:
        with connect(
            f"wss://{edge.running.ready['wss']}/alpha/api/kernels/{kernel}/channels",
            headers={"Authorization": f"Bearer {token}"},
            tls=edge.tls,
            session=secrets.token_hex(16),
        ) as channels:
            assert channels.execute("print(6 * 7)").stdout == "42\n"
    finally:
        assert edge.ask(token, "DELETE", f"/{kernel}").status == 204
    principals = {line.get("principal") for line in edge.running.lines if "principal" in line}
    assert principals == {"corp:alice"}
    assert token not in edge.running.log.read_text()
    assert token.split(".")[2] not in edge.running.log.read_text()


def test_a_user_of_no_group_may_do_less(edge: Edge, provider: Provider) -> None:
    token = provider.token("bob")
    assert edge.ask(token).status == 200
    assert edge.ask(token, "POST", body={"name": "python3"}).status == 403


def test_static_tokens_are_known_beside(edge: Edge, relay: RunningRelay) -> None:
    assert edge.knows(relay.info.token)


def test_a_token_for_somebody_else_is_refused(edge: Edge, provider: Provider) -> None:
    assert edge.refuses(provider.token("alice", "urn:other"))


def test_a_token_ends(edge: Edge, provider: Provider) -> None:
    token = provider.token("alice", "urn:relay:short")
    assert edge.ask(token).status == 200
    wait_for("the token's end", lambda: edge.refuses(token))
    assert "expired" in edge.ask(token).json["message"]


def test_what_was_tampered_with_is_refused(edge: Edge, provider: Provider) -> None:
    good = provider.token("alice")
    head, payload, signature = good.split(".")
    claims = jwt.decode(good, options={"verify_signature": False})
    header = jwt.get_unverified_header(good)
    assert edge.knows(good)
    assert (header["typ"], header["kid"], claims["sub"]) == ("at+jwt", "one", "alice")
    assert "nbf" not in claims
    mallory = jwts.private_key("RS256", "mallory")
    wrong = [
        jwts.token(header, {**claims, "sub": "bob"}),
        f"{head}.{jwts.b64(json.dumps({**claims, 'groups': ['x']}).encode())}.{signature}",
        f"{head}.{payload}.{signature}==",
        f"{head}.{payload}.",
        f"{jwts.b64(json.dumps({'alg': 'none'}).encode())}.{payload}.",
        jwts.token({**header, "alg": "none"}, claims, lambda _: b"x"),
        jwts.token(
            {**header, "alg": "HS256"}, claims, jwts.hmac_signer(provider.public_pem("one"))
        ),
        jwts.token({**header, "jwk": jwts.jwk(mallory)}, claims, jwts.signer("RS256", "mallory")),
        jwts.token({**header, "jku": f"{provider.url}/mallory"}, claims),
        jwts.token({**header, "crit": ["exp"]}, claims),
        jwts.token(header, {**claims, "iss": f"{provider.url}/"}),
    ]
    for text in wrong:
        assert edge.ask(text).status == 401, text
    assert edge.knows(good)
    assert provider.asked("/mallory") == 0


def test_a_flood_of_unknown_keys_is_no_flood_at_the_provider(
    edge: Edge, provider: Provider
) -> None:
    good = provider.token("alice")
    claims = jwt.decode(good, options={"verify_signature": False})
    sign = jwts.signer("RS256", "mallory")
    flood = [jwts.token(jwts.header(kid=uuid.uuid4().hex), claims, sign) for _ in range(200)]
    before, began = provider.fetches(), time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda text: edge.ask(text).status, flood))
    assert set(statuses) == {401}
    assert edge.knows(good)
    took = time.monotonic() - began
    fetches = provider.fetches() - before
    # Each worker asks once, and again when it may.
    assert fetches <= WORKERS * (took // COOL_DOWN + 1), f"{fetches} fetches in {took:.1f} s"


def test_keys_are_rotated(edge: Edge, provider: Provider) -> None:
    old = provider.token("alice")
    assert edge.knows(old)
    provider.publish("two", "one")
    new = provider.token("alice")
    assert jwt.get_unverified_header(new)["kid"] == "two"
    wait_for("the new key", lambda: edge.knows(new))
    assert edge.knows(old)
    provider.publish("two")
    assert edge.knows(new)
    wait_for("the end of the old key", lambda: edge.refuses(old))
    assert edge.knows(new)


def test_an_outage_is_not_noticed(edge: Edge, provider: Provider) -> None:
    token = provider.token("alice")
    wait_for("its key", lambda: edge.knows(token))
    claims = jwt.decode(token, options={"verify_signature": False})
    stranger = jwts.token(jwts.header(kid="three"), claims, jwts.signer("RS256", "mallory"))
    provider.kill()
    try:
        until = time.monotonic() + REFRESH + COOL_DOWN + 2
        while time.monotonic() < until:
            assert edge.knows(token)
            assert edge.refuses(stranger)
        assert any(line["event"] == "key_fetch_failed" for line in edge.running.lines)
    finally:
        provider.start()
    assert edge.knows(token)
    provider.publish("four")
    new = provider.token("alice")
    wait_for("the new key", lambda: edge.knows(new))


def test_an_edge_without_keys_says_try_again(
    relay: RunningRelay, provider: Provider, tmp_path: Path
) -> None:
    token = provider.token("alice")
    provider.kill()
    try:
        with edge_with(relay, tmp_path, settings(provider)) as edge:
            answer = edge.ask(token)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "4")
            assert answer.json["reason"] == "Authentication unavailable"
            # Nothing that others know is held up.
            assert edge.knows(relay.info.token)
            assert edge.ask("nobody's").status == 401
            provider.start()
            wait_for("keys", lambda: edge.ask(token).status == 200)
    finally:
        provider.kill()
        provider.start()


def test_an_issuer_that_omits_nbf_is_refused_by_default(
    relay: RunningRelay, provider: Provider, tmp_path: Path
) -> None:
    with edge_with(relay, tmp_path, settings(provider, required=["nbf"])) as edge:
        answer = edge.ask(provider.token("alice"))
        assert answer.status == 401
        assert "it lacks nbf" in answer.json["message"]
