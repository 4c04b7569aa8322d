"""Who may do what with one kernel.

A kernel belongs to the principal who started it. Its owner may grant others access, admins may do
what the owner may, and everybody is limited to their own rights on the kernel's kernelspec.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from relay.auth.policy import Action, Rights
from relay.errors import Forbidden, NotFound
from relay.model import AUTHENTICATOR_NAME, Principal, is_name


class Grant(enum.StrEnum):
    """Access that a kernel's owner can give to another principal."""

    USE = "use"
    """Run code, interrupt it, and see its output."""
    VIEW = "view"
    """See the kernel's output."""


REVEALING: Final = frozenset({Action.VIEW, Action.USE})
"""Actions that reveal a kernel's existence to those who may do them."""

_GRANTED_ACTIONS: Final = {
    Grant.USE: frozenset({Action.USE, Action.VIEW, Action.INTERRUPT}),
    Grant.VIEW: frozenset({Action.VIEW}),
}
_NO_ACTIONS: Final = frozenset[Action]()


class KernelOwnership(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a kernel that decide who may access it."""

    owner: str
    """The principal who started it, as ``authenticator:subject``."""
    kernelspec: str
    grants: Mapping[str, Grant] = {}
    """What its owner grants to others, by principal."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What one principal may do with one kernel."""

    actions: frozenset[Action] = _NO_ACTIONS
    can_administer: bool = False
    """Whether the principal owns the kernel or is an admin, and so may change its grants."""

    @property
    def can_see(self) -> bool:
        """Whether the principal may know that the kernel exists."""
        return not REVEALING.isdisjoint(self.actions)

    @property
    def views_only(self) -> bool:
        """Whether the principal may read the kernel's output but not send to it."""
        return Action.USE not in self.actions

    @property
    def by_grant(self) -> bool:
        """Whether the access comes from a grant, which the owner can take away."""
        return bool(self.actions) and not self.can_administer

    def require(self, actions: Collection[Action], kernel_id: str) -> None:
        """Raise unless one of ``actions`` is allowed.

        Raises:
            NotFound: the principal may not know of the kernel.
            Forbidden: the principal may, but not do this.
        """
        if not self.actions.isdisjoint(actions):
            return
        if not self.can_see:
            raise no_such_kernel(kernel_id)
        raise Forbidden(f"You may not do this to this kernel: {' or '.join(sorted(actions))}.")

    def require_administration(self, kernel_id: str) -> None:
        """Raise unless the principal may change the kernel's grants; errors as of `require`."""
        if not self.can_see:
            raise no_such_kernel(kernel_id)
        if not self.can_administer:
            raise Forbidden("Only a kernel's owner may share it.")


def access(principal: Principal, rights: Rights, kernel: KernelOwnership) -> Access:
    """Return what ``principal``, with ``rights`` on the cluster, may do with ``kernel``."""
    allowed = frozenset(
        action
        for action in Action
        if action is not Action.ADMIN and rights.allows(action, kernel.kernelspec)
    )
    if str(principal) == kernel.owner or Action.ADMIN in rights.kernelspecs:
        return Access(actions=allowed, can_administer=True)
    grant = kernel.grants.get(str(principal))
    return Access(actions=allowed & _GRANTED_ACTIONS[grant]) if grant is not None else Access()


def no_such_kernel(kernel_id: str) -> NotFound:
    """Make the error for a kernel that does not exist, or that the client may not know of."""
    # Jupyter Server's message.
    return NotFound(f"Kernel does not exist: {kernel_id[:64]}")


def parse_grantee(text: str, default_authenticator: str) -> Principal:
    """Read the principal in a grant's path. Raises ``ValueError``.

    It is ``authenticator:subject``, or a subject of ``default_authenticator`` alone.
    """
    principal = Principal.parse(text if ":" in text else f"{default_authenticator}:{text}")
    if not AUTHENTICATOR_NAME.fullmatch(principal.authenticator):
        raise ValueError("this cannot be the name of an authenticator")
    if not is_name(principal.subject):
        raise ValueError("this cannot be the name of a user")
    return principal
