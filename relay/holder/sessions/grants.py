"""Whom a kernel's owner lets in, in a file, and which of the connections are theirs.

Whoever has a connection by a grant loses it with the grant, whichever agent it came through: only
the holder knows all of them. Who may only view has one that hears and is not heard.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import structlog

from relay import limits
from relay.auth.ownership import Grant
from relay.errors import DiskFull, Forbidden, NotFound, TooMany
from relay.files import write_shared
from relay.kernel_folders import Grants, KernelFolder

log = structlog.get_logger(__name__)

_TAKEN: Final = "the kernel is no longer shared with you"
_NARROWED: Final = "you may now only view the kernel"


class _Connection(NamedTuple):
    granted_to: str | None
    """The principal who has it by a grant, None for the owner's own and for admins."""
    views_only: bool


class GrantStore:
    """One kernel's grants, at the most ``limit``, and the connections that there are."""

    def __init__(self, kernel_folder: KernelFolder, limit: int) -> None:
        self._kernel_folder = kernel_folder
        self._limit = limit
        self._grants: Grants = kernel_folder.read_grants()
        self._connections: dict[int, _Connection] = {}

    def admit(self, connection: int, principal: str, *, granted: bool, views_only: bool) -> None:
        """Take up a connection, as its agent describes it.

        Raises `Forbidden` where the grant has been taken away since the agent looked.
        """
        grant = self._grants.get(principal) if granted else Grant.USE
        if grant is None:
            raise Forbidden(_TAKEN)
        views_only = views_only or grant is Grant.VIEW
        self._connections[connection] = _Connection(principal if granted else None, views_only)

    def leave(self, connection: int) -> None:
        """Forget a connection."""
        self._connections.pop(connection, None)

    def views_only(self, connection: int) -> bool:
        """Whether what comes over a connection is not listened to."""
        found = self._connections.get(connection)
        return found is not None and found.views_only

    def change(self, principal: str, grant: Grant | None) -> dict[int, str]:
        """Grant something to somebody, or nothing any more.

        Returns the connections that this ends, and why. Raises `NotFound` where there is nothing
        to take away, `TooMany` and `DiskFull`; nothing is changed then.
        """
        changed = {name: each for name, each in self._grants.items() if name != principal}
        if grant is None and principal not in self._grants:
            raise NotFound("Nothing is granted to this user.")
        if grant is not None:
            changed[principal] = grant
        if len(changed) > max(self._limit, len(self._grants)):
            log.warning("grant_limit_reached", limit=self._limit, setting="kernels.max_grants")
            limits.record("kernels.max_grants")
            raise TooMany(f"A kernel is shared with {self._limit} users (kernels.max_grants).")
        try:
            write_shared(self._kernel_folder.grants, msgspec.json.encode(changed))
        except OSError as error:
            raise DiskFull(f"The grant cannot be kept: {error.strerror}.") from error
        self._grants = changed
        log.info("grant_changed", grantee=principal, action=grant)
        return self._ended_by(principal, grant)

    def _ended_by(self, principal: str, grant: Grant | None) -> dict[int, str]:
        reason = _TAKEN if grant is None else _NARROWED
        return {
            number: reason
            for number, connection in self._connections.items()
            if connection.granted_to == principal
            and (grant is None or (grant is Grant.VIEW and not connection.views_only))
        }
