from __future__ import annotations

from pathlib import Path

import pytest

from relay.auth.policy import Action, Rule
from relay.config import ConfigError, EdgeConfig, UpConfig, load
from tests.config.files import AUTHENTICATION, EDGE, NAME, edge, problems


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("actions: [list]", ".authenticator: is required"),
        ("authenticator: token", ".actions: is required"),
        ("authenticator: null, actions: [list]", ".authenticator: expected text, got null"),
        ("authenticator: '*', actions: [list]", ".authenticator: expected text that matches"),
        ("authenticator: '', actions: [list]", ".authenticator: expected text that matches"),
        ("authenticator: 'a:b', actions: [list]", ".authenticator: expected text that matches"),
        ("authenticator: token, actions: null", ".actions: expected a list"),
        ("authenticator: token, actions: list", ".actions: expected a list"),
        ("authenticator: token, actions: [fly]", ".actions.0: 'fly' is not one of"),
        ("authenticator: token, actions: [list, LIST]", ".actions.1: 'LIST' is not one of"),
        ("authenticator: token, actions: ['*']", ".actions.0: '*' is not one of"),
        ("authenticator: token, actions: [null]", ".actions.0: expected text, got null"),
        ("authenticator: token, actions: [admin], kernelspecs: [ir]", ": admin is for a whole"),
        ("authenticator: token, actions: [use, admin], kernelspecs: []", ": admin is for a whole"),
        ("authenticator: token, actions: [use], kernelspecs: ir", ".kernelspecs: expected a list"),
        ("authenticator: token, actions: [use], kernelspecs: ['*']", ".kernelspecs.0: expected"),
        ("authenticator: token, actions: [use], kernelspecs: [a/b]", ".kernelspecs.0: expected"),
        ("authenticator: token, actions: [use], clusters: alpha", ".clusters: expected a list"),
        ("authenticator: token, actions: [use], clusters: ['*']", f".clusters.0: {NAME}"),
        ("authenticator: token, actions: [use], clusters: [Alpha]", f".clusters.0: {NAME}"),
        (
            "authenticator: token, actions: [use], user: ''",
            ".user: expected 1 to 255 print",
        ),
        ("authenticator: token, actions: [use], user: 'a '", ".user: expected 1 to 255 printable"),
        (
            'authenticator: token, actions: [use], user: "a\\u202e"',
            ".user: expected 1 to 255 printable",
        ),
        ("authenticator: token, actions: [use], group: ''", ".group: expected 1 to 255 printable"),
        ("authenticator: token, actions: [use], group: [a]", ".group: expected text, got"),
        ('authenticator: token, actions: [use], scope: " "', ".scope: expected 1 to 255 printable"),
        ("authenticator: token, actions: [use], subject: a", ".subject: no such setting"),
        ("authenticator: token, actions: [use], cluster: a", ".cluster: no such setting"),
    ],
)
def test_mistakes_in_a_rule(file: Path, rule: str, problem: str) -> None:
    for kind, text in ((EdgeConfig, EDGE), (UpConfig, "")):
        file.write_text(f"{text}policy: {{rules: [{{{rule}}}]}}\n")
        with pytest.raises(ConfigError) as error:
            load(kind, file, {})
        (only,) = problems(error, file)
        assert only.startswith(f"policy.rules.0{problem}")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("[]", ": expected a mapping of settings"),
        ("{rules: null}", ".rules: expected a list"),
        ("{rules: {}}", ".rules: expected a list"),
        ("{rules: [x]}", ".rules.0: expected a mapping of settings"),
        ("{rule: []}", ".rule: no such setting; did you mean rules?"),
    ],
)
def test_mistakes_in_a_policy(file: Path, written: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        edge(file, f"{EDGE}policy: {written}\n")
    (only,) = problems(error, file)
    assert only.startswith(f"policy{problem}")


@pytest.mark.parametrize("policy", ["", "policy:\n", "policy: {}\n", "policy: {rules: []}\n"])
def test_without_a_rule_an_edge_grants_nothing(file: Path, policy: str) -> None:
    assert edge(file, EDGE + policy).policy.policy().rules == ()


def test_a_rule_reaches_the_policy_as_it_is_written(file: Path) -> None:
    text = """\
policy:
  rules:
    - {authenticator: token, actions: []}
    - authenticator: corp
      user: Ada Lovelace
      group: staff
      scope: kernels:read
      clusters: [alpha, gpu-a]
      kernelspecs: []
      actions: [list, list, view]
"""
    # What is not said is everything, what is said to be nothing is nothing.
    known = EDGE.replace(
        AUTHENTICATION, "authentication: {tokens: {file: t}, aliases: {'token:a': 'corp:a'}}\n"
    )
    assert edge(file, known + text).policy.policy().rules == (
        Rule(authenticator="token", actions=frozenset()),
        Rule(
            authenticator="corp",
            user="Ada Lovelace",
            group="staff",
            scope="kernels:read",
            clusters=frozenset({"alpha", "gpu-a"}),
            kernelspecs=frozenset(),
            actions=frozenset({Action.LIST, Action.VIEW}),
        ),
    )


@pytest.mark.parametrize(("kind", "text"), [(EdgeConfig, EDGE), (UpConfig, "# nothing\n" * 4)])
def test_a_rule_for_whom_nobody_knows(
    file: Path, kind: type[EdgeConfig | UpConfig], text: str
) -> None:
    file.write_text(f"{text}policy:\n  rules:\n  - {{authenticator: tokne, actions: [list]}}\n")
    with pytest.raises(ConfigError) as error:
        load(kind, file, {})
    assert problems(error, file) == [
        "policy.rules.0: authenticator tokne is not set; known are token (FILE:7)"
    ]


def test_more_names_of_kernelspecs_than_a_ticket_bears(file: Path) -> None:
    for count, fine in ((100, True), (101, False)):
        names = ", ".join(f"kernel-{number:04}" for number in range(count))
        text = (
            f"policy: {{rules: [{{authenticator: token, actions: [use], kernelspecs: [{names}]}}]}}"
        )
        if fine:
            assert edge(file, f"{EDGE}{text}\n").policy.rules
        else:
            with pytest.raises(ConfigError, match="over 1400 characters"):
                edge(file, f"{EDGE}{text}\n")
