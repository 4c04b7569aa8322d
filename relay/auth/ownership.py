"""Whose a kernel is, and what that leaves of somebody's rights on it.

A kernel belongs to the principal who started it. Others have what its owner grants them, admins
what its owner has, and everybody only what their own rights cover for its kernelspec.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from relay.auth.policy import Action, Rights
from relay.errors import Forbidden, NotFound
from relay.model import Principal


class Grant(enum.StrEnum):
    """What an owner can let somebody else do."""

    USE = "use"
    """Run code, interrupt it, and see what it prints."""
    VIEW = "view"
    """See what the kernel prints."""


SEEING: Final = frozenset({Action.VIEW, Action.USE})
"""Who may do one of these to a kernel may know that it exists."""

_AUTHENTICATOR: Final = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_MAX_SUBJECT: Final = 255
"""Characters, as in rules."""
_GRANTED: Final = {
    Grant.USE: frozenset({Action.USE, Action.VIEW, Action.INTERRUPT}),
    Grant.VIEW: frozenset({Action.VIEW}),
}
_NOTHING: Final = frozenset[Action]()


class KernelOwnership(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of a kernel when somebody wants something of it."""

    owner: str
    """The principal who started it, as ``authenticator:subject``."""
    kernelspec: str
    grants: Mapping[str, Grant] = {}
    """Whom its owner lets in, by principal."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody may do with one kernel."""

    actions: frozenset[Action] = _NOTHING
    in_charge: bool = False
    """Whether it is theirs, or they are an admin: they say who else may do what."""

    @property
    def sees(self) -> bool:
        """Whether they may know that the kernel exists."""
        return not SEEING.isdisjoint(self.actions)

    @property
    def views_only(self) -> bool:
        """Whether they may listen to it and not speak."""
        return Action.USE not in self.actions

    @property
    def by_grant(self) -> bool:
        """Whether they have it of the owner, who can take it away again."""
        return bool(self.actions) and not self.in_charge

    def require(self, actions: Collection[Action], kernel_id: str) -> None:
        """Return when one of ``actions`` is allowed.

        Raises ``NotFound`` to whom the kernel does not exist, and ``Forbidden`` to who sees it.
        """
        if not self.actions.isdisjoint(actions):
            return
        if not self.sees:
            raise no_such_kernel(kernel_id)
        raise Forbidden(f"You may not do this to this kernel: {' or '.join(sorted(actions))}.")

    def require_charge(self, kernel_id: str) -> None:
        """Return when they say who else may do what. Raises as ``require`` does."""
        if not self.sees:
            raise no_such_kernel(kernel_id)
        if not self.in_charge:
            raise Forbidden("Only a kernel's owner says who else may use or view it.")


def access(principal: Principal, rights: Rights, kernel: KernelOwnership) -> Access:
    """What ``principal``, who has ``rights`` on its cluster, may do with ``kernel``."""
    covered = frozenset(
        action
        for action in Action
        if action is not Action.ADMIN and rights.cover(action, kernel.kernelspec)
    )
    if str(principal) == kernel.owner or Action.ADMIN in rights.kernelspecs:
        return Access(actions=covered, in_charge=True)
    grant = kernel.grants.get(str(principal))
    return Access(actions=covered & _GRANTED[grant]) if grant is not None else Access()


def no_such_kernel(kernel_id: str) -> NotFound:
    """The answer where there is no such kernel, or none that they may know of."""
    # Jupyter Server's own words.
    return NotFound(f"Kernel does not exist: {kernel_id[:64]}")


def grantee(text: str, own: str) -> Principal:
    """Whom the path of a grant names. Raises ``ValueError``.

    ``authenticator:subject``, or a subject of the authenticator ``own``.
    """
    principal = Principal.parse(text if ":" in text else f"{own}:{text}")
    if not _AUTHENTICATOR.fullmatch(principal.authenticator):
        raise ValueError("no authenticator has such a name")
    subject = principal.subject
    if len(subject) > _MAX_SUBJECT or not subject.isprintable() or subject != subject.strip():
        raise ValueError("no user has such a name")
    return principal
