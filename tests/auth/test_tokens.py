from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import secrets
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.tokens import PREFIX, TokenRecord, TokenStore, generate, is_path_token
from relay.model import Identity, Principal

NOW = 1_800_000_000.0
DIGEST = hashlib.sha256(b"relay_known").hexdigest()


def record(**changes: Any) -> dict[str, Any]:
    good = {"id": "1", "hash": DIGEST, "user": "alice", "created": NOW, "note": "", "expires": None}
    return {key: value for key, value in {**good, **changes}.items() if value is not ...}


def store_of(*records: dict[str, Any]) -> bytes:
    return json.dumps({"tokens": records}).encode()


def test_a_generated_token_authenticates_its_user() -> None:
    token, made = generate("alice", NOW)
    # In no group, and limited to nothing.
    assert TokenStore([made]).authenticate(token, NOW) == Identity(
        principal=Principal("token", "alice"), via="token", expires=math.inf, credential=made.id
    )


def test_who_shows_a_token_is_known_until_it_ends() -> None:
    token, made = generate("alice", NOW, lifetime=60.0)
    found = TokenStore([made]).authenticate(token, NOW)
    assert found is not None
    assert found.expires == made.expires == NOW + 60


def test_what_names_a_token_is_not_the_token() -> None:
    token, made = generate("alice", NOW)
    found = TokenStore([made]).authenticate(token, NOW)
    assert found is not None
    assert token.removeprefix(PREFIX) not in repr(found)
    assert made.hash not in repr(found)


def test_each_of_several_tokens_is_found() -> None:
    made = [generate(f"user{n}", NOW) for n in range(5)]
    store = TokenStore(record for _, record in made)
    for n, (token, _) in enumerate(made):
        found = store.authenticate(token, NOW)
        assert found is not None
        assert found.principal == Principal("token", f"user{n}")


def test_generated_tokens_are_long_marked_and_never_alike() -> None:
    made = [generate("alice", NOW) for _ in range(100)]
    assert all(token.startswith(PREFIX) and len(token) == len(PREFIX) + 43 for token, _ in made)
    assert len({token for token, _ in made}) == 100
    assert len({record.id for _, record in made}) == 100


def test_round_trip_keeps_every_record() -> None:
    made = [generate("alice", NOW, note="laptop", lifetime=60.0)[1], generate("bob", NOW)[1]]
    assert TokenStore.parse(TokenStore(made).dump()).records == tuple(made)


def test_the_file_does_not_hold_the_token() -> None:
    token, made = generate("alice", NOW)
    dump = TokenStore([made]).dump().decode()
    assert token not in dump
    assert token.removeprefix(PREFIX) not in dump


def test_an_integer_is_a_time_too() -> None:
    store = TokenStore.parse(store_of(record(created=1, expires=2_000_000_000)))
    assert store.authenticate("relay_known", NOW) is not None


def test_an_empty_store_knows_nobody() -> None:
    store = TokenStore.parse(b'{"tokens": []}')
    assert store.authenticate("", NOW) is None
    assert store.authenticate("relay_known", NOW) is None


def test_near_misses() -> None:
    token, made = generate("alice", NOW)
    store = TokenStore([made])
    swapped = token.swapcase()
    for wrong in (
        "",
        token[:-1],
        token[1:],
        token + "x",
        token + "\n",
        token + "=",
        " " + token,
        token + " ",
        token + "\0",
        swapped,
        token.removeprefix(PREFIX),
        PREFIX,
        PREFIX + token,
        made.hash,
        made.id,
        PREFIX + made.hash,
        "alice",
        token[:-1] + "\u00e9",
        token[:-1] + "\ud800",
        token[:-1] + "\uff41",
    ):
        assert store.authenticate(wrong, NOW) is None, wrong


@given(st.integers(0, 48), st.characters())
def test_one_changed_character_is_another_token(place: int, character: str) -> None:
    token = "relay_" + "k" * 43
    digest = hashlib.sha256(token.encode()).hexdigest()
    store = TokenStore([TokenRecord(id="1", hash=digest, user="alice", created=NOW)])
    changed = token[:place] + character + token[place + 1 :]
    assert (store.authenticate(changed, NOW) is not None) == (changed == token)


def test_every_record_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [generate(f"user{n}", NOW) for n in range(4)]
    seen: list[str] = []

    def compare(left: str, right: str) -> bool:
        seen.append(left)
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    TokenStore(record for _, record in made).authenticate(made[0][0], NOW)
    assert seen == [record.hash for _, record in made]


@pytest.mark.parametrize(
    ("now", "alive"),
    [
        (NOW, True),
        (NOW + 59.9, True),
        (NOW + 60, False),
        (NOW + 1e9, False),
        (math.inf, False),
        (math.nan, False),
    ],
)
def test_a_token_ends_at_its_expiry(now: float, alive: bool) -> None:
    token, made = generate("alice", NOW, lifetime=60.0)
    assert (TokenStore([made]).authenticate(token, now) is not None) == alive


@pytest.mark.parametrize("lifetime", [0, -1, math.inf, -math.inf, math.nan])
def test_impossible_lifetime(lifetime: float) -> None:
    with pytest.raises(ValueError, match="lifetime"):
        generate("alice", NOW, lifetime=lifetime)


@pytest.mark.parametrize(
    "user", ["", " ", " alice", "alice ", "al\nice", "al\0ice", "al\u202eice", "\ud800", "x" * 256]
)
def test_impossible_user(user: str) -> None:
    with pytest.raises(ValueError, match="user name"):
        generate(user, NOW)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"{}",
        b'{"tokens": null}',
        b'{"tokens": {}}',
        b'{"tokens": [1]}',
        b'{"tokens": [{}]}',
        b'{"tokens": []} x',
        b'{"tokens": [], "version": 2}',
        b'{"tokens": []',
        b"\xff\xfe",
        b'{"tokens": [{"id": "\xff"}]}',
    ],
)
def test_a_file_that_is_not_a_store(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        TokenStore.parse(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": ...},
        {"id": 1},
        {"hash": ...},
        {"hash": ""},
        {"hash": DIGEST[:-1]},
        {"hash": DIGEST + "0"},
        {"hash": DIGEST + "\n"},
        {"hash": DIGEST.upper()},
        {"hash": "g" * 64},
        {"hash": "relay_known"},
        {"hash": None},
        {"user": ...},
        {"user": ""},
        {"user": "a\tb"},
        {"user": ["alice"]},
        {"created": ...},
        {"created": "now"},
        {"created": math.nan},
        {"expires": math.nan},
        {"expires": math.inf},
        {"expires": True},
        {"expires": "never"},
        {"expires": [NOW]},
        {"clusters": []},
        {"clusters": "alpha"},
        {"clusters": [1]},
        {"clusters": [" alpha"]},
        {"groups": None},
        {"groups": "staff"},
        {"groups": [""]},
        {"groups": ["a\nb"]},
        {"scopes": None},
        {"scopes": [None]},
        {"scopes": ["x" * 256]},
        {"path": True},
        {"path": 1},
        {"kernelspecs": ["python3"]},
    ],
)
def test_a_record_that_is_not_understood_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        TokenStore.parse(store_of(record(**changes)))


def test_1e999_is_no_expiry() -> None:
    with pytest.raises(ValueError, match="range"):
        TokenStore.parse(store_of(record(expires=12345)).replace(b"12345", b"1e999"))


@pytest.mark.parametrize("times", [{"created": math.nan}, {"expires": math.nan}])
def test_a_record_made_with_nan(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        TokenRecord(**record(**times))


@pytest.mark.parametrize("second", [{"user": "bob", "id": "2"}, {"hash": "0" * 64}])
def test_records_that_share_an_id_or_a_hash(second: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="share"):
        TokenStore.parse(store_of(record(), record(**second)))


def test_groups_scopes_and_clusters_are_its_bearers() -> None:
    token, made = generate(
        "alice", NOW, groups=["staff", "gpu", "staff"], scopes=["run"], clusters=["alpha"]
    )
    assert made.groups == ("staff", "gpu")
    store = TokenStore.parse(TokenStore([made]).dump())
    assert store.records == (made,)
    found = store.authenticate(token, NOW)
    assert found is not None
    assert found.groups == {"staff", "gpu"}
    assert found.scopes == {"run"}
    assert found.clusters == frozenset({"alpha"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": [""]},
        {"groups": ["a\tb"]},
        {"scopes": [" x"]},
        {"clusters": []},
        {"clusters": ["x" * 256]},
        {"note": "a\nb"},
        {"note": "\x1b[2J"},
        {"note": "x" * 256},
        {"path": True},
    ],
)
def test_what_no_token_can_be_made_with(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        generate("alice", NOW, **wrong)


def test_a_path_token_and_a_bearer_token_are_two_things() -> None:
    path, first = generate("alice", NOW, lifetime=60.0, path=True)
    bearer, second = generate("alice", NOW, lifetime=60.0)
    store = TokenStore([first, second])
    assert store.authenticate(path, NOW) is None
    assert store.authenticate(bearer, NOW) is not None
    assert store.authenticate_path(path, NOW, 60.0) is not None
    assert store.authenticate_path(bearer, NOW, 60.0) is None


@pytest.mark.parametrize(
    ("now", "max_lifetime", "good"),
    [
        (NOW, 60.0, True),
        (NOW + 59, 60.0, True),
        (NOW + 60, 60.0, False),
        (NOW, 59.9, False),
        (math.nan, 60.0, False),
        (NOW, math.nan, False),
    ],
)
def test_how_long_a_path_token_is_good(now: float, max_lifetime: float, good: bool) -> None:
    token, made = generate("alice", NOW, lifetime=60.0, path=True)
    assert (TokenStore([made]).authenticate_path(token, now, max_lifetime) is not None) == good


def test_path_tokens_survive_what_clients_do_to_urls() -> None:
    for _ in range(200):
        token, _ = generate("alice", NOW, lifetime=60.0, path=True)
        assert is_path_token(token)
        assert token == token.lower()
        # As the gateway client makes a WebSocket's URL.
        assert token.replace("http", "ws") == token


def test_a_path_token_with_http_in_it_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with_http = base64.b32decode("HTTP".ljust(52, "A") + "====")
    drawn = [with_http, with_http, bytes(32), bytes(6)]
    monkeypatch.setattr(secrets, "token_bytes", lambda _: drawn.pop(0))
    assert generate("alice", NOW, lifetime=60.0, path=True)[0] == "a" * 52


@pytest.mark.parametrize(
    "text", ["", "a" * 51, "a" * 53, "A" * 52, "a" * 51 + "1", "a" * 52 + "\n", "a" * 51 + "="]
)
def test_what_is_no_path_token(text: str) -> None:
    assert not is_path_token(text)
