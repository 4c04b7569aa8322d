"""Who may do what: rules that grant nothing, or too much."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from relay.auth.policy import Action
from relay.cli.checks.finding import Finding, check, warning
from relay.config import EdgeConfig, PolicySettings, RuleSettings, UpConfig
from relay.model import Principal


@check(EdgeConfig)
def edge_rules(config: EdgeConfig) -> Iterator[Finding]:
    """The rules of an edge."""
    yield from _rules(config.policy, config.authentication.names, config.clusters)


@check(UpConfig)
def up_rules(config: UpConfig) -> Iterator[Finding]:
    """The rules of `relay up`, where they are not its own."""
    if config.policy is not None:
        yield from _rules(config.policy, ["token"], config.clusters)


@check(EdgeConfig)
def aliases(config: EdgeConfig) -> Iterator[Finding]:
    """Aliases of authenticators that there are not."""
    names = config.authentication.names
    for one, other in config.authentication.aliases.items():
        path = f"authentication.aliases.{one}"
        if Principal.parse(one).authenticator not in names:
            yield warning(path, f"no authenticator that is set vouches for {one}")
        if one == other:
            yield warning(path, "is an alias of itself")


def _rules(
    policy: PolicySettings, authenticators: Collection[str], clusters: Collection[str]
) -> Iterator[Finding]:
    if not any(rule.actions for rule in policy.rules):
        yield warning("policy.rules", "nothing is granted: whoever comes in reads 404")
    for number, rule in enumerate(policy.rules):
        path = f"policy.rules.{number}"
        if rule.authenticator not in authenticators:
            known = ", ".join(authenticators)
            yield warning(
                f"{path}.authenticator",
                f"there is no authenticator {rule.authenticator!r}, so that the rule is for nobody;"
                f" there is {known}",
            )
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
            f"everybody whom {rule.authenticator} knows is an admin: they see, use and end"
            " everybody's kernels",
        )
