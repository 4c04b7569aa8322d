"""What somebody may do: rules that grant, and nothing without one."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable

import msgspec

from relay.errors import Forbidden, NotFound
from relay.model import Identity

NO_CLUSTER = "no such cluster"
"""Said of clusters that do not exist and of those a principal may do nothing on."""


class Action(enum.StrEnum):
    """Everything that can be granted. None of them implies another."""

    LIST = "list"
    """See what a cluster has: kernelspecs, and those kernels that one may see."""
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
    """Do all that one may do to one's own kernels to everybody's."""


class Rights(msgspec.Struct, frozen=True):
    """What somebody may do on one cluster."""

    kernelspecs: dict[Action, frozenset[str] | None] = {}
    """The kernelspecs that each granted action is granted for; ``None``: for all."""

    def __bool__(self) -> bool:
        return bool(self.kernelspecs)

    def among(self, actions: Collection[Action]) -> Rights:
        """These rights without all actions but ``actions``."""
        kept = {action: names for action, names in self.kernelspecs.items() if action in actions}
        return Rights(kept)

    def require(self, actions: Collection[Action]) -> None:
        """Return when any of ``actions`` is granted, for whichever kernelspec.

        Raises ``Forbidden`` otherwise.
        """
        if not self.among(actions):
            raise Forbidden(f"not allowed on this cluster: {' or '.join(sorted(actions))}")

    def cover(self, action: Action, kernelspec: str) -> bool:
        """Tell whether ``action`` is granted for the kernelspec of this name."""
        if action not in self.kernelspecs:
            return False
        names = self.kernelspecs[action]
        return names is None or kernelspec in names


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Grants ``actions`` to whom all the other fields match. ``None`` matches everything.

    Every comparison is exact: no pattern, prefix or case folding can widen a rule by accident.
    """

    actions: frozenset[Action]
    authenticator: str
    """Never ``None``: names of two authenticators are two people, and two groups."""
    user: str | None = None
    group: str | None = None
    scope: str | None = None
    """Without one the rule speaks of credentials that are limited to no scopes only."""
    clusters: frozenset[str] | None = None
    kernelspecs: frozenset[str] | None = None

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where some kernelspecs are to make an admin."""
        if Action.ADMIN in self.actions and self.kernelspecs is not None:
            raise ValueError("admin is of a whole cluster: it goes with no kernelspecs")

    def covers(self, identity: Identity, cluster: str) -> bool:
        """Tell whether the rule speaks of this identity on this cluster."""
        if self.user is not None:
            principal = identity.principal
            known = principal.authenticator == self.authenticator and principal.subject == self.user
        else:
            known = identity.via == self.authenticator
        if self.group is not None or self.scope is not None:
            # They are names of whoever vouches for them.
            known = known and identity.via == self.authenticator
        return (
            known
            and (self.group is None or self.group in identity.groups)
            and (self.scope in identity.scopes if identity.scopes else self.scope is None)
            and (self.clusters is None or cluster in self.clusters)
        )


class Policy:
    """A set of rules. Rules only ever grant, so their order has no meaning."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        """Take the rules; a policy without any grants nothing."""
        self.rules = tuple(rules)

    def rights(self, identity: Identity, cluster: str) -> Rights:
        """Return all that ``identity`` may do on ``cluster``; empty when nothing."""
        if identity.clusters is not None and cluster not in identity.clusters:
            return Rights()
        granted: dict[Action, frozenset[str] | None] = {}
        for rule in self.rules:
            if rule.covers(identity, cluster):
                for action in rule.actions:
                    granted[action] = _joined(granted.get(action, frozenset()), rule.kernelspecs)
        return Rights(granted)

    def admit(self, identity: Identity, cluster: str) -> Rights:
        """Return what ``identity`` may do on ``cluster``.

        Raises ``NotFound`` when that is nothing, so that the names of other people's clusters stay
        private.
        """
        rights = self.rights(identity, cluster)
        if not rights:
            raise NotFound(NO_CLUSTER)
        return rights


def _joined(some: frozenset[str] | None, others: frozenset[str] | None) -> frozenset[str] | None:
    return None if some is None or others is None else some | others
