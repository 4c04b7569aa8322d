from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.jwks import (
    ASYMMETRIC,
    SYMMETRIC,
    Key,
    KeySet,
    from_pem,
    from_secret,
    parse,
    read_object,
)
from tests.jwts import (
    SECRET,
    claims,
    header,
    hmac_signer,
    jwk,
    jwk_set,
    private_key,
    private_pem,
    public_pem,
    signer,
    token,
)

RSA = private_key("RS256")
EC = private_key("ES256")
ED = private_key("EdDSA")


def problem(entry: Any, *algorithms: str, secrets: bool = False) -> str:
    """Why a key is skipped."""
    keys, problems = parse(jwk_set(entry), algorithms or ("RS256",), secrets=secrets)
    assert keys.keys == ()
    (text,) = problems
    return text


# What a key is good for


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_published_key_verifies_with_its_algorithm(algorithm: str) -> None:
    published = jwk(private_key(algorithm), kid="one", use="sig", key_ops=["verify"])
    keys, problems = parse(jwk_set(published), [algorithm])
    assert problems == []
    text = token(header(algorithm), claims(), signer(algorithm))
    key = keys.find("one", algorithm)
    assert key is not None
    assert key.verifies(text, algorithm)
    # Any other signature, and the right one under any other name, is none.
    assert not key.verifies(token(header(algorithm), claims(sub="bob"), lambda _: b"s"), algorithm)
    assert not any(key.verifies(text, other) for other in {*ASYMMETRIC, "none"} - {algorithm})


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_key_in_pem_is_the_same(algorithm: str) -> None:
    key = from_pem(public_pem(private_key(algorithm)), [algorithm], "k")
    assert key.kid == "k"
    assert key.algorithms == {algorithm}
    assert key.verifies(token(header(algorithm), claims(), signer(algorithm)), algorithm)


@pytest.mark.parametrize("algorithm", SYMMETRIC)
def test_a_secret_verifies_with_its_algorithm(algorithm: str) -> None:
    text = token(header(algorithm), claims(), signer(algorithm))
    assert from_secret(SECRET, [algorithm]).verifies(text, algorithm)
    keys, problems = parse(jwk_set(jwk(SECRET, kid="one")), [algorithm], secrets=True)
    assert problems == []
    assert keys.keys[0].verifies(text, algorithm)
    assert not from_secret(SECRET[::-1], [algorithm]).verifies(text, algorithm)


def test_a_key_of_one_family_serves_its_hashes() -> None:
    keys, _ = parse(jwk_set(jwk(RSA), jwk(EC)), ["RS256", "RS512", "ES256", "ES384"])
    assert [key.algorithms for key in keys.keys] == [{"RS256", "RS512"}, {"ES256"}]


def test_a_keys_alg_says_which_family_it_is_of() -> None:
    keys, problems = parse(jwk_set(jwk(RSA, alg="PS256"), jwk(RSA)), ["RS256", "PS256"])
    assert [key.algorithms for key in keys.keys] == [{"PS256"}]
    assert problems == [
        "key 1 (''): it has no alg, and both RS and PS, which it fits, are configured"
    ]
    assert not keys.keys[0].verifies(token(header(), claims(), signer("RS256")), "RS256")


def test_a_key_does_not_show_its_secret() -> None:
    key = from_secret(SECRET, ["HS256"])
    assert str(SECRET) not in repr(key)
    assert "material" not in repr(key)


# Confusion of one kind of key with another


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_no_secret_whatever_a_token_says(algorithm: str) -> None:
    pem = public_pem(RSA)
    key = from_pem(pem, ["RS256"], None)
    for secret in (pem, pem.strip(), json.dumps(jwk(RSA)).encode()):
        forged = token(header(algorithm), claims(), hmac_signer(secret, algorithm))
        assert not key.verifies(forged, algorithm)
        assert not key.verifies(forged, "RS256")
        assert KeySet([key]).find(None, algorithm) is None


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_secret_is_no_public_key_whatever_a_token_says(algorithm: str) -> None:
    key = from_secret(SECRET, ["HS256"])
    forged = token(header(algorithm), claims(), signer(algorithm))
    assert not key.verifies(forged, algorithm)
    assert not key.verifies(forged, "HS256")
    assert KeySet([key]).find(None, algorithm) is None


@pytest.mark.parametrize(
    "text",
    [
        public_pem(RSA),
        private_pem(RSA),
        public_pem(EC),
        json.dumps(jwk(RSA)).encode(),
        json.dumps(jwk(SECRET)).encode(),
        b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKyEzzGvj4MUhqr5nNRRBMFTG27jRsKPi3cTbY+fVzaf",
    ],
)
def test_another_keys_text_is_no_secret(text: bytes) -> None:
    with pytest.raises(ValueError, match="text of another kind of key"):
        from_secret(text, ["HS256"])


@pytest.mark.parametrize("length", [0, 1, 31])
def test_a_short_secret_is_none(length: int) -> None:
    with pytest.raises(ValueError, match=r"it has|it is empty"):
        from_secret(b"s" * length, ["HS256"])
    assert "it has" in problem(jwk(b"s" * 31), "HS256", secrets=True)


def test_a_secret_is_as_long_as_its_longest_hash() -> None:
    assert from_secret(b"s" * 32, ["HS256"]).algorithms == {"HS256"}
    with pytest.raises(ValueError, match="HS512 needs 64"):
        from_secret(b"s" * 63, ["HS256", "HS512"])
    assert from_secret(b"s" * 64, ["HS256", "HS512"]).algorithms == {"HS256", "HS512"}


# Keys that are refused


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (jwk(SECRET), "a secret, and must not be published"),
        ({**jwk(RSA), "d": "AQAB"}, "a private key"),
        (jwk(RSA, use="enc"), "not for signatures"),
        (jwk(RSA, use=["sig"]), "not for signatures"),
        (jwk(RSA, key_ops=["sign"]), "not for signatures"),
        (jwk(RSA, key_ops="verify"), "not for signatures"),
        (jwk(RSA, key_ops=None), "not for signatures"),
        (jwk(RSA, key_ops=3), "not for signatures"),
        (jwk(RSA, kid=3), "not text"),
        (jwk(RSA, alg=["RS256"]), "not text"),
        (jwk(RSA, alg="RS384"), "none of the algorithms"),
        (jwk(RSA, alg="rs256"), "none of the algorithms"),
        (jwk(RSA, alg="none"), "none of the algorithms"),
        (jwk(RSA, alg="RSA-OAEP"), "none of the algorithms"),
        (jwk(EC), "none of the algorithms"),
        (jwk(RSA, kty="EC"), "malformed"),
        (jwk(EC, kty="RSA"), "malformed"),
        ({"kty": "RSA"}, "malformed"),
        ({"kty": "OKP", "crv": "X25519", "x": "AA"}, "malformed"),
        ({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}, "malformed"),
        ({**jwk(EC), "x": jwk(EC)["y"]}, "malformed"),
        ({**jwk(RSA), "n": 5}, "malformed"),
        ({**jwk(RSA), "e": "Ag"}, "malformed"),
        ({"kty": "rsa"}, "type is unknown"),
        ({"kty": None}, "type is unknown"),
        ({}, "type is unknown"),
    ],
)
def test_a_key_that_cannot_be_used_is_skipped_and_named(entry: Any, text: str) -> None:
    assert text in problem(entry)


@pytest.mark.parametrize("bits", [1024, 2040])
def test_a_weak_rsa_key_is_skipped(bits: int) -> None:
    weak = rsa.generate_private_key(65537, bits)
    assert f"it has {bits} bits" in problem(jwk(weak))
    with pytest.raises(ValueError, match=f"it has {bits} bits"):
        from_pem(public_pem(weak), ["RS256"], None)


def test_a_monstrous_rsa_key_is_skipped() -> None:
    entry = {"kty": "RSA", "n": "_" * 2 * 8193, "e": "AQAB"}
    assert "bits" in problem(entry) or "malformed" in problem(entry)


def test_the_others_of_a_set_are_used() -> None:
    keys, problems = parse(jwk_set(jwk(EC, kid="a" * 99), jwk(RSA, kid="one")), ["RS256"])
    assert [key.kid for key in keys.keys] == ["one"]
    assert len(problems) == 1
    assert problems[0].startswith(f"key 0 ('{'a' * 64}'): ")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b'{"keys": ["x"]}',
        b'{"keys": [], "keys": []}',
        b'{"keys": [NaN]}',
        b"\xff",
        b"[" * 100_000,
        b"<html>",
    ],
)
def test_what_is_no_set_is_an_error(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(document, ["RS256"])


def test_an_empty_set_has_no_keys() -> None:
    keys, problems = parse(b'{"keys": []}', ["RS256"])
    assert (keys.keys, problems) == ((), [])


# On sect283r1, a curve of the kind whose points were once not checked (CVE-2026-26007).
STRANGE = b"""\
-----BEGIN PUBLIC KEY-----
MF4wEAYHKoZIzj0CAQYFK4EEABEDSgAEAK1FF3e0YzzM45aur/P6FwpLpO9RwCww
qkAdhToD/3m1DXB9Ax2quO7cm9c40XxINU+K6tXLnWac+7qib20OwQm+IHF9/o19
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"x",
        private_pem(RSA),
        public_pem(RSA) + public_pem(EC),
        public_pem(RSA)[:100],
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        SECRET,
        STRANGE,
    ],
    ids=["nothing", "a letter", "private", "two", "cut", "no key", "a secret", "a strange curve"],
)
def test_what_is_not_one_public_key_in_pem_is_an_error(pem: bytes) -> None:
    with pytest.raises(ValueError, match="not one public key in PEM"):
        from_pem(pem, ["RS256"], None)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP224R1()),
        ec.generate_private_key(ec.BrainpoolP256R1()),
        dsa.generate_private_key(2048),
        X25519PrivateKey.generate(),
    ],
    ids=lambda key: type(key).__name__,
)
def test_another_curve_or_kind_of_key_is_an_error(key: Any) -> None:
    with pytest.raises(ValueError, match=r"nor on the curves"):
        from_pem(public_pem(key), ["RS256", "ES256", "EdDSA"], None)


def test_ed448_is_an_eddsa_key() -> None:
    key = Ed448PrivateKey.generate()
    text = token(header("EdDSA"), claims(), key.sign)
    assert from_pem(public_pem(key), ["EdDSA"], None).verifies(text, "EdDSA")
    assert parse(jwk_set(jwk(key)), ["EdDSA"])[0].keys[0].verifies(text, "EdDSA")


# Which key


def key(kid: str | None, *algorithms: str) -> Key:
    return Key(kid, frozenset(algorithms or ("RS256",)), SECRET)


def test_a_token_finds_the_key_that_it_names() -> None:
    one, two = key("one"), key("two")
    assert KeySet([one, two]).find("two", "RS256") is two


@pytest.mark.parametrize("kid", ["ONE", "one ", "on", "", "../one", "one\0", "../../dev/null", "*"])
def test_a_kid_is_a_name_and_nothing_else(kid: str) -> None:
    assert KeySet([key("one"), key("two")]).find(kid, "RS256") is None


def test_without_kid_there_has_to_be_one_key() -> None:
    one, two, other = key("one"), key("two"), key("three", "ES256")
    assert KeySet([one, other]).find(None, "RS256") is one
    assert KeySet([one, two]).find(None, "RS256") is None
    assert KeySet().find(None, "RS256") is None


def test_a_key_without_kid_is_for_those_that_no_other_has() -> None:
    named, unnamed = key("one"), key(None)
    keys = KeySet([named, unnamed])
    assert keys.find("one", "RS256") is named
    assert keys.find("else", "RS256") is unnamed
    assert keys.find(None, "RS256") is None
    assert KeySet([unnamed, key(None)]).find("one", "RS256") is None


def test_two_keys_of_one_kid_are_none_unless_their_algorithms_differ() -> None:
    one, other = key("one", "RS256"), key("one", "ES256")
    assert KeySet([one, other]).find("one", "ES256") is other
    assert KeySet([one, key("one")]).find("one", "RS256") is None


# JSON


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": [{"b": 1, "b": 2}]}',
        b'{"a": 1, "\\u0061": 1}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 01}',
        b"{'a': 1}",
        b'{"a": 1}x',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"3",
        b'"{}"',
        b"",
    ],
)
def test_json_that_could_be_read_in_two_ways_is_not(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_object(data)


def test_numbers_are_floats() -> None:
    data = f'{{"a": 1, "b": 1e999, "c": {"9" * 5000}}}'.encode()
    assert read_object(data) == {"a": 1.0, "b": float("inf"), "c": float("inf")}


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.binary(max_size=0).map(str),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "kty": st.sampled_from(["RSA", "EC", "OKP", "oct", "x"]) | _JSON,
        "crv": st.sampled_from(["P-256", "P-384", "P-521", "Ed25519", "Ed448", "X25519"]) | _JSON,
        **{
            name: st.sampled_from(["AQAB", "_" * 43, "A" * 43, "A" * 86, "A" * 342, "é", "="])
            | _JSON
            for name in ("n", "e", "x", "y", "k", "d", "p", "q")
        },
        **{name: _JSON | st.sampled_from(["sig", "RS256"]) for name in ("alg", "use", "kid")},
        "key_ops": st.just(["verify"]) | _JSON,
    },
)


@given(st.lists(_ENTRY | _JSON, max_size=3), st.booleans())
def test_no_set_whatsoever_does_more_than_raise_value_error(
    entries: list[Any], secrets: bool
) -> None:
    try:
        keys, problems = parse(jwk_set(*entries), [*ASYMMETRIC], secrets=secrets)
    except ValueError:
        return
    assert len(keys.keys) + len(problems) == len(entries)
    for key in keys.keys:
        for algorithm in key.algorithms:
            assert not key.verifies(token(header(algorithm), claims(), lambda _: b"x"), algorithm)


@given(st.binary(max_size=200))
def test_no_bytes_whatsoever_do_more_than_raise_value_error(data: bytes) -> None:
    for read in (read_object, lambda data: parse(data, ["RS256"])):
        with contextlib.suppress(ValueError):
            read(data)
