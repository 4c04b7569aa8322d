from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.credentials import MAX_CREDENTIAL, TOKEN_PROTOCOL, from_request, without_token
from relay.errors import Unauthorized


@pytest.mark.parametrize(
    "header",
    [
        "token T",
        "Token T",
        "TOKEN T",
        "Bearer T",
        "bearer T",
        "bEaReR T",
        "token   T",
        " token T\t",
    ],
)
@pytest.mark.parametrize("websocket", [False, True])
def test_schemes_of_jupyter_and_rfc_6750(header: str, websocket: bool) -> None:
    assert from_request([header], [], websocket=websocket) == "T"


def test_query_token_counts_on_a_websocket() -> None:
    assert from_request([], ["T"], websocket=True) == "T"


def test_header_and_query_that_agree_are_one_credential() -> None:
    assert from_request(["token T"], ["T", "T"], websocket=True) == "T"


def test_an_empty_credential_does_not_disagree() -> None:
    assert from_request(["token "], ["", "T"], websocket=True) == "T"


def test_longest_credential_passes() -> None:
    token = "x" * MAX_CREDENTIAL
    assert from_request([f"token {token}"], [], websocket=False) == token


@pytest.mark.parametrize("headers", [[], [""], ["token "], ["token"], ["Bearer  "], ["token", ""]])
@pytest.mark.parametrize("query", [[], [""], ["", ""]])
@pytest.mark.parametrize("websocket", [False, True])
def test_empty_is_anonymous(headers: list[str], query: list[str], websocket: bool) -> None:
    assert from_request(headers, query, websocket=websocket) is None


@pytest.mark.parametrize("query", [["T"], ["T", "U"], ["\0" * 9], ["x" * (MAX_CREDENTIAL + 1)]])
def test_query_tokens_are_ignored_on_rest(query: list[str]) -> None:
    assert from_request([], query, websocket=False) is None
    assert from_request(["token H"], query, websocket=False) == "H"


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        (["token A", "token B"], []),
        (["token A", "Bearer B"], []),
        (["token A"], ["B"]),
        (["token A"], ["A", "B"]),
        (["token A"], ["a"]),
        ([], ["A", "B"]),
        (["token "], ["A", "B"]),
    ],
)
def test_credentials_that_disagree(headers: list[str], query: list[str]) -> None:
    with pytest.raises(Unauthorized):
        from_request(headers, query, websocket=True)


@pytest.mark.parametrize(
    "header",
    [
        "T",
        "Basic dXNlcjpwYXNz",
        "Digest username=x",
        "tokenT",
        "tokens T",
        "token:T",
        "token=T",
        "token\tT",
        "token\u00a0T",
        "token\nT",
        "token T\r\nX-Evil: 1",
        "token T U",
        "token T, token T",
        "token T\0",
        "token \u00e9",
        "token \ud800",
        "token \u212a",  # the Kelvin sign, which folds to k
        "to\u212aen T",
        "Bearer token T",
        "xtoken T",
        "token T\n",
        "token " + "x" * (MAX_CREDENTIAL + 1),
    ],
)
@pytest.mark.parametrize("websocket", [False, True])
def test_unreadable_header(header: str, websocket: bool) -> None:
    with pytest.raises(Unauthorized):
        from_request([header], [], websocket=websocket)


@pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "token A B"])
def test_an_unreadable_header_is_not_overruled_by_a_good_credential(header: str) -> None:
    with pytest.raises(Unauthorized):
        from_request([header], ["T"], websocket=True)
    with pytest.raises(Unauthorized):
        from_request([header, "token T"], [], websocket=False)


@pytest.mark.parametrize(
    "token", [" T", "T ", "T\n", "a b", "\0", "\u00e9", "\ud800", "x" * (MAX_CREDENTIAL + 1)]
)
def test_unreadable_query_token(token: str) -> None:
    with pytest.raises(Unauthorized):
        from_request([], [token], websocket=True)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        (["Basic S3cr3t"], []),
        (["token S3cr3t", "token S3cr3t2"], []),
        (["token S3cr3t x"], []),
        ([], ["S3cr3t\n"]),
        ([], ["S3cr3t", "other"]),
    ],
)
def test_a_refusal_does_not_repeat_the_credential(headers: list[str], query: list[str]) -> None:
    with pytest.raises(Unauthorized) as caught:
        from_request(headers, query, websocket=True)
    assert "S3cr3t" not in caught.value.message


@given(st.lists(st.text(max_size=30), max_size=3), st.lists(st.text(max_size=30), max_size=3))
def test_result_is_one_of_what_was_shown(headers: list[str], query: list[str]) -> None:
    try:
        found = from_request(headers, query, websocket=True)
    except Unauthorized:
        return
    if found is not None:
        assert found in query or any(header.strip(" \t").endswith(found) for header in headers)
        assert found.isascii()
        assert found.isprintable()


# Tokens in subprotocols (JEP 121)

T = TOKEN_PROTOCOL


@pytest.mark.parametrize(
    "protocols",
    [
        [f"{T}.S"],
        [f"{T}, {T}.S"],
        [T, f"{T}.S"],
        [f"v1.kernel.websocket.jupyter.org,\t{T}.S ,{T}"],
        [f"{T}.S", f"{T}.S"],
        [f"{T}.%53"],
        [f"{T}.S, {T}."],
    ],
)
def test_a_token_in_a_subprotocol(protocols: list[str]) -> None:
    assert from_request([], [], protocols, websocket=True) == "S"
    assert from_request(["token S"], ["S"], protocols, websocket=True) == "S"
    assert from_request([], [], protocols, websocket=False) is None


@pytest.mark.parametrize(
    "protocols",
    [
        [],
        [""],
        [","],
        [T],
        [f"{T}."],
        [f"{T}S"],
        [f"x{T}.S"],
        [f"{T.upper()}.S"],
        ["v2.token.websocket.jupyter.org.S"],
        ["base64url.bearer.authorization.k8s.io.Uw"],
    ],
)
def test_subprotocols_without_a_token(protocols: list[str]) -> None:
    assert from_request([], [], protocols, websocket=True) is None


@pytest.mark.parametrize(
    ("headers", "query", "protocols"),
    [
        (["token A"], [], [f"{T}.B"]),
        ([], ["A"], [f"{T}.B"]),
        ([], [], [f"{T}.A, {T}.B"]),
        ([], [], [f"{T}.A", f"{T}.B"]),
        (["token A"], ["A"], [f"{T}.a"]),
        ([], [], [f"{T}.S3cr3t%20x"]),
        ([], [], [f"{T}.S3cr3t%00"]),
        ([], [], [f"{T}.S3cr3t%FF"]),
        ([], [], [f"{T}.S3cr3t%0d%0aX: 1"]),
        ([], [], [f"{T}." + "x" * (MAX_CREDENTIAL + 1)]),
    ],
)
def test_subprotocols_that_disagree_or_cannot_be_read(
    headers: list[str], query: list[str], protocols: list[str]
) -> None:
    with pytest.raises(Unauthorized) as caught:
        from_request(headers, query, protocols, websocket=True)
    assert "S3cr3t" not in caught.value.message


def test_the_others_are_left_to_choose_from() -> None:
    assert without_token([f"a, {T}.S", T, f" {T}.%53,b"]) == ["a", T, "b"]
