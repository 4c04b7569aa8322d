from __future__ import annotations

import pytest

from relay.auth.policy import Action, Policy, Rule
from relay.errors import Forbidden, NotFound
from relay.model import Principal

ALICE = Principal("token", "alice")
EVERY = frozenset(Action)


def test_the_actions_have_their_names() -> None:
    assert list(Action) == ["list", "start", "use", "view", "interrupt", "stop", "admin"]


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("cluster", ["alpha", "beta"])
def test_allow_all_allows_whom_the_authenticator_knows(action: Action, cluster: str) -> None:
    Policy.allow_all("token").authorise(ALICE, cluster, action)


def test_rules_add_up() -> None:
    policy = Policy(
        [
            Rule(authenticator="token", subject="alice", actions=frozenset({Action.LIST})),
            Rule(authenticator="token", cluster="alpha", actions=frozenset({Action.START})),
        ]
    )
    assert policy.actions(ALICE, "alpha") == {Action.LIST, Action.START}
    assert policy.actions(ALICE, "beta") == {Action.LIST}
    assert policy.actions(Principal("token", "bob"), "alpha") == {Action.START}


@pytest.mark.parametrize("action", Action)
def test_no_rule_grants_nothing(action: Action) -> None:
    with pytest.raises(NotFound):
        Policy().authorise(ALICE, "alpha", action)


@pytest.mark.parametrize("granted", Action)
@pytest.mark.parametrize("wanted", Action)
def test_no_action_implies_another(granted: Action, wanted: Action) -> None:
    policy = Policy([Rule(authenticator="token", actions=frozenset({granted}))])
    if wanted is granted:
        policy.authorise(ALICE, "alpha", wanted)
    else:
        with pytest.raises(Forbidden):
            policy.authorise(ALICE, "alpha", wanted)


@pytest.mark.parametrize(
    "principal",
    [
        Principal("jwt", "alice"),
        Principal("", "alice"),
        Principal("Token", "alice"),
        Principal("toke", "alice"),
        Principal("token2", "alice"),
        Principal("token:", "alice"),
        Principal("token\n", "alice"),
    ],
)
def test_another_authenticator_is_another_person(principal: Principal) -> None:
    with pytest.raises(NotFound):
        Policy.allow_all("token").authorise(principal, "alpha", Action.LIST)


@pytest.mark.parametrize("subject", ["", "Alice", "alic", "alice2", "alice ", "alice\n", "*", "."])
def test_a_subject_matches_exactly(subject: str) -> None:
    policy = Policy([Rule(authenticator="token", subject="alice", actions=EVERY)])
    with pytest.raises(NotFound):
        policy.authorise(Principal("token", subject), "alpha", Action.LIST)


@pytest.mark.parametrize("cluster", ["", "Alpha", "alph", "alpha2", "alpha/", "alpha\n", "*", "."])
def test_a_cluster_matches_exactly(cluster: str) -> None:
    policy = Policy([Rule(authenticator="token", cluster="alpha", actions=EVERY)])
    with pytest.raises(NotFound):
        policy.authorise(ALICE, cluster, Action.LIST)


@pytest.mark.parametrize("empty", [{"subject": ""}, {"cluster": ""}])
def test_an_empty_field_is_no_wildcard(empty: dict[str, str]) -> None:
    policy = Policy([Rule(authenticator="token", actions=EVERY, **empty)])
    with pytest.raises(NotFound):
        policy.authorise(ALICE, "alpha", Action.LIST)


def test_a_rule_without_actions_does_not_even_show_the_cluster() -> None:
    policy = Policy([Rule(authenticator="token", actions=frozenset())])
    with pytest.raises(NotFound):
        policy.authorise(ALICE, "alpha", Action.LIST)


def test_a_refusal_does_not_name_the_cluster() -> None:
    with pytest.raises(NotFound) as caught:
        Policy().authorise(ALICE, "secret-cluster", Action.LIST)
    assert "secret-cluster" not in caught.value.message
