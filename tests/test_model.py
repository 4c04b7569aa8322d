from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Principal, jupyter_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_800_000_000, "2027-01-15T08:00:00.000000Z"),
        (1.5, "1970-01-01T00:00:01.500000Z"),
    ],
)
def test_jupyters_time(seconds: float, text: str) -> None:
    assert jupyter_time(seconds) == text


@given(st.integers(0, 4_000_000_000_000_000))
def test_the_gateway_client_can_parse_any_time(microseconds: int) -> None:
    text = jupyter_time(microseconds / 1_000_000)
    parsed = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert abs(parsed.timestamp() - microseconds / 1_000_000) < 2e-6


@pytest.mark.parametrize("subject", ["ada", "a:b", ":", "\u00e9 x"])
def test_a_principal_comes_back(subject: str) -> None:
    principal = Principal("token", subject)
    assert Principal.parse(str(principal)) == principal


def test_two_authenticators_know_two_people() -> None:
    assert Principal("token", "ada") != Principal("jwt", "ada")
    assert str(Principal("token", "ada")) != str(Principal("jwt", "ada"))


@pytest.mark.parametrize("text", ["", "ada", ":", ":ada", "token:"])
def test_half_a_principal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="authenticator:subject"):
        Principal.parse(text)
