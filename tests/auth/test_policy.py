from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.policy import Action, Policy, Rights, Rule
from relay.errors import Forbidden, NotFound
from relay.model import Identity, Principal

EVERY = frozenset(Action)
LIST = frozenset({Action.LIST})
NAMES = ["", "Staff", "staf", "staff2", "staff ", "staff\n", "*", ".", "token:staff"]
"""What nobody may take for "staff"."""


def identity(subject: str = "alice", via: str = "token", **fields: Any) -> Identity:
    """Somebody whom ``via`` knows by this name."""
    return Identity(**{"principal": Principal(via, subject), "via": via, **fields})


ALICE = identity()
IN_TRUTH_ALICE = identity(principal=Principal("token", "alice"), via="corp")
"""An alias made her so: corp vouches for what is token's user."""


def policy(**fields: Any) -> Policy:
    """One rule of the authenticator ``token`` for every action, but for the fields."""
    return Policy([Rule(**{"authenticator": "token", "actions": EVERY, **fields})])


def authorise(policy: Policy, cluster: str, actions: Collection[Action]) -> Rights:
    """What Alice may do on a cluster, if any of ``actions`` is among it."""
    rights = policy.admit(ALICE, cluster)
    rights.require(actions)
    return rights


def may(policy: Policy, identity: Identity = ALICE, cluster: str = "alpha") -> bool:
    """Whether everything is granted; otherwise it must be nothing, not even the cluster's name."""
    try:
        rights = policy.admit(identity, cluster)
        rights.require(LIST)
    except NotFound:
        assert policy.rights(identity, cluster) == Rights()
        return False
    assert rights == policy.rights(identity, cluster)
    assert set(rights.kernelspecs) == EVERY
    return True


def test_the_actions_have_their_names() -> None:
    assert list(Action) == ["list", "start", "use", "view", "interrupt", "stop", "admin"]


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("cluster", ["alpha", "beta"])
def test_a_bare_rule_is_for_whom_the_authenticator_knows(action: Action, cluster: str) -> None:
    assert authorise(policy(), cluster, {action}).allows(action, "python3")


def test_rules_add_up() -> None:
    policy = Policy(
        [
            Rule(authenticator="token", user="alice", actions=LIST),
            Rule(
                authenticator="token",
                clusters=frozenset({"alpha"}),
                actions=frozenset({Action.START}),
            ),
        ]
    )
    assert policy.rights(ALICE, "alpha") == Rights({Action.LIST: None, Action.START: None})
    assert policy.rights(ALICE, "beta") == Rights({Action.LIST: None})
    assert policy.rights(identity("bob"), "alpha") == Rights({Action.START: None})


@pytest.mark.parametrize("action", Action)
def test_no_rule_grants_nothing(action: Action) -> None:
    with pytest.raises(NotFound):
        authorise(Policy(), "alpha", {action})


@pytest.mark.parametrize("granted", Action)
@pytest.mark.parametrize("wanted", Action)
def test_no_action_implies_another(granted: Action, wanted: Action) -> None:
    only = policy(actions=frozenset({granted}))
    if wanted is granted:
        assert authorise(only, "alpha", {wanted}) == Rights({granted: None})
    else:
        with pytest.raises(Forbidden):
            authorise(only, "alpha", {wanted})


def test_any_one_of_the_actions_will_do() -> None:
    only = policy(actions=frozenset({Action.VIEW}))
    assert authorise(only, "alpha", {Action.USE, Action.VIEW}) == Rights({Action.VIEW: None})
    for wanted in (set[Action](), {Action.USE}, EVERY - {Action.VIEW}):
        with pytest.raises(Forbidden):
            authorise(only, "alpha", wanted)


# Whom a rule is for


@pytest.mark.parametrize("name", ["jwt", "", "Token", "toke", "token2", "token:", "token\n"])
def test_another_authenticator_is_another_person(name: str) -> None:
    assert may(policy())
    assert not may(policy(), identity(via=name))
    assert not may(policy(user="alice"), identity(via=name))


@pytest.mark.parametrize("subject", ["", "Alice", "alic", "alice2", "alice ", "alice\n", "*", "."])
def test_a_user_matches_exactly(subject: str) -> None:
    assert may(policy(user="alice"))
    assert not may(policy(user="alice"), identity(subject))
    assert not may(policy(user=subject))


@pytest.mark.parametrize("cluster", ["", "Alpha", "alph", "alpha2", "alpha/", "alpha\n", "*", "."])
def test_a_cluster_matches_exactly(cluster: str) -> None:
    only = policy(clusters=frozenset({"alpha", "gamma"}))
    assert may(only)
    assert may(only, cluster="gamma")
    assert not may(only, cluster=cluster)


@pytest.mark.parametrize("name", NAMES)
def test_a_group_matches_exactly(name: str) -> None:
    only = policy(group="staff")
    assert may(only, identity(groups=frozenset({"staff", "others"})))
    assert not may(only, identity(groups=frozenset({name})))
    assert not may(policy(group=name), identity(groups=frozenset({"staff"})))


def test_who_is_in_no_group_is_not_in_one() -> None:
    assert not may(policy(group="staff"))
    assert not may(policy(group="staff"), identity("staff"))
    assert not may(policy(group="staff"), identity(scopes=frozenset({"staff"})))


@pytest.mark.parametrize(
    ("user", "groups"),
    [("bob", {"staff"}), ("alice", set[str]()), ("alice", {"others"}), ("bob", {"others"})],
)
def test_a_rule_with_a_user_and_a_group_takes_both(user: str, groups: set[str]) -> None:
    only = policy(user="alice", group="staff")
    assert may(only, identity(groups=frozenset({"staff"})))
    assert not may(only, identity(user, groups=frozenset(groups)))


@pytest.mark.parametrize("name", NAMES)
def test_a_scope_matches_exactly(name: str) -> None:
    only = policy(scope="staff")
    assert may(only, identity(scopes=frozenset({"staff", "others"})))
    assert not may(only, identity(scopes=frozenset({name})))
    assert not may(policy(scope=name), identity(scopes=frozenset({"staff"})))


@pytest.mark.parametrize("fields", [{}, {"user": "alice"}, {"group": "staff"}])
def test_a_credential_with_scopes_needs_rules_that_name_one(fields: dict[str, str]) -> None:
    groups = frozenset({"staff"})
    limited = identity(groups=groups, scopes=frozenset({"read"}))
    assert may(policy(**fields), identity(groups=groups))
    assert not may(policy(**fields), limited)
    assert not may(policy(**fields, scope="write"), limited)
    assert may(policy(**fields, scope="read"), limited)


@pytest.mark.parametrize("fields", [{}, {"user": "alice"}, {"group": "staff"}])
def test_a_rule_with_a_scope_is_not_for_a_credential_without(fields: dict[str, str]) -> None:
    groups = frozenset({"staff", "read"})
    assert not may(policy(**fields, scope="read"), identity(groups=groups))
    assert not may(policy(**fields, scope=""), identity(groups=groups))


def test_scopes_add_up_and_lend_each_other_nothing() -> None:
    rules = [
        Rule(authenticator="token", actions=EVERY),
        Rule(authenticator="token", scope="see", actions=LIST),
        Rule(authenticator="token", scope="run", actions=frozenset({Action.START})),
    ]

    def granted(*scopes: str) -> set[Action]:
        limited = identity(scopes=frozenset(scopes))
        return set(Policy(rules).rights(limited, "alpha").kernelspecs)

    assert granted("see") == {Action.LIST}
    assert granted("see", "run") == {Action.LIST, Action.START}
    assert granted("see", "fly") == {Action.LIST}
    assert granted("fly") == set()
    assert granted() == EVERY


@pytest.mark.parametrize("field", ["group", "scope"])
@pytest.mark.parametrize("via", ["corp", "", "Token", "token2"])
def test_names_of_another_authenticator_are_others(field: str, via: str) -> None:
    held: dict[str, Any] = {f"{field}s": frozenset({"staff"})}
    only = policy(**{field: "staff"})
    assert may(only, identity(**held))
    assert not may(only, identity(via=via, **held))


# Who is somebody else in truth


def test_a_rule_for_a_user_is_for_who_is_that_user_in_truth() -> None:
    assert may(policy(user="alice"), IN_TRUTH_ALICE)
    assert not may(policy(user="bob"), IN_TRUTH_ALICE)
    # Of corp's names there is none left to speak of.
    assert not may(policy(authenticator="corp", user="alice"), IN_TRUTH_ALICE)


def test_a_rule_for_everybody_is_for_those_whom_the_authenticator_itself_lets_in() -> None:
    assert not may(policy(), IN_TRUTH_ALICE)
    assert may(policy(authenticator="corp"), IN_TRUTH_ALICE)


@pytest.mark.parametrize("fields", [{}, {"user": "alice"}])
@pytest.mark.parametrize("field", ["group", "scope"])
def test_an_alias_carries_no_groups_and_scopes_over(field: str, fields: dict[str, str]) -> None:
    held: dict[str, Any] = {f"{field}s": frozenset({"staff"})}
    aliased = msgspec.structs.replace(IN_TRUTH_ALICE, **held)
    assert not may(policy(**{field: "staff"}, **fields), aliased)
    assert may(policy(**{field: "staff"}, **fields), identity(**held))
    # Corp's groups remain corp's, whoever she is.
    assert may(policy(**{field: "staff"}, authenticator="corp"), aliased)


def test_a_credential_with_scopes_stays_limited_under_an_alias() -> None:
    limited = msgspec.structs.replace(IN_TRUTH_ALICE, scopes=frozenset({"read"}))
    assert not may(policy(user="alice"), limited)
    assert not may(policy(user="alice", scope="read"), limited)


# Clusters


@pytest.mark.parametrize("clusters", [set[str](), {"beta"}, {"Alpha"}, {"alpha "}, {""}, {"*"}])
def test_a_credential_is_good_for_its_clusters_only(clusters: set[str]) -> None:
    limited = identity(clusters=frozenset(clusters))
    assert not may(policy(), limited)
    assert not may(policy(clusters=frozenset({"alpha"})), limited)


def test_a_credentials_clusters_grant_nothing() -> None:
    limited = identity(clusters=frozenset({"alpha"}))
    assert may(policy(), limited)
    assert not may(policy(clusters=frozenset({"beta"})), limited)
    assert not may(policy(clusters=frozenset({"beta"})), limited, cluster="beta")
    assert not may(Policy(), limited)


@pytest.mark.parametrize(
    "empty", [{"user": ""}, {"group": ""}, {"clusters": frozenset({""})}, {"clusters": frozenset()}]
)
def test_an_empty_field_is_no_wildcard(empty: dict[str, Any]) -> None:
    assert not may(policy(**empty))
    assert not may(policy(**empty), identity(groups=frozenset({"staff"})))


def test_a_rule_without_actions_does_not_even_show_the_cluster() -> None:
    with pytest.raises(NotFound):
        authorise(policy(actions=frozenset()), "alpha", LIST)


def test_a_refusal_does_not_name_the_cluster() -> None:
    with pytest.raises(NotFound) as caught:
        authorise(Policy(), "secret-cluster", LIST)
    assert "secret-cluster" not in caught.value.message


# Kernelspecs


STARTING = frozenset({Action.START})


def specs(*rules: set[str] | None) -> Rights:
    """What rules for these kernelspecs grant together."""
    made = (
        Rule(
            authenticator="token",
            actions=STARTING,
            kernelspecs=None if names is None else frozenset(names),
        )
        for names in rules
    )
    return Policy(made).rights(ALICE, "alpha")


@pytest.mark.parametrize("name", ["", "Python3", "python", "python33", "python3\n", "*", "."])
def test_a_kernelspec_matches_exactly(name: str) -> None:
    rights = specs({"python3", "ir"})
    assert rights.allows(Action.START, "python3")
    assert rights.allows(Action.START, "ir")
    assert not rights.allows(Action.START, name)


@pytest.mark.parametrize("action", sorted(EVERY - STARTING))
def test_a_kernelspec_is_granted_for_the_rules_actions_only(action: Action) -> None:
    assert not specs({"python3"}).allows(action, "python3")
    assert not specs(None).allows(action, "python3")


def test_kernelspecs_add_up() -> None:
    assert specs({"python3"}, {"ir"}) == Rights({Action.START: frozenset({"python3", "ir"})})
    assert specs({"python3"}, set()) == Rights({Action.START: frozenset({"python3"})})


@pytest.mark.parametrize("rules", [[None, {"ir"}], [{"ir"}, None], [None, None], [set(), None]])
def test_all_kernelspecs_are_more_than_some(rules: list[set[str] | None]) -> None:
    assert specs(*rules) == Rights({Action.START: None})


def test_no_kernelspecs_are_none_and_not_all() -> None:
    assert not specs(set()).allows(Action.START, "python3")
    assert not specs(set()).allows(Action.START, "")


def test_kernelspecs_of_one_action_are_no_others() -> None:
    rules = [
        Rule(authenticator="token", actions=STARTING, kernelspecs=frozenset({"ir"})),
        Rule(authenticator="token", actions=frozenset({Action.USE})),
        Rule(authenticator="token", user="bob", actions=STARTING),
        Rule(authenticator="token", clusters=frozenset({"beta"}), actions=STARTING),
    ]
    rights = Policy(rules).rights(ALICE, "alpha")
    assert rights == Rights({Action.START: frozenset({"ir"}), Action.USE: None})


@given(st.lists(st.none() | st.frozensets(st.sampled_from("abc")), max_size=4))
def test_what_the_rules_cover_is_what_one_of_them_does(
    rules: list[frozenset[str] | None],
) -> None:
    together = specs(*(None if each is None else set(each) for each in rules))
    for name in "abcd":
        expected = any(each is None or name in each for each in rules)
        assert together.allows(Action.START, name) == expected


@pytest.mark.parametrize("kernelspecs", [frozenset(), frozenset({"python3"}), frozenset({"*"})])
@pytest.mark.parametrize("actions", [EVERY, frozenset({Action.ADMIN})])
def test_nobody_is_admin_of_some_kernelspecs(
    kernelspecs: frozenset[str], actions: frozenset[Action]
) -> None:
    with pytest.raises(ValueError, match="admin"):
        Rule(authenticator="token", actions=actions, kernelspecs=kernelspecs)
    Rule(authenticator="token", actions=actions - {Action.ADMIN}, kernelspecs=kernelspecs)


# Rights


def test_no_rights_are_false_and_cover_nothing() -> None:
    assert not Rights()
    assert not Rights({})
    assert not any(Rights().allows(action, name) for action in Action for name in ("", "python3"))
    assert Rights({Action.LIST: None})


def test_rights_among_actions_are_those_and_no_more() -> None:
    rights = Rights({Action.USE: None, Action.START: frozenset({"ir"})})
    assert rights.restricted_to(EVERY) == rights
    assert rights.restricted_to({Action.START, Action.STOP}) == Rights(
        {Action.START: frozenset({"ir"})}
    )
    assert not rights.restricted_to(())
    assert not rights.restricted_to(EVERY - {Action.USE, Action.START})
    assert not Rights().restricted_to(EVERY)
    assert set(rights.kernelspecs) == {Action.USE, Action.START}
