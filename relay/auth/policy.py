"""What a principal may do: rules that grant, and nothing without one."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from relay.errors import Forbidden, NotFound
from relay.model import Principal

NO_CLUSTER = "no such cluster"
"""Said of clusters that do not exist and of those a principal may do nothing on."""


class Action(enum.StrEnum):
    """Everything that can be granted. None of them implies another."""

    LIST = "list"
    """See what a cluster has: its kernels and kernelspecs."""
    START = "start"
    """Start a kernel."""
    USE = "use"
    """Open a kernel's channels and run code."""
    VIEW = "view"
    """See one kernel: its model and what it prints."""
    INTERRUPT = "interrupt"
    STOP = "stop"
    """End what a kernel holds in memory: shut it down or restart it."""
    ADMIN = "admin"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Grants ``actions`` to whom all the other fields match. ``None`` matches everything.

    Every comparison is exact: no pattern, prefix or case folding can widen a rule by accident.
    """

    actions: frozenset[Action]
    authenticator: str
    """Never ``None``: names of two authenticators are two people."""
    subject: str | None = None
    cluster: str | None = None

    def covers(self, principal: Principal, cluster: str) -> bool:
        """Tell whether the rule speaks of this principal on this cluster."""
        return (
            self.authenticator == principal.authenticator
            and self.subject in {None, principal.subject}
            and self.cluster in {None, cluster}
        )


class Policy:
    """A set of rules. Rules only ever grant, so their order has no meaning."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        """Take the rules; a policy without any grants nothing."""
        self.rules = tuple(rules)

    @classmethod
    def allow_all(cls, authenticator: str) -> Policy:
        """Grant every action on every cluster to whom ``authenticator`` knows."""
        return cls([Rule(authenticator=authenticator, actions=frozenset(Action))])

    def actions(self, principal: Principal, cluster: str) -> frozenset[Action]:
        """Return all that ``principal`` may do on ``cluster``; empty when nothing."""
        granted = (rule.actions for rule in self.rules if rule.covers(principal, cluster))
        return frozenset[Action]().union(*granted)

    def authorise(self, principal: Principal, cluster: str, action: Action) -> None:
        """Return when ``principal`` may do ``action`` on ``cluster``.

        Raises ``NotFound`` when it may do nothing there, so that the names of other people's
        clusters stay private, and ``Forbidden`` when it may do other things only.
        """
        granted = self.actions(principal, cluster)
        if not granted:
            raise NotFound(NO_CLUSTER)
        if action not in granted:
            raise Forbidden(f"not allowed on this cluster: {action}")
