from __future__ import annotations

import base64
import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.jwks import ASYMMETRIC, SYMMETRIC, KeySet, from_pem, from_secret
from relay.auth.jwt import MAX_TOKEN, Issuer, JwtVerifier
from relay.errors import Unauthorized
from relay.model import Identity, Principal
from tests.jwts import (
    ISSUER,
    NOW,
    SECRET,
    b64,
    claims,
    header,
    hmac_signer,
    jwk,
    private_key,
    public_pem,
    signer,
    token,
)

LEEWAY = 30.0


def verifier(**changes: Any) -> JwtVerifier:
    settings: dict[str, Any] = {
        "name": "corp",
        "issuer": ISSUER,
        "audiences": frozenset({"relay"}),
        "algorithms": frozenset({"RS256"}),
        "types": frozenset({"jwt", "at+jwt"}),
        "required": frozenset({"nbf"}),
        "leeway": LEEWAY,
        "user": "sub",
        "groups": None,
        "scopes": None,
    }
    return JwtVerifier(Issuer(**{**settings, **changes}))


VERIFIER = verifier()
KEYS = KeySet([from_pem(public_pem(private_key("RS256")), ["RS256"], "one")])


def identity(
    text: str, now: float = NOW, verifier: JwtVerifier = VERIFIER, keys: KeySet = KEYS
) -> Identity | None:
    found = verifier.read(text)
    if found is None:
        return None
    return verifier.verify(found, keys.find(found.kid, found.algorithm), now)


def known(text: str, now: float = NOW, /, **changes: Any) -> Identity:
    found = identity(text, now, verifier(**changes))
    assert found is not None
    return found


def is_known(text: str, now: float = NOW, /, **changes: Any) -> bool:
    return known(text, now, **changes).principal == Principal("corp", "alice")


def assert_refused(text: str, why: str, now: float = NOW, /, **changes: Any) -> None:
    """Refused for good: no other authenticator is asked."""
    with pytest.raises(Unauthorized, match=re.escape(why)) as caught:
        identity(text, now, verifier(**changes))
    assert "alice" not in caught.value.message
    assert caught.value.__cause__ is None


# What holds


def test_a_right_token_is_its_users() -> None:
    assert known(token(header(), claims())) == Identity(
        principal=Principal("corp", "alice"),
        via="corp",
        expires=NOW + 300 + LEEWAY,
        credential="jwt:j-1",
    )


@pytest.mark.parametrize("algorithm", [*ASYMMETRIC, *SYMMETRIC])
def test_every_algorithm_that_is_configured(algorithm: str) -> None:
    key = (
        from_secret(SECRET, [algorithm])
        if algorithm in SYMMETRIC
        else from_pem(public_pem(private_key(algorithm)), [algorithm], None)
    )
    only = verifier(algorithms=frozenset({algorithm}))
    text = token(header(algorithm), claims(), signer(algorithm))
    assert identity(text, verifier=only, keys=KeySet([key])) is not None
    # And none that is not.
    assert_refused(text, "its algorithm", algorithms=frozenset({"XX256"}))


def test_a_token_without_jti_is_named_by_what_is_signed() -> None:
    text = token(header(), claims(jti=...))
    name = known(text).credential
    assert re.fullmatch(r"jwt:[0-9a-f]{16}", name)
    for strange in ("a b", "x" * 65, "\n", "é", "", 3, ["j"]):
        assert re.fullmatch(
            r"jwt:[0-9a-f]{16}", known(token(header(), claims(jti=strange))).credential
        )


def test_a_second_signature_makes_no_second_token() -> None:
    # Anybody can turn one ECDSA signature into another that is right too, (r, s) into (r, n - s).
    key = KeySet([from_pem(public_pem(private_key("ES256")), ["ES256"], None)])
    only = verifier(algorithms=frozenset({"ES256"}))
    text = token(header("ES256"), claims(jti=...), signer("ES256"))
    message, _, signature = text.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    one = identity(text, verifier=only, keys=key)
    two = identity(f"{message}.{b64(other)}", verifier=only, keys=key)
    assert one is not None
    assert two is not None
    assert one.credential == two.credential


@pytest.mark.parametrize("kind", [..., "JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"])
def test_types_that_are_accepted(kind: Any) -> None:
    assert known(token(header(typ=kind), claims())).principal.subject == "alice"


def test_keys_in_the_header_are_not_looked_at() -> None:
    other = private_key("RS256", "mallory")
    bait = {
        "jwk": jwk(other, kid="one"),
        "jku": "http://127.0.0.1:1/keys",
        "x5u": "file:///etc/passwd",
        "x5c": ["AAAA"],
        "x5t": "AAAA",
    }
    assert known(token(header(**bait), claims())).principal.subject == "alice"
    assert_refused(
        token(header(**bait), claims(), signer("RS256", "mallory")), "its signature is wrong"
    )


# What is another authenticator's


@pytest.mark.parametrize(
    "text",
    [
        "",
        "relay_0123456789",
        "a.b.c",
        "..",
        ".",
        "e30.e30.",
        "e30.bnVsbA.AA",
        token(header(), claims(iss=...)),
        token(header(), claims(iss="https://login.example.org/realms/two")),
        token(header(), claims(iss=None)),
        token(header(), claims(iss=[ISSUER])),
        token(header(), claims(iss={"iss": ISSUER})),
        token(header(), json.dumps([["iss", ISSUER]]).encode()),
        token(header(), json.dumps(["iss", ISSUER]).encode()),
        token(header(), b"[" * 5000),
        token(header(), token(header(), claims()).encode()),
        f"{b64(b'{}')}.{b64(b'{}')}.{b64(b'{}')}.AA.AA",
        "é.é.é",
        "\ud800.\ud800.\ud800",
        token(header(), claims(pad="x" * MAX_TOKEN)),
    ],
)
def test_what_does_not_claim_to_be_the_issuers_is_left_to_others(text: str) -> None:
    assert VERIFIER.read(text) is None


@pytest.mark.parametrize(
    "issuer",
    [
        ISSUER[:-1],
        ISSUER + "/",
        ISSUER + "\0",
        ISSUER.upper(),
        "https://login.example.org",
        "",
        ISSUER[5:],
        f" {ISSUER}",
        f"{ISSUER},{ISSUER}",
    ],
)
def test_an_issuer_is_all_of_its_name(issuer: str) -> None:
    assert VERIFIER.read(token(header(), claims(iss=issuer))) is None


# Form


def spellings(text: str) -> list[str]:
    head, payload, signature = text.split(".")
    last = signature[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # RS256's 256 bytes leave two bits of the last character unused.
    other = alphabet[alphabet.index(last) ^ 1]
    return [
        f"{text}==",
        f"{text}=",
        f"{head}==.{payload}.{signature}",
        f"{head}.{payload}==.{signature}",
        f"{head}.{payload}.{signature[:-1]}{other}",
        f"{text}.",
        f"{text}.AA.AA",
        f"{text}\n",
        f" {text}",
        f"{head}.{payload}.",
        f"{head}.{payload}",
        f"{head}.{payload}.{signature}+",
        f".{payload}.{signature}",
        f"{head}.{payload}.{signature[:10]} {signature[10:]}",
    ]


@pytest.mark.parametrize("number", range(14))
def test_a_token_has_one_spelling(number: int) -> None:
    text = spellings(token(header(), claims()))[number]
    assert_refused(text, "it is malformed")


@pytest.mark.parametrize(
    "payload",
    [
        f'{{"iss": "{ISSUER}", "iss": "{ISSUER}"}}',
        f'{{"iss": "other", "iss": "{ISSUER}"}}',
        f'{{"iss": "{ISSUER}", "iss": "other"}}',
        f'{{"iss": "{ISSUER}", "sub": "bob", "sub": "alice"}}',
        f'{{"iss": "{ISSUER}", "s\\u0075b": "bob", "sub": "alice"}}',
        f'{{"iss": "{ISSUER}", "exp": NaN}}',
        f'{{"iss": "{ISSUER}", "exp": Infinity}}',
    ],
)
def test_claims_that_can_be_read_in_two_ways_are_refused(payload: str) -> None:
    assert_refused(token(header(), payload.encode()), "malformed")


@pytest.mark.parametrize(
    "head",
    [
        b'{"alg": "RS256", "alg": "none", "kid": "one"}',
        b'{"alg": "none", "alg": "RS256", "kid": "one"}',
        b'{"alg": "RS256", "kid": "two", "kid": "one"}',
        b'{"alg": "RS256"',
        b"[]",
        b"null",
        b"\xff",
        b'"RS256"',
        b"[" * 3000,
    ],
)
def test_a_header_that_can_be_read_in_two_ways_is_refused(head: bytes) -> None:
    assert_refused(token(head, claims()), "malformed")


# Algorithm and key


@pytest.mark.parametrize(
    "algorithm",
    [
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        "rs256",
        "Rs256",
        "RS256 ",
        "RS512",
        "PS256",
        "HS256",
        "ES256",
        "EdDSA",
    ],
)
def test_the_algorithm_is_the_configured_one_exactly(algorithm: str) -> None:
    for sign in (signer("RS256"), lambda _: b"x", hmac_signer(public_pem(private_key("RS256")))):
        assert_refused(token(header(algorithm), claims(), sign), "its algorithm")


@pytest.mark.parametrize("algorithm", [..., None, 3, True, ["RS256"], {"RS256": 1}])
def test_an_algorithm_is_text(algorithm: Any) -> None:
    assert_refused(token(header(alg=algorithm), claims()), "its algorithm")


def test_no_signature_is_no_signature() -> None:
    head, payload, _ = token(header(), claims()).split(".")
    assert_refused(f"{head}.{payload}.AA", "its signature is wrong")
    assert_refused(f"{head}.{payload}.", "it is malformed")


def test_an_issuer_with_secrets_takes_no_public_keys_token_and_the_other_way_round() -> None:
    pem = public_pem(private_key("RS256"))
    secrets = verifier(algorithms=frozenset({"HS256"}))
    of_secrets = KeySet([from_secret(SECRET, ["HS256"])])
    for text in (
        token(header("RS256"), claims()),
        token(header("HS256"), claims(), hmac_signer(pem)),
        token(header("HS256"), claims(), hmac_signer(json.dumps(jwk(SECRET)).encode())),
        token(header("HS256"), claims(), hmac_signer(b"")),
    ):
        with pytest.raises(Unauthorized):
            identity(text, verifier=secrets, keys=of_secrets)
    # Even where both are configured, which the settings refuse, a key is what it is.
    both = verifier(algorithms=frozenset({"HS256", "RS256"}))
    for secret in (pem, pem.strip(), json.dumps(jwk(private_key("RS256"))).encode()):
        with pytest.raises(Unauthorized, match="its key is unknown"):
            identity(token(header("HS256"), claims(), hmac_signer(secret)), verifier=both)


def test_another_keys_signature_is_wrong() -> None:
    assert_refused(token(header(), claims(), signer("RS256", "mallory")), "its signature is wrong")


def test_a_signature_is_of_these_claims() -> None:
    one, two = token(header(), claims()), token(header(), claims(sub="bob"))
    mixed = ".".join([*two.split(".")[:2], one.split(".")[2]])
    assert_refused(mixed, "its signature is wrong")


@pytest.mark.parametrize(
    "kid", ["two", "ONE", "", "../one", "/dev/null", "one\0", "' OR 1=1 --", "\ud800", "x" * 255]
)
def test_an_unknown_kid_is_refused(kid: str) -> None:
    assert_refused(token(header(kid=kid), claims()), "its key is unknown")


@pytest.mark.parametrize("kid", [None, 1, True, ["one"], {"kid": "one"}, "x" * 256])
def test_a_kid_is_short_text(kid: Any) -> None:
    assert_refused(token(header(kid=kid), claims()), "its kid")


def test_without_kid_several_keys_are_not_tried_out() -> None:
    text = token(header(kid=...), claims())
    assert identity(text) is not None
    other = from_pem(public_pem(private_key("RS256", "other")), ["RS256"], "two")
    with pytest.raises(Unauthorized, match="its key is unknown"):
        identity(text, keys=KeySet([*KEYS.keys, other]))


@pytest.mark.parametrize(
    "more",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": None},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"b64": True},
        {"b64": "false"},
        {"crit": ["x"], "x": 1},
    ],
)
def test_extensions_are_refused(more: dict[str, Any]) -> None:
    assert_refused(token(header(**more), claims()), "asks for an extension")


def test_a_detached_payload_is_refused() -> None:
    head, _, signature = token(header(b64=False, crit=["b64"]), claims()).split(".")
    assert VERIFIER.read(f"{head}..{signature}") is None


@pytest.mark.parametrize(
    "kind",
    [
        "relay-ticket+jwt",
        "secevent+jwt",
        "logout+jwt",
        "",
        "JWT2",
        "application/",
        None,
        3,
        ["JWT"],
        "text/jwt",
        "jwe",
    ],
)
def test_other_types_are_refused(kind: Any) -> None:
    assert_refused(token(header(typ=kind), claims()), "its type")


def test_a_type_may_be_asked_for() -> None:
    only = {"types": frozenset({"at+jwt"})}
    assert is_known(token(header(typ="at+jwt"), claims()), **only)
    assert_refused(token(header(), claims()), "its type", **only)
    assert_refused(token(header(typ=...), claims()), "its type", **only)


# Claims


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value", [None, True, False, "", "1900000000", [], [NOW + 300], {}, {"exp": NOW}]
)
def test_a_time_is_a_number(name: str, value: Any) -> None:
    assert_refused(token(header(), claims(**{name: value})), f"its {name} is not a time")


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", ["1e999", "-1e999", "9" * 400, "-" + "9" * 5000])
def test_a_time_is_finite(name: str, value: str) -> None:
    payload = json.dumps(claims(**{name: "HERE"})).replace('"HERE"', value).encode()
    assert_refused(token(header(), payload), f"its {name} is not a time")


@pytest.mark.parametrize(
    ("now", "good"),
    [
        (NOW + 300, True),
        (NOW + 300 + LEEWAY - 0.01, True),
        (NOW + 300 + LEEWAY, False),
        (NOW + 1e9, False),
    ],
)
def test_a_token_ends(now: float, good: bool) -> None:
    text = token(header(), claims())
    if good:
        assert known(text, now).expires > now
    else:
        assert_refused(text, "it has expired", now)


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_begins(name: str) -> None:
    text = token(header(), claims(**{name: NOW + 100}))
    assert_refused(text, "it is not valid yet", NOW)
    assert_refused(text, "it is not valid yet", NOW + 100 - LEEWAY - 0.01)
    assert is_known(text, NOW + 100 - LEEWAY)


@pytest.mark.parametrize("exp", [0, -1, 0.5, -1e300, NOW - LEEWAY])
def test_a_token_of_the_past(exp: float) -> None:
    assert_refused(token(header(), claims(exp=exp)), "it has expired")


def test_exp_is_needed_whatever_is_required() -> None:
    assert_refused(token(header(), claims(exp=...)), "it lacks exp", required=frozenset())


@pytest.mark.parametrize("name", ["nbf", "iat", "jti"])
def test_what_is_required_has_to_be_there(name: str) -> None:
    text = token(header(), claims(**{name: ...}))
    assert is_known(text, required=frozenset())
    assert_refused(text, f"it lacks {name}", required=frozenset({name}))


def test_what_is_not_required_is_checked_all_the_same() -> None:
    text = token(header(), claims(nbf=NOW + 3600))
    assert_refused(text, "it is not valid yet", required=frozenset())


@pytest.mark.parametrize("audience", ["relay", ["relay"], ["other", "relay"], ["relay", 3]])
def test_the_audience_is_one_of_ours(audience: Any) -> None:
    assert is_known(token(header(), claims(aud=audience)))


@pytest.mark.parametrize(
    "audience",
    [
        ...,
        None,
        "",
        [],
        "rela",
        "relay2",
        "xrelay",
        "relay ",
        "RELAY",
        "relay other",
        "relay,other",
        ["other"],
        ["relayx"],
        [["relay"]],
        {"relay": 1},
        [{"aud": "relay"}],
        True,
        3,
    ],
)
def test_another_audience_is_refused(audience: Any) -> None:
    assert_refused(token(header(), claims(aud=audience)), "it is for another audience")


def test_any_of_several_audiences_will_do() -> None:
    several = frozenset({"relay", "other"})
    assert is_known(token(header(), claims(aud="other")), audiences=several)
    assert_refused(token(header(), claims(aud="others")), "another audience", audiences=several)


@pytest.mark.parametrize("bound", [{"jkt": "x"}, {"x5t#S256": "x"}, {}, None])
def test_a_token_that_is_bound_to_a_key_is_nothing_without_it(bound: Any) -> None:
    assert_refused(token(header(), claims(cnf=bound)), "it is bound to a key")


# Who


@pytest.mark.parametrize(
    "user",
    [
        ...,
        None,
        "",
        " ",
        "alice ",
        "al\nice",
        "a\u202eb",
        "\ud800",
        "x" * 256,
        3,
        True,
        ["alice"],
        {},
    ],
)
def test_a_user_has_a_name_that_can_be_shown(user: Any) -> None:
    assert_refused(token(header(), claims(sub=user)), "its user claim is missing or malformed")


def test_the_user_is_in_the_claim_that_is_configured() -> None:
    text = token(header(), claims(email="a@example.org", deep={"er": {"name": "al"}}))
    assert known(text, user="email").principal.subject == "a@example.org"
    assert known(text, user="deep.er.name").principal.subject == "al"
    for missing in ("upn", "deep", "deep.er", "deep.er.name.x", "deep.", ".", "sub.x", "deep..er"):
        assert_refused(text, "its user claim is missing or malformed", user=missing)


def test_a_claim_of_this_very_name_comes_first() -> None:
    url = "https://example.org/groups"
    text = token(header(), claims(**{url: ["a"], "x.y": ["b"], "x": {"y": ["c"]}}))
    assert known(text, groups=url).groups == {"a"}
    assert known(text, groups="x.y").groups == {"b"}


@pytest.mark.parametrize(
    ("value", "groups"),
    [(["a", "b", "a"], {"a", "b"}), ("a b", {"a b"}), ([], set()), (None, set()), (..., set())],
)
def test_groups(value: Any, groups: set[str]) -> None:
    text = token(header(), claims(realm_access={"roles": value} if value is not ... else {}))
    assert known(text, groups="realm_access.roles").groups == groups
    assert known(text).groups == frozenset()


@pytest.mark.parametrize(
    "value", [3, True, {"a": 1}, "", " a", ["a", 3], ["a", None], [["a"]], ["\ud800"], ["a\n"]]
)
def test_groups_that_are_no_names_are_refused(value: Any) -> None:
    assert_refused(token(header(), claims(groups=value)), "its groups", groups="groups")


@pytest.mark.parametrize("value", ["a b", " a  b ", ["a", "b"]])
def test_scopes(value: Any) -> None:
    text = token(header(), claims(scope=value))
    assert known(text, scopes="scope").scopes == {"a", "b"}
    assert known(text).scopes == frozenset()


@pytest.mark.parametrize("value", [..., None, "", "  ", [], 3, {}, [3], [""], "a\tb"])
def test_a_token_without_the_scopes_that_it_should_have_is_for_nothing(value: Any) -> None:
    # An identity without scopes would be good for everything.
    assert_refused(token(header(), claims(scope=value)), "scopes", scopes="scope")


def test_a_user_is_this_issuers_alone() -> None:
    found = known(token(header(), claims(sub="token:root")))
    assert found.principal == Principal("corp", "token:root")


@pytest.mark.parametrize(
    "wrong",
    [
        {"audiences": frozenset()},
        {"algorithms": frozenset()},
        {"types": frozenset()},
        {"leeway": 60.1},
        {"leeway": -1.0},
        {"leeway": float("nan")},
    ],
)
def test_an_issuer_that_would_let_in_too_much_is_an_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"an issuer needs|leeway"):
        verifier(**wrong)


# Anything


_VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from([*header(), "crit", "b64", "jwk", "x5c"]), _VALUE),
    st.dictionaries(st.sampled_from([*claims(), "groups", "scope"]), _VALUE),
)
def test_a_signed_token_is_right_or_refused_whatever_is_in_it(
    head: dict[str, Any], payload: dict[str, Any]
) -> None:
    mapped = verifier(groups="groups", scopes="scope", user="sub.x.y")
    text = token({**header(), **head}, {**claims(), "scope": "a", **payload})
    with contextlib.suppress(Unauthorized):
        identity(text, verifier=mapped)


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_right_or_refused(head: bytes, payload: bytes, signature: bytes) -> None:
    start = f'{{"iss": "{ISSUER}", '.encode()
    for text in (
        ".".join(map(b64, (head, payload, signature))),
        ".".join(map(b64, (head, start + payload, signature))),
        token(b'{"alg": "RS256", "kid": "one", ' + head, start + payload),
    ):
        with contextlib.suppress(Unauthorized):
            identity(text)


@given(st.text(max_size=100), st.integers(0, 300), st.integers(0, 300))
def test_any_text_in_a_right_token_leaves_it_alone_or_has_it_refused(
    text: str, start: int, length: int
) -> None:
    good = token(header(), claims())
    changed = good[:start] + text + good[start + length :]
    try:
        found = identity(changed)
    except Unauthorized:
        return
    assert found is None or changed == good
