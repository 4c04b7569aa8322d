"""Settings of authorisation: rules that grant actions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from msgspec import Struct

from relay.auth.policy import Action, Policy, Rule
from relay.config.values import AuthenticatorName, ClusterName, KernelspecName, Name

_KERNELSPEC_CHARACTERS: Final = 1400
"""A ticket may contain them for up to three actions at once."""


class RuleSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Grants actions to users. Everything is compared exactly; there are no patterns."""

    authenticator: AuthenticatorName
    """The authenticator of ``user``, ``group`` and ``scope``."""
    user: Name | None = None
    """The one user of the rule; by default every user of the authenticator."""
    group: Name | None = None
    """Only for members of this group."""
    scope: Name | None = None
    """For credentials with this scope. By default for credentials without any scopes only."""
    clusters: list[ClusterName] | None = None
    """The clusters of the rule; by default all."""
    kernelspecs: list[KernelspecName] | None = None
    """The kernelspecs of the rule; by default all."""
    actions: list[Action]
    """Any of: list, start, use, view, interrupt, stop, admin. None implies another."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where no rule can be made."""
        self.rule()

    def rule(self) -> Rule:
        """Return the rule for the policy. Raises ``ValueError``."""
        return Rule(
            authenticator=self.authenticator,
            user=self.user,
            group=self.group,
            scope=self.scope,
            clusters=None if self.clusters is None else frozenset(self.clusters),
            kernelspecs=None if self.kernelspecs is None else frozenset(self.kernelspecs),
            actions=frozenset(self.actions),
        )


class PolicySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What authenticated users may do: only what a rule grants."""

    rules: list[RuleSettings] = []
    """Rules add up; their order has no meaning. Tickets contain kernelspec names: those of all
    rules together must not be over 1,400 characters."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for more names than a ticket can contain."""
        names = {name for rule in self.rules for name in rule.kernelspecs or ()}
        if sum(len(name) + len('"",') for name in names) > _KERNELSPEC_CHARACTERS:
            raise ValueError(
                "rules: the names of kernelspecs in all rules together are over "
                f"{_KERNELSPEC_CHARACTERS} characters, too many for a ticket"
            )

    def check_authenticators(self, known: Collection[str]) -> None:
        """Raise ``ValueError`` for a rule whose authenticator is not among ``known``."""
        for number, rule in enumerate(self.rules):
            if rule.authenticator not in known:
                raise ValueError(
                    f"policy.rules.{number}: authenticator {rule.authenticator} is not set; "
                    f"known are {', '.join(known)}"
                )

    def policy(self) -> Policy:
        """Return the policy with these rules."""
        return Policy(each.rule() for each in self.rules)
