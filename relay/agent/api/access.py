"""Access to kernels by ticket: for a caller, kernels that they may not know of do not exist."""

from __future__ import annotations

from collections.abc import Collection

from relay.agent.holders.client import AdmittedPrincipal, HolderClient
from relay.agent.holders.registry import HolderRegistry
from relay.auth import ownership
from relay.auth.ownership import REVEALING, Access, KernelOwnership
from relay.auth.policy import Action
from relay.auth.tickets import Ticket
from relay.errors import Forbidden


class KernelAccess:
    """Checks a ticket's rights on a kernel before anything is asked of the kernel's holder."""

    def __init__(self, holders: HolderRegistry) -> None:
        self._holders = holders

    def access(self, kernel_id: str, ticket: Ticket) -> Access:
        """Return what the ticket's principal may do with a kernel: nothing where there is none."""
        kernel = self._holders.ownership(kernel_id)
        return Access() if kernel is None else _access(kernel, ticket)

    async def get(
        self, kernel_id: str, ticket: Ticket, actions: Collection[Action]
    ) -> HolderClient:
        """Return one kernel, for one of ``actions``. Raises `NotFound` and `Forbidden`."""
        self.access(kernel_id, ticket).require(actions, kernel_id)
        return await self._holders.get(kernel_id)

    async def all(self, ticket: Ticket) -> list[HolderClient]:
        """Return all kernels that the ticket's principal may view or use.

        Raises:
            AgentUnavailable: one of them does not answer. A list is never partial.
        """
        return await self._holders.all(lambda kernel: _access(kernel, ticket).can_see)

    async def own(self, ticket: Ticket) -> list[HolderClient]:
        """Return all kernels that the ticket's principal has started. Raises as `all` does."""
        return await self._holders.all(lambda kernel: kernel.owner == str(ticket.principal))

    async def admit(self, kernel_id: str, ticket: Ticket) -> tuple[HolderClient, AdmittedPrincipal]:
        """Return one kernel, and the principal with whose rights its messages are read.

        Raises:
            NotFound: the principal may not know of such a kernel.
            Forbidden: the kernel's holder would let the principal do more than they may.
        """
        client = await self.get(kernel_id, ticket, REVEALING)
        found = self.access(kernel_id, ticket)
        if found.views_only and not client.status.knows_viewers:
            raise Forbidden("An older relay started this kernel: it cannot be viewed only.")
        return client, AdmittedPrincipal(str(ticket.principal), found.views_only, found.by_grant)

    async def administrable(
        self, kernel_id: str, ticket: Ticket
    ) -> tuple[HolderClient, KernelOwnership]:
        """Return the kernel and its grants, for its owner or an admin.

        Raises:
            NotFound: the principal may not know of such a kernel.
            Forbidden: the kernel is another principal's.
        """
        self.access(kernel_id, ticket).require_administration(kernel_id)
        client = await self._holders.get(kernel_id)
        kernel = self._holders.ownership(kernel_id)
        if kernel is None:
            raise ownership.no_such_kernel(kernel_id)
        return client, kernel

    def exists(self, kernel_id: str) -> bool:
        """Return whether there is such a kernel, anybody's: never tell a client."""
        return self._holders.exists(kernel_id)

    async def stop(self, kernel_id: str, ticket: Ticket) -> None:
        """End a kernel. Raises `NotFound` and `Forbidden`."""
        self.access(kernel_id, ticket).require({Action.STOP}, kernel_id)
        await self._holders.stop(kernel_id, ticket.request_id)

    async def discard(self, kernel_id: str, ticket: Ticket) -> None:
        """End a kernel that this request has started for nothing. Raises `NotFound`."""
        await self._holders.stop(kernel_id, ticket.request_id)


def _access(kernel: KernelOwnership, ticket: Ticket) -> Access:
    return ownership.access(ticket.principal, ticket.rights, kernel)
