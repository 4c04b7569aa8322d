from __future__ import annotations

import time
from pathlib import Path

import pytest

from relay.auth.chain import Authenticator, Chain
from relay.auth.tokens import PREFIX, TokenStore, generate
from relay.config import AuthenticationSettings, TokenSettings
from relay.edge import authentication
from relay.edge.authentication import TokenFile
from relay.errors import Unauthorized
from relay.model import Principal

NOW = time.time()
TOKEN, RECORD = generate("alice", NOW, lifetime=60.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_bytes(TokenStore([RECORD]).dump())
    return path


def build(
    file: Path, *, chain: list[str] | None = None, aliases: dict[str, str] | None = None
) -> Chain:
    return authentication.build(
        AuthenticationSettings(
            tokens=TokenSettings(file=str(file)), chain=chain or [], aliases=aliases or {}
        )
    )


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


async def test_a_token_file_passes_on_what_it_does_not_know(file: Path) -> None:
    tokens: Authenticator = TokenFile(file)
    assert await tokens.authenticate("another's", NOW) is None


def test_the_chain_is_what_is_set_each_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[Authenticator]] = []
    monkeypatch.setattr(authentication, "Chain", lambda asked, _: made.append(list(asked)))
    build(file)
    build(file, chain=["token"])
    assert [[type(each) for each in chain] for chain in made] == [[TokenFile], [TokenFile]]


@pytest.mark.parametrize(
    "other", ["corp:alice", "token:Alice", "token:alice ", "token: alice", "token:*", "Token:alice"]
)
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
