"""The kernels as whoever bears a ticket meets them: those of others aren't there."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from relay.agent.holders.client import HolderClient
from relay.agent.holders.registry import HolderRegistry
from relay.auth import ownership
from relay.auth.ownership import SEEING, Access, KernelOwnership
from relay.auth.policy import Action
from relay.auth.tickets import Ticket
from relay.errors import Forbidden


class Admission(NamedTuple):
    """How somebody is let in to hear a kernel: for its holder, as in `bridge.records.Attach`."""

    principal: str
    views_only: bool = False
    granted: bool = False


class KernelAccess:
    """Judges before anything is asked of a holder."""

    def __init__(self, holders: HolderRegistry) -> None:
        self._holders = holders

    def access(self, kernel_id: str, ticket: Ticket) -> Access:
        """What the bearer may do with a kernel: nothing where there is none."""
        kernel = self._holders.possession(kernel_id)
        return Access() if kernel is None else _access(kernel, ticket)

    async def get(
        self, kernel_id: str, ticket: Ticket, actions: Collection[Action]
    ) -> HolderClient:
        """One kernel, for one of ``actions``. Raises `NotFound` and `Forbidden`."""
        self.access(kernel_id, ticket).require(actions, kernel_id)
        return await self._holders.get(kernel_id)

    async def all(self, ticket: Ticket) -> list[HolderClient]:
        """All that the bearer may view or use.

        Raises `AgentUnavailable` rather than leave one out.
        """
        return await self._holders.all(lambda kernel: _access(kernel, ticket).sees)

    async def own(self, ticket: Ticket) -> list[HolderClient]:
        """All that the bearer has started. Raises as `all` does."""
        return await self._holders.all(lambda kernel: kernel.owner == str(ticket.principal))

    async def admit(self, kernel_id: str, ticket: Ticket) -> tuple[HolderClient, Admission]:
        """One kernel for who wants to hear it, and how they are let in.

        Raises `NotFound`, and `Forbidden` where its holder would let them do more than they may.
        """
        line = await self.get(kernel_id, ticket, SEEING)
        found = self.access(kernel_id, ticket)
        if found.views_only and not line.status.knows_viewers:
            raise Forbidden("An older relay started this kernel: who may only view it has to wait.")
        admission = Admission(str(ticket.principal), found.views_only, found.by_grant)
        return line, admission

    async def in_charge(
        self, kernel_id: str, ticket: Ticket
    ) -> tuple[HolderClient, KernelOwnership]:
        """One kernel for who says who else may use or view it, and what they have said.

        Raises `NotFound` and `Forbidden`.
        """
        self.access(kernel_id, ticket).require_charge(kernel_id)
        line = await self._holders.get(kernel_id)
        kernel = self._holders.possession(kernel_id)
        if kernel is None:
            raise ownership.no_such_kernel(kernel_id)
        return line, kernel

    def exists(self, kernel_id: str) -> bool:
        """Whether there is such a kernel, anybody's: not to be told."""
        return self._holders.exists(kernel_id)

    async def stop(self, kernel_id: str, ticket: Ticket) -> None:
        """End a kernel. Raises `NotFound` and `Forbidden`."""
        self.access(kernel_id, ticket).require({Action.STOP}, kernel_id)
        await self._holders.stop(kernel_id, ticket.request_id)

    async def take_back(self, kernel_id: str, ticket: Ticket) -> None:
        """End a kernel that was started for nothing. Raises `NotFound`."""
        await self._holders.stop(kernel_id, ticket.request_id)


def _access(kernel: KernelOwnership, ticket: Ticket) -> Access:
    return ownership.access(ticket.principal, ticket.rights, kernel)
