from __future__ import annotations

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.base64url import decode, is_canonical

ALPHABET = string.ascii_letters + string.digits + "-_"


@given(st.binary(max_size=40))
def test_what_is_encoded_is_canonical_and_comes_back(data: bytes) -> None:
    segment = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    assert is_canonical(segment)
    assert decode(segment) == data


@pytest.mark.parametrize("segment", ["A", "AAAAA", "AB", "Af", "AAB", "AAAAAB"])
def test_no_second_spelling_is(segment: str) -> None:
    assert not is_canonical(segment)


@given(st.text(ALPHABET, max_size=20), st.text(ALPHABET, max_size=20))
def test_two_texts_never_stand_for_the_same_bytes(one: str, other: str) -> None:
    if one != other and is_canonical(one) and is_canonical(other):
        assert decode(one) != decode(other)
