from __future__ import annotations

from typing import Any

import pytest

from tests.cli.checks.conftest import Place

LIST = {"authenticator": "token", "actions": ["list"]}


def test_nothing_is_said_of_what_is_right(place: Place, look: Any) -> None:
    admin = {"authenticator": "token", "user": "root", "actions": ["admin"]}
    place.edge["policy"] = {"rules": [LIST, {**LIST, "clusters": ["alpha"]}, admin]}
    assert look(place.edge_config()) == []


@pytest.mark.parametrize(
    ("rules", "paths"),
    [
        ([], ["policy.rules"]),
        ([{**LIST, "actions": []}], ["policy.rules", "policy.rules.0.actions"]),
        ([LIST, {**LIST, "actions": ["admin"]}], ["policy.rules.1.actions"]),
        ([LIST, {**LIST, "clusters": ["alpha", "gamma"]}], ["policy.rules.1.clusters"]),
    ],
)
def test_rules_that_grant_nothing_or_too_much(
    place: Place, look: Any, rules: list[Any], paths: list[str]
) -> None:
    place.edge["policy"] = {"rules": rules}
    assert look(place.edge_config()) == [("warning", path) for path in paths]
    place.up["policy"] = {"rules": rules}
    assert look(place.up_config()) == [("warning", path) for path in paths]


@pytest.mark.parametrize("restriction", [{"user": "u"}, {"group": "g"}, {"scope": "s"}])
def test_some_admins_are_nothing_to_warn_of(place: Place, look: Any, restriction: Any) -> None:
    place.edge["policy"] = {"rules": [{**LIST, "actions": ["list", "admin"], **restriction}]}
    assert look(place.edge_config()) == []


def test_the_rules_that_relay_up_has_by_itself_are_fine(place: Place, look: Any) -> None:
    assert look(place.up_config()) == []
