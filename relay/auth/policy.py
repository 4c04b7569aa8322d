"""What principals may do on a cluster: everything that a rule grants, and nothing else."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable

import msgspec

from relay.errors import Forbidden, NotFound
from relay.model import Identity

NO_CLUSTER = "no such cluster"
"""The message for clusters that do not exist, and for those that the principal may not use."""


class Action(enum.StrEnum):
    """Everything that can be granted; none of the actions implies another."""

    LIST = "list"
    """See a cluster's kernelspecs, and those of its kernels that the principal may see."""
    START = "start"
    """Start a kernel."""
    USE = "use"
    """Open a kernel's channels and run code."""
    VIEW = "view"
    """Read one kernel's model and its output."""
    INTERRUPT = "interrupt"
    STOP = "stop"
    """End what a kernel holds in memory: shut it down or restart it."""
    ADMIN = "admin"
    """Do to everybody's kernels what the other actions allow on one's own."""


class Rights(msgspec.Struct, frozen=True):
    """What one principal may do on one cluster."""

    kernelspecs: dict[Action, frozenset[str] | None] = {}
    """The kernelspecs for which each action is granted; ``None`` means all."""

    def __bool__(self) -> bool:
        return bool(self.kernelspecs)

    def restricted_to(self, actions: Collection[Action]) -> Rights:
        """Return these rights restricted to ``actions``."""
        kept = {action: names for action, names in self.kernelspecs.items() if action in actions}
        return Rights(kept)

    def require(self, actions: Collection[Action]) -> None:
        """Return when any of ``actions`` is granted, for whichever kernelspec.

        Raises ``Forbidden`` otherwise.
        """
        if not self.restricted_to(actions):
            raise Forbidden(f"not allowed on this cluster: {' or '.join(sorted(actions))}")

    def allows(self, action: Action, kernelspec: str) -> bool:
        """Tell whether ``action`` is granted for the kernelspec of this name."""
        if action not in self.kernelspecs:
            return False
        names = self.kernelspecs[action]
        return names is None or kernelspec in names


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Grants ``actions`` to identities that match all the other fields; ``None`` matches all.

    Every comparison is exact: no pattern, prefix or case folding can widen a rule by accident.
    """

    actions: frozenset[Action]
    authenticator: str
    """Required, since a name means different users, and groups, to different authenticators."""
    user: str | None = None
    group: str | None = None
    scope: str | None = None
    """None matches only credentials that are not limited to scopes."""
    clusters: frozenset[str] | None = None
    kernelspecs: frozenset[str] | None = None

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where admin would be granted for some kernelspecs only."""
        if Action.ADMIN in self.actions and self.kernelspecs is not None:
            raise ValueError("admin is for a whole cluster and cannot be limited to kernelspecs")

    def applies_to(self, identity: Identity, cluster: str) -> bool:
        """Whether the rule grants its actions to this identity on this cluster."""
        if self.user is not None:
            principal = identity.principal
            known = principal.authenticator == self.authenticator and principal.subject == self.user
        else:
            known = identity.via == self.authenticator
        if self.group is not None or self.scope is not None:
            # Groups and scopes are names of the authenticator that stated them.
            known = known and identity.via == self.authenticator
        return (
            known
            and (self.group is None or self.group in identity.groups)
            and (self.scope in identity.scopes if identity.scopes else self.scope is None)
            and (self.clusters is None or cluster in self.clusters)
        )


class Policy:
    """A set of rules. Rules only add rights, so their order has no meaning."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        """Take the rules; a policy without rules grants nothing."""
        self.rules = tuple(rules)

    def rights(self, identity: Identity, cluster: str) -> Rights:
        """Return all that ``identity`` may do on ``cluster``; empty where it may do nothing."""
        if identity.clusters is not None and cluster not in identity.clusters:
            return Rights()
        granted: dict[Action, frozenset[str] | None] = {}
        for rule in self.rules:
            if rule.applies_to(identity, cluster):
                for action in rule.actions:
                    granted[action] = _union(granted.get(action, frozenset()), rule.kernelspecs)
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


def _union(some: frozenset[str] | None, others: frozenset[str] | None) -> frozenset[str] | None:
    return None if some is None or others is None else some | others
