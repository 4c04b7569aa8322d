from __future__ import annotations

from typing import Any

import pytest

from relay.auth.chain import AuthenticatorChain
from relay.errors import Unauthorized
from relay.model import Identity, Principal

NOW = 1_800_000_000.0
ALICE = Identity(
    principal=Principal("first", "alice"),
    via="first",
    groups=frozenset({"staff"}),
    scopes=frozenset({"read"}),
    clusters=frozenset({"alpha"}),
    expires=NOW + 1,
    credential="1",
)
IN_TRUTH = Principal("second", "al")


def somebody(authenticator: str, subject: str) -> Identity:
    return Identity(principal=Principal(authenticator, subject), via=authenticator)


class Knows:
    """Knows one credential, and remembers what it was asked."""

    def __init__(self, credential: str, identity: Identity) -> None:
        self.credential = credential
        self.identity = identity
        self.asked: list[tuple[str, float]] = []

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        self.asked.append((credential, now))
        return self.identity if credential == self.credential else None


class Raises:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        raise self.error


async def test_the_first_that_knows_decides() -> None:
    second = Knows("T", somebody("second", "mallory"))
    assert await AuthenticatorChain([Knows("T", ALICE), second]).authenticate("T", NOW) == ALICE
    assert second.asked == []


async def test_the_next_is_asked_when_one_does_not_know() -> None:
    first = Knows("U", somebody("second", "bob"))
    assert await AuthenticatorChain([first, Knows("T", ALICE)]).authenticate("T", NOW) == ALICE
    assert first.asked == [("T", NOW)]


@pytest.mark.parametrize("credential", [None, "", "U", "t", "T "])
async def test_nobody_knows_it(credential: str | None) -> None:
    with pytest.raises(Unauthorized):
        await AuthenticatorChain([Knows("T", ALICE)]).authenticate(credential, NOW)


@pytest.mark.parametrize("credential", [None, "", "T"])
async def test_an_empty_chain_refuses_everybody(credential: str | None) -> None:
    for chain in (AuthenticatorChain([]), AuthenticatorChain([], {ALICE.principal: IN_TRUTH})):
        with pytest.raises(Unauthorized):
            await chain.authenticate(credential, NOW)


@pytest.mark.parametrize("credential", [None, ""])
async def test_no_authenticator_is_asked_about_nothing(credential: str | None) -> None:
    careless = Knows("", ALICE)
    with pytest.raises(Unauthorized):
        await AuthenticatorChain([careless]).authenticate(credential, NOW)
    assert careless.asked == []


async def test_no_credential_and_a_wrong_one_are_refused_alike() -> None:
    messages = set()
    for credential in (None, "", "wrong"):
        with pytest.raises(Unauthorized) as caught:
            await AuthenticatorChain([Knows("T", ALICE)]).authenticate(credential, NOW)
        messages.add(caught.value.message)
    assert len(messages) == 1


@pytest.mark.parametrize("error", [Unauthorized("expired"), RuntimeError("broken")])
async def test_an_error_is_not_passed_over(error: Exception) -> None:
    laxer = Knows("T", ALICE)
    with pytest.raises(type(error)):
        await AuthenticatorChain([Raises(error), laxer]).authenticate("T", NOW)
    assert laxer.asked == []


# Aliases


async def test_an_alias_changes_who_it_is_and_nothing_else() -> None:
    chain = AuthenticatorChain([Knows("T", ALICE)], {ALICE.principal: IN_TRUTH})
    found = await chain.authenticate("T", NOW)
    assert found.principal == IN_TRUTH
    # Groups and scopes stay names of the one that vouches for them.
    kept = ("via", "groups", "scopes", "clusters", "expires", "credential")
    assert [getattr(found, each) for each in kept] == [getattr(ALICE, each) for each in kept]


@pytest.mark.parametrize(
    "other",
    [
        Principal("second", "alice"),
        Principal("first", "al"),
        Principal("first", "Alice"),
        Principal("First", "alice"),
        Principal("first", "alice "),
        Principal("first", "alice2"),
        Principal("first", ""),
        Principal("first", "*"),
        Principal("", "alice"),
        Principal("", "first:alice"),
    ],
)
async def test_an_alias_is_of_one_principal_exactly(other: Principal) -> None:
    chain = AuthenticatorChain([Knows("T", ALICE)], {other: IN_TRUTH})
    assert await chain.authenticate("T", NOW) == ALICE


async def test_an_alias_does_not_work_backwards() -> None:
    chain = AuthenticatorChain([Knows("T", ALICE)], {IN_TRUTH: ALICE.principal})
    assert await chain.authenticate("T", NOW) == ALICE


async def test_an_alias_leads_to_no_further_one() -> None:
    further = {ALICE.principal: IN_TRUTH, IN_TRUTH: Principal("third", "root")}
    assert (
        await AuthenticatorChain([Knows("T", ALICE)], further).authenticate("T", NOW)
    ).principal == IN_TRUTH
    round_about = {ALICE.principal: IN_TRUTH, IN_TRUTH: ALICE.principal}
    found = await AuthenticatorChain([Knows("T", ALICE)], round_about).authenticate("T", NOW)
    assert found.principal == IN_TRUTH


async def test_aliases_are_read_once() -> None:
    aliases = {Principal("first", "bob"): IN_TRUTH}
    chain = AuthenticatorChain([Knows("T", ALICE)], aliases)
    aliases[ALICE.principal] = IN_TRUTH
    assert await chain.authenticate("T", NOW) == ALICE


@pytest.mark.parametrize("credential", [None, "", "U"])
async def test_an_alias_lets_nobody_in(credential: str | None) -> None:
    aliases: dict[Any, Any] = {ALICE.principal: IN_TRUTH, None: IN_TRUTH}
    with pytest.raises(Unauthorized):
        await AuthenticatorChain([Knows("T", ALICE)], aliases).authenticate(credential, NOW)
