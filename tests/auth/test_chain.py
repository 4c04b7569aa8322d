from __future__ import annotations

import pytest

from relay.auth.chain import Authenticator, Chain
from relay.auth.tokens import TokenStore, generate
from relay.errors import Unauthorized
from relay.model import Principal

NOW = 1_800_000_000.0
ALICE = Principal("first", "alice")


class Knows:
    """Knows one credential, and remembers what it was asked."""

    def __init__(self, credential: str, principal: Principal) -> None:
        self.credential = credential
        self.principal = principal
        self.asked: list[tuple[str, float]] = []

    def authenticate(self, credential: str, now: float) -> Principal | None:
        self.asked.append((credential, now))
        return self.principal if credential == self.credential else None


class Raises:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def authenticate(self, credential: str, now: float) -> Principal | None:
        raise self.error


def test_the_first_that_knows_decides() -> None:
    second = Knows("T", Principal("second", "mallory"))
    assert Chain([Knows("T", ALICE), second]).authenticate("T", NOW) == ALICE
    assert second.asked == []


def test_the_next_is_asked_when_one_does_not_know() -> None:
    first = Knows("U", Principal("second", "bob"))
    assert Chain([first, Knows("T", ALICE)]).authenticate("T", NOW) == ALICE
    assert first.asked == [("T", NOW)]


def test_a_token_store_is_an_authenticator() -> None:
    token, record = generate("alice", NOW)
    store: Authenticator = TokenStore([record])
    assert Chain([store]).authenticate(token, NOW) == Principal("token", "alice")


@pytest.mark.parametrize("credential", [None, "", "U", "t", "T "])
def test_nobody_knows_it(credential: str | None) -> None:
    with pytest.raises(Unauthorized):
        Chain([Knows("T", ALICE)]).authenticate(credential, NOW)


@pytest.mark.parametrize("credential", [None, "", "T"])
def test_an_empty_chain_refuses_everybody(credential: str | None) -> None:
    with pytest.raises(Unauthorized):
        Chain([]).authenticate(credential, NOW)


@pytest.mark.parametrize("credential", [None, ""])
def test_no_authenticator_is_asked_about_nothing(credential: str | None) -> None:
    careless = Knows("", ALICE)
    with pytest.raises(Unauthorized):
        Chain([careless]).authenticate(credential, NOW)
    assert careless.asked == []


def test_no_credential_and_a_wrong_one_are_refused_alike() -> None:
    messages = set()
    for credential in (None, "", "wrong"):
        with pytest.raises(Unauthorized) as caught:
            Chain([Knows("T", ALICE)]).authenticate(credential, NOW)
        messages.add(caught.value.message)
    assert len(messages) == 1


@pytest.mark.parametrize("error", [Unauthorized("expired"), RuntimeError("broken")])
def test_an_error_is_not_passed_over(error: Exception) -> None:
    laxer = Knows("T", ALICE)
    with pytest.raises(type(error)):
        Chain([Raises(error), laxer]).authenticate("T", NOW)
    assert laxer.asked == []
