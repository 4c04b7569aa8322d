"""The settings that say what those who come in may do."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from msgspec import Struct

from relay.auth.policy import Action, Policy, Rule
from relay.config.values import AuthenticatorName, ClusterName, KernelspecName, Name

_KERNELSPEC_CHARACTERS: Final = 1400
"""A ticket bears them for up to three actions at once."""


class RuleSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Grants some actions to some people. Everything is compared exactly; there are no patterns."""

    authenticator: AuthenticatorName
    """The authenticator whose names ``user``, ``group`` and ``scope`` are."""
    user: Name | None = None
    """The one user it is for; by default everybody whom the authenticator knows."""
    group: Name | None = None
    """Only for members of this group."""
    scope: Name | None = None
    """For credentials with this scope. Without one, for credentials without any scopes only."""
    clusters: list[ClusterName] | None = None
    """The clusters it is for; by default all."""
    kernelspecs: list[KernelspecName] | None = None
    """The kernelspecs it is for; by default all."""
    actions: list[Action]
    """Any of: list, start, use, view, interrupt, stop, admin. None implies another."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where it makes no rule."""
        self.rule()

    def rule(self) -> Rule:
        """As the policy knows it. Raises ``ValueError``."""
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
    """What those who come in may do: nothing that no rule grants."""

    rules: list[RuleSettings] = []
    """They add up; their order has no meaning. A ticket bears the names of kernelspecs: those of
    all rules together must not be over 1,400 characters."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for more names than go into a ticket."""
        names = {name for rule in self.rules for name in rule.kernelspecs or ()}
        if sum(len(name) + len('"",') for name in names) > _KERNELSPEC_CHARACTERS:
            raise ValueError(
                "rules: the names of kernelspecs in all rules together are over "
                f"{_KERNELSPEC_CHARACTERS} characters, more than a ticket bears"
            )

    def check_authenticators(self, known: Collection[str]) -> None:
        """Raise ``ValueError`` for a rule whose authenticator is not among ``known``."""
        for number, rule in enumerate(self.rules):
            if rule.authenticator not in known:
                raise ValueError(
                    f"policy.rules.{number}: no authenticator is called {rule.authenticator}; "
                    f"there is {', '.join(known)}"
                )

    def policy(self) -> Policy:
        """The policy that they make."""
        return Policy(each.rule() for each in self.rules)
