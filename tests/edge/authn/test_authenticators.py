from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.auth.chain import Authenticator, AuthenticatorChain
from relay.auth.credentials import PresentedCredentials
from relay.auth.tokens import PREFIX, TokenRecord, TokenStore, generate
from relay.config import (
    AuthenticationSettings,
    ClaimSettings,
    JwtSettings,
    KeySettings,
    MtlsSettings,
    PathTokenSettings,
    TokenSettings,
)
from relay.edge.authn import authenticators
from relay.edge.authn.authenticators import Authenticators
from relay.edge.authn.token_file import TokenFile
from relay.errors import AuthenticatorUnavailable, Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal
from tests import jwts
from tests.virtualtime import virtual

NOW = time.time()
TOKEN, RECORD = generate("alice", NOW, lifetime=60.0)
PATH, PATH_RECORD = generate("alice", NOW, lifetime=30.0, clusters=["alpha"], path=True)
MAX = 100.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_bytes(TokenStore([RECORD]).dump())
    return path


def built(
    file: Path,
    *,
    chain: list[str] | None = None,
    aliases: dict[str, str] | None = None,
    path_tokens: bool = False,
) -> Authenticators:
    settings = AuthenticationSettings(
        tokens=TokenSettings(file=str(file)),
        path_tokens=PathTokenSettings(max_lifetime=MAX) if path_tokens else None,
        mtls={"robots.example": MtlsSettings(ca="robots.pem")},
        chain=chain or [],
        aliases=aliases or {},
    )
    return authenticators.build(settings, EdgeMetrics.local())


def build(
    file: Path, *, chain: list[str] | None = None, aliases: dict[str, str] | None = None
) -> AuthenticatorChain:
    """The chain alone."""
    return built(file, chain=chain, aliases=aliases)._chain


def write(file: Path, *records: TokenRecord) -> None:
    """As the command does: another file takes its place."""
    new = file.with_name("new")
    new.write_bytes(TokenStore(records).dump())
    new.replace(file)


@pytest.mark.parametrize("chain", [[], ["token"]])
async def test_who_has_a_token_is_known(file: Path, chain: list[str]) -> None:
    found = await build(file, chain=chain).authenticate(TOKEN, NOW)
    assert (found.principal, found.via) == (Principal("token", "alice"), "token")
    assert (found.expires, found.credential) == (RECORD.expires, RECORD.id)


@pytest.mark.parametrize(
    "credential",
    [None, "", "alice", PREFIX, TOKEN[:-1], TOKEN + " "],
    ids=["none", "empty", "a name", "a prefix", "cut", "a space too many"],
)
async def test_nobody_else_is(file: Path, credential: str | None) -> None:
    for chain in (build(file), build(file, aliases={"token:alice": "token:root"})):
        with pytest.raises(Unauthorized):
            await chain.authenticate(credential, NOW)


async def test_a_token_that_has_ended_is_no_more(file: Path) -> None:
    with pytest.raises(Unauthorized):
        await build(file).authenticate(TOKEN, NOW + 60)


async def test_without_any_token_nobody_comes_in(file: Path) -> None:
    file.write_bytes(TokenStore([]).dump())
    with pytest.raises(Unauthorized):
        await build(file).authenticate(TOKEN, NOW)


def test_the_chain_is_what_is_set_each_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[Authenticator]] = []
    monkeypatch.setattr(
        authenticators, "AuthenticatorChain", lambda asked, _: made.append(list(asked))
    )
    build(file)
    build(file, chain=["token"])
    assert [[type(each) for each in chain] for chain in made] == [[TokenFile], [TokenFile]]


@pytest.mark.parametrize("other", ["token:Alice", "token:alice ", "token: alice", "token:*"])
async def test_an_alias_is_of_exactly_one(file: Path, other: str) -> None:
    known = await build(file, aliases={"token:alice": "corp:al"}).authenticate(TOKEN, NOW)
    assert (known.principal, known.via) == (Principal("corp", "al"), "token")
    known = await build(file, aliases={other: "corp:al"}).authenticate(TOKEN, NOW)
    assert known.principal == Principal("token", "alice")


async def test_a_name_may_hold_a_colon(file: Path) -> None:
    known = await build(file, aliases={"token:alice": "corp:urn:x:al"}).authenticate(TOKEN, NOW)
    assert known.principal == Principal("corp", "urn:x:al")


@pytest.mark.parametrize("name", ["", "alice", "token:", ":alice", ":"])
def test_an_alias_of_nobody_is_refused(file: Path, name: str) -> None:
    for aliases in ({name: "token:bob"}, {"token:alice": name}):
        with pytest.raises(ValueError, match="authenticator:subject"):
            build(file, aliases=aliases)


# What cannot be used; each time the setting is named, and nothing of what the file holds.


@pytest.mark.parametrize("name", ["nothing.json", "", "tokens.json/x", "no\0name"])
def test_a_file_that_is_not_there(file: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^authentication\.tokens\.file: .") as caught:
        build(file.parent / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"tokens": [{"id": "\xff"}]}',
        b'{"tokens": [{"relay_secret": 1}]}',
        b'{"tokens": ["relay_secret"]}',
        b'{"tokens": [], "relay_secret": 1}',
        b"relay_secret",
        b"[" * 100_000,
        b'{"tokens": ' + b"[" * 100_000,
        TokenStore([RECORD]).dump()[:-3],
        TokenStore([RECORD]).dump().replace(b"alice", b"ali\\nce"),
        TokenStore([RECORD]).dump().replace(RECORD.hash.encode(), b"relay_secret"),
    ],
)
def test_a_damaged_file(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"^authentication\.tokens\.file: .") as caught:
        build(file)
    assert RECORD.hash not in str(caught.value)
    assert "\n" not in str(caught.value)


@virtual
async def test_a_token_file_is_looked_at_again_and_again(file: Path) -> None:
    settings = AuthenticationSettings(tokens=TokenSettings(file=str(file), look_interval=0.5))
    known = authenticators.build(settings, EdgeMetrics.local())
    changes: list[float] = []
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(known.watch(lambda: changes.append(loop.time())))
        await asyncio.sleep(3.2)
        assert changes == []
        write(file)
        await asyncio.sleep(3)
        assert changes == [3.5]
        watching.cancel()


# Path tokens


async def test_a_path_token_is_known_where_it_stands_in_the_path(file: Path) -> None:
    write(file, RECORD, PATH_RECORD)
    found = await built(file, path_tokens=True).identify(PresentedCredentials(None, PATH), NOW)
    assert found.principal == Principal("token", "alice")
    assert (found.clusters, found.credential) == (frozenset({"alpha"}), PATH_RECORD.id)


@pytest.mark.parametrize(
    "shown",
    [
        PresentedCredentials(PATH),
        PresentedCredentials(None, TOKEN),
        PresentedCredentials(TOKEN, TOKEN),
        PresentedCredentials(PATH, PATH),
        PresentedCredentials(PATH, TOKEN),
        PresentedCredentials(None, ""),
        PresentedCredentials(None, PATH.upper()),
        PresentedCredentials(None, PATH[:-1]),
        PresentedCredentials(None, PATH_RECORD.hash),
        PresentedCredentials("relay_wrong", PATH),
        PresentedCredentials(TOKEN, PATH[::-1]),
        PresentedCredentials(None, None),
    ],
)
async def test_neither_kind_passes_for_the_other(file: Path, shown: PresentedCredentials) -> None:
    write(file, RECORD, PATH_RECORD)
    with pytest.raises(Unauthorized):
        await built(file, path_tokens=True).identify(shown, NOW)


async def test_path_tokens_are_off_by_default(file: Path) -> None:
    write(file, PATH_RECORD)
    known = built(file)
    assert not known.path_tokens
    with pytest.raises(Unauthorized):
        await known.identify(PresentedCredentials(None, PATH), NOW)


async def test_a_path_token_beside_somebody_elses_token(file: Path) -> None:
    bobs, record = generate("bob", NOW)
    write(file, RECORD, PATH_RECORD, record)
    for aliases in ({}, {"token:alice": "corp:alice"}):
        known = built(file, path_tokens=True, aliases=aliases)
        with pytest.raises(Unauthorized, match="disagree"):
            await known.identify(PresentedCredentials(bobs, PATH), NOW)


async def test_beside_ones_own_token_it_is_good_for_as_long_as_both_are(file: Path) -> None:
    short, record = generate("alice", NOW, lifetime=10.0)
    write(file, RECORD, PATH_RECORD, record)
    known = built(file, path_tokens=True, aliases={"token:alice": "corp:alice"})
    found = await known.identify(PresentedCredentials(TOKEN, PATH), NOW)
    assert (found.expires, found.credential) == (NOW + 30, PATH_RECORD.id)
    assert found.principal == Principal("corp", "alice")
    assert (await known.identify(PresentedCredentials(short, PATH), NOW)).expires == NOW + 10
    with pytest.raises(Unauthorized):
        await known.identify(PresentedCredentials(short, PATH), NOW + 10)


# Certificates

ROBOT = Identity(
    principal=Principal("mtls", "r2"), via="mtls", expires=NOW + 20, credential="certificate 1f"
)


async def test_a_certificate_is_enough_until_it_expires(file: Path) -> None:
    known = built(file, aliases={"mtls:r2": "corp:r2"})
    found = await known.identify(PresentedCredentials(None, None, ROBOT), NOW)
    assert (found.principal, found.via) == (Principal("corp", "r2"), "mtls")
    assert (found.expires, found.credential) == (NOW + 20, "certificate 1f")
    # As what is open is judged again.
    with pytest.raises(Unauthorized, match="certificate has expired"):
        await known.identify(PresentedCredentials(None, None, ROBOT), NOW + 20)


@pytest.mark.parametrize(
    ("shown", "expires", "credential"),
    [
        (PresentedCredentials(TOKEN, None, ROBOT), NOW + 20, RECORD.id),
        (PresentedCredentials(None, PATH, ROBOT), NOW + 20, PATH_RECORD.id),
        (PresentedCredentials(TOKEN, PATH, ROBOT), NOW + 20, PATH_RECORD.id),
    ],
    ids=["token", "path", "both"],
)
async def test_beside_a_token_the_token_says_what_may_be_done(
    file: Path, shown: PresentedCredentials, expires: float, credential: str
) -> None:
    write(file, RECORD, PATH_RECORD)
    known = built(file, path_tokens=True, aliases={"mtls:r2": "token:alice"})
    found = await known.identify(shown, NOW)
    assert (found.principal, found.via) == (Principal("token", "alice"), "token")
    assert (found.expires, found.credential) == (expires, credential)
    with pytest.raises(Unauthorized):
        await known.identify(shown, NOW + 20)


@pytest.mark.parametrize(
    "shown",
    [
        PresentedCredentials(TOKEN, None, ROBOT),
        PresentedCredentials(None, PATH, ROBOT),
        PresentedCredentials(TOKEN, PATH, ROBOT),
        PresentedCredentials("relay_wrong", None, ROBOT),
        PresentedCredentials(None, PATH[::-1], ROBOT),
    ],
)
async def test_a_certificate_beside_somebody_elses_token_or_a_wrong_one(
    file: Path, shown: PresentedCredentials
) -> None:
    write(file, RECORD, PATH_RECORD)
    with pytest.raises(Unauthorized):
        await built(file, path_tokens=True).identify(shown, NOW)


@pytest.mark.parametrize(("lifetime", "taken"), [(MAX, True), (MAX + 1, False)])
async def test_one_that_was_made_for_too_long_is_none(
    file: Path, lifetime: float, taken: bool
) -> None:
    token, record = generate("alice", 1000.0, lifetime=lifetime, path=True)
    write(file, record)
    identify = built(file, path_tokens=True).identify
    if taken:
        assert (
            await identify(PresentedCredentials(None, token), 1000.0)
        ).expires == 1000.0 + lifetime
    else:
        with pytest.raises(Unauthorized):
            await identify(PresentedCredentials(None, token), 1000.0)


# JWTs

CORP = JwtSettings(
    issuer=jwts.ISSUER, audiences=["relay"], algorithms=["RS256"], keys=KeySettings(jwks_file="k")
)


def with_keys(file: Path, *keys: dict[str, Any], **changes: Any) -> Authenticators:
    """The tokens of a file, then those of an issuer whose keys are in one."""
    path = file.parent / "keys.json"
    path.write_bytes(jwts.jwk_set(*keys))
    settings: dict[str, Any] = {"keys": KeySettings(jwks_file=str(path)), **changes}
    corp = msgspec.structs.replace(CORP, **settings)
    both = AuthenticationSettings(tokens=TokenSettings(file=str(file)), jwt={"corp": corp})
    return authenticators.build(both, EdgeMetrics.local())


RSA = jwts.jwk(jwts.private_key("RS256"), kid="one")


async def test_an_issuers_token_is_known_beside_static_ones(file: Path) -> None:
    claims = ClaimSettings(user="email", groups="realm.roles", scopes="scp")
    text = jwts.token(
        jwts.header(typ="at+jwt"),
        jwts.claims(email="al@example.org", realm={"roles": ["staff"]}, scp="a b"),
    )
    async with with_keys(file, RSA, claims=claims, leeway=7.0) as chain:
        assert await chain.identify(PresentedCredentials(text, None), jwts.NOW) == Identity(
            principal=Principal("corp", "al@example.org"),
            via="corp",
            groups=frozenset({"staff"}),
            scopes=frozenset({"a", "b"}),
            expires=jwts.NOW + 307,
            credential="jwt:j-1",
        )
        assert (
            await chain.identify(PresentedCredentials(TOKEN, None), NOW)
        ).principal == Principal("token", "alice")


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        ({"aud": "other"}, {}),
        ({"exp": jwts.NOW - 60}, {}),
        ({"nbf": ...}, {}),
        ({"jti": ...}, {"required": ["jti"]}),
        ({"iss": "https://other.example.org"}, {}),
        ({}, {"audiences": ["other"]}),
        ({}, {"algorithms": ["RS512"]}),
        ({}, {"types": ["at+jwt"]}),
        ({}, {"claims": ClaimSettings(user="email")}),
        ({}, {"claims": ClaimSettings(scopes="scope")}),
    ],
)
async def test_what_is_configured_is_what_is_checked(
    file: Path, change: dict[str, Any], changes: dict[str, Any]
) -> None:
    good = jwts.token(jwts.header(), jwts.claims())
    async with with_keys(file, RSA) as chain:
        assert (await chain.identify(PresentedCredentials(good, None), jwts.NOW)).via == "corp"
    async with with_keys(file, RSA, **changes) as chain:
        with pytest.raises(Unauthorized):
            await chain.identify(
                PresentedCredentials(jwts.token(jwts.header(), jwts.claims(**change)), None),
                jwts.NOW,
            )


async def test_a_wrong_token_of_an_issuer_is_shown_to_nobody_else(file: Path) -> None:
    class Spy:
        async def authenticate(self, credential: str, now: float, /) -> Identity | None:
            raise AssertionError(credential)

    corp = with_keys(file, RSA)._contexts[0]
    wrong = jwts.token(jwts.header(), jwts.claims(), lambda _: b"x")
    with pytest.raises(Unauthorized, match="its signature is wrong"):
        await AuthenticatorChain([corp, Spy()]).authenticate(wrong, jwts.NOW)
    with pytest.raises(AssertionError):
        await AuthenticatorChain([corp, Spy()]).authenticate("somebody else's", jwts.NOW)


def test_a_key_that_cannot_be_used_is_named_with_its_setting(file: Path) -> None:
    weak = {**RSA, "n": jwts.b64(b"\xff" * 128), "kid": "weak"}
    with pytest.raises(
        ValueError,
        match=r"^authentication\.jwt\.corp\.keys: jwks_file: key 1 \('weak'\): it has 1024",
    ):
        with_keys(file, RSA, weak)
    with pytest.raises(ValueError, match=r"^authentication\.jwt\.corp\.keys: .*nowhere"):
        authenticators.build(
            AuthenticationSettings(jwt={"corp": jwt_with(KeySettings(secret="nowhere"))}),
            EdgeMetrics.local(),
        )
    published = KeySettings(jwks_url="https://login.example.org/keys", ca=str(file))
    settings = AuthenticationSettings(jwt={"corp": msgspec.structs.replace(CORP, keys=published)})
    with pytest.raises(ValueError, match=r"^authentication\.jwt\.corp\.keys: "):
        authenticators.build(settings, EdgeMetrics.local())


def jwt_with(keys: KeySettings) -> JwtSettings:
    return msgspec.structs.replace(CORP, algorithms=["HS256"], keys=keys)


async def test_an_authenticator_is_started_and_ended_with_the_others(file: Path) -> None:
    ended: list[str] = []

    class Context:
        def __init__(self, name: str, error: Exception | None = None) -> None:
            self.name, self.error = name, error

        async def __aenter__(self) -> None:
            if self.error is not None:
                raise self.error

        async def __aexit__(self, *_: object) -> None:
            ended.append(self.name)

        async def authenticate(self, credential: str, now: float, /) -> Identity | None:
            return None

    tokens = TokenFile(TokenSettings(file=str(file)), EdgeMetrics.local())
    async with Authenticators(
        AuthenticatorChain([]), None, [Context("one"), tokens, Context("two")]
    ):
        assert ended == []
    assert ended == ["two", "one"]
    broken = Authenticators(
        AuthenticatorChain([]), None, [Context("three"), Context("four", OSError("no"))]
    )
    with pytest.raises(OSError, match="no"):
        await broken.__aenter__()
    assert ended == ["two", "one", "three"]


async def test_keys_are_fetched_while_it_is_open(file: Path) -> None:
    unreachable = KeySettings(jwks_url="http://127.0.0.1:1/keys", allow_http=True)
    settings = msgspec.structs.replace(CORP, keys=unreachable)
    both = AuthenticationSettings(tokens=TokenSettings(file=str(file)), jwt={"corp": settings})
    async with authenticators.build(both, EdgeMetrics.local()) as chain:
        with pytest.raises(AuthenticatorUnavailable):
            await chain.identify(
                PresentedCredentials(jwts.token(jwts.header(), jwts.claims()), None), jwts.NOW
            )
        assert (await chain.identify(PresentedCredentials(TOKEN, None), NOW)).via == "token"
        assert len(asyncio.all_tasks()) == 2
    assert len(asyncio.all_tasks()) == 1
