"""Checks of rules that grant nothing, or too much."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from relay.auth.policy import Action
from relay.cli.checks.finding import Finding, check, warning
from relay.config import EdgeConfig, PolicySettings, RuleSettings, UpConfig


@check(EdgeConfig)
def edge_rules(config: EdgeConfig) -> Iterator[Finding]:
    """Check the rules of an edge."""
    yield from _rules(config.policy, config.clusters)


@check(UpConfig)
def up_rules(config: UpConfig) -> Iterator[Finding]:
    """Check the rules of `relay up`, where they are set."""
    if config.policy is not None:
        yield from _rules(config.policy, config.clusters)


def _rules(policy: PolicySettings, clusters: Collection[str]) -> Iterator[Finding]:
    if not any(rule.actions for rule in policy.rules):
        yield warning("policy.rules", "no rule grants anything: all users get 404")
    for number, rule in enumerate(policy.rules):
        path = f"policy.rules.{number}"
        for cluster in rule.clusters or ():
            if cluster not in clusters:
                yield warning(f"{path}.clusters", f"there is no cluster {cluster!r}")
        if not rule.actions:
            yield warning(f"{path}.actions", "the rule grants nothing")
        yield from _admins(rule, path)


def _admins(rule: RuleSettings, path: str) -> Iterator[Finding]:
    if Action.ADMIN in rule.actions and rule.user is rule.group is rule.scope is None:
        yield warning(
            f"{path}.actions",
            f"every user of {rule.authenticator} is an admin, who can see, use and end everybody's"
            " kernels",
        )
