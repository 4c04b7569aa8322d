from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.config import ClaimSettings, JwtSettings, KeySettings, PemSettings
from relay.edge.authn.jwt import Jwt
from relay.errors import AuthenticatorUnavailable, Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal
from tests import jwts

RSA = jwts.jwk(jwts.private_key("RS256"), kid="one")
GOOD = jwts.token(jwts.header(), jwts.claims())
CORP = JwtSettings(
    issuer=jwts.ISSUER, audiences=["relay"], algorithms=["RS256"], keys=KeySettings(jwks_file="k")
)


@pytest.fixture
def keys(tmp_path: Path) -> KeySettings:
    file = tmp_path / "keys.json"
    file.write_bytes(jwts.jwk_set(RSA))
    return KeySettings(jwks_file=str(file))


def corp(keys: KeySettings, **changes: Any) -> Jwt:
    settings = msgspec.structs.replace(CORP, keys=keys, **changes)
    return Jwt("corp", settings, EdgeMetrics.local())


async def test_a_token_of_the_issuer_names_its_user(keys: KeySettings) -> None:
    claims = ClaimSettings(user="email", groups="realm.roles", scopes="scp")
    text = jwts.token(
        jwts.header(),
        jwts.claims(email="al@example.org", realm={"roles": ["staff"]}, scp="a b"),
    )
    assert await corp(keys, claims=claims).authenticate(text, jwts.NOW) == Identity(
        principal=Principal("corp", "al@example.org"),
        via="corp",
        groups=frozenset({"staff"}),
        scopes=frozenset({"a", "b"}),
        expires=jwts.NOW + 330,
        credential="jwt:j-1",
    )


@pytest.mark.parametrize(
    "credential",
    ["", "relay_token", "a.b.c", jwts.token(jwts.header(), jwts.claims(iss="https://other"))],
)
async def test_what_is_no_token_of_the_issuer_is_for_others_to_judge(
    keys: KeySettings, credential: str
) -> None:
    assert await corp(keys).authenticate(credential, jwts.NOW) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (jwts.token(jwts.header(), jwts.claims(), lambda _: b"x"), "signature"),
        (jwts.token(jwts.header(kid="two"), jwts.claims()), "key"),
        (jwts.token(jwts.header(), jwts.claims(aud="other")), "audience|aud"),
        (jwts.token(jwts.header(), jwts.claims(jwts.NOW - 1000)), "expired"),
    ],
)
async def test_a_wrong_token_of_the_issuer_is_refused(
    keys: KeySettings, text: str, reason: str
) -> None:
    with pytest.raises(Unauthorized, match=reason):
        await corp(keys).authenticate(text, jwts.NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"audiences": ["other"]},
        {"algorithms": ["RS512"]},
        {"types": ["at+jwt"]},
        {"claims": ClaimSettings(user="email")},
        {"claims": ClaimSettings(scopes="scope")},
    ],
)
async def test_each_setting_is_checked(keys: KeySettings, changes: dict[str, Any]) -> None:
    assert await corp(keys).authenticate(GOOD, jwts.NOW) is not None
    with pytest.raises(Unauthorized):
        await corp(keys, **changes).authenticate(GOOD, jwts.NOW)


async def test_a_required_claim_that_is_missing_is_refused(keys: KeySettings) -> None:
    text = jwts.token(jwts.header(), jwts.claims(jti=...))
    assert await corp(keys).authenticate(text, jwts.NOW) is not None
    with pytest.raises(Unauthorized):
        await corp(keys, required=["jti"]).authenticate(text, jwts.NOW)


async def test_the_leeway_bounds_the_difference_between_clocks(keys: KeySettings) -> None:
    late = jwts.NOW + 300 + 7
    assert await corp(keys, leeway=8.0).authenticate(GOOD, late) is not None
    with pytest.raises(Unauthorized):
        await corp(keys, leeway=7.0).authenticate(GOOD, late)


async def test_the_type_of_a_token_is_compared_without_case(keys: KeySettings) -> None:
    text = jwts.token(jwts.header(typ="jwt"), jwts.claims())
    assert await corp(keys, types=["JWT"]).authenticate(text, jwts.NOW) is not None


@pytest.mark.parametrize(
    "settings",
    [
        KeySettings(jwks_file="/nowhere/keys.json"),
        KeySettings(pem=[PemSettings(file="/nowhere/key.pem")]),
        KeySettings(secret="/nowhere/secret"),
    ],
)
def test_a_key_that_cannot_be_read_is_an_error_at_once(settings: KeySettings) -> None:
    algorithms = ["HS256"] if settings.secret else ["RS256"]
    with pytest.raises((OSError, ValueError), match="nowhere"):
        corp(settings, algorithms=algorithms)


async def test_published_keys_are_fetched_while_the_context_is_open() -> None:
    published = KeySettings(jwks_url="http://127.0.0.1:1/keys", allow_http=True)
    before = asyncio.all_tasks()
    async with corp(published) as authenticator:
        assert len(asyncio.all_tasks() - before) == 1
        with pytest.raises(AuthenticatorUnavailable):
            await authenticator.authenticate(GOOD, jwts.NOW)
        # A token of another issuer needs no key of this one.
        assert await authenticator.authenticate("relay_token", jwts.NOW) is None
    assert asyncio.all_tasks() == before


async def test_keys_of_files_need_no_task(keys: KeySettings) -> None:
    before = asyncio.all_tasks()
    async with corp(keys) as authenticator:
        assert asyncio.all_tasks() == before
        assert await authenticator.authenticate(GOOD, jwts.NOW) is not None
