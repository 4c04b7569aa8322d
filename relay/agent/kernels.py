"""The kernels as whoever bears a ticket meets them: those of others aren't there."""

from __future__ import annotations

from collections.abc import Collection

from relay.agent.holders import Holders
from relay.agent.line import Line
from relay.auth import ownership
from relay.auth.ownership import Access, Possession
from relay.auth.policy import Action
from relay.auth.tickets import Ticket


class Kernels:
    """Judges before anything is asked of a holder."""

    def __init__(self, holders: Holders) -> None:
        self._holders = holders

    def access(self, kernel_id: str, ticket: Ticket) -> Access:
        """What the bearer may do with a kernel: nothing where there is none."""
        kernel = self._holders.possession(kernel_id)
        return Access() if kernel is None else _access(kernel, ticket)

    async def get(self, kernel_id: str, ticket: Ticket, actions: Collection[Action]) -> Line:
        """One kernel, for one of ``actions``. Raises `NotFound` and `Forbidden`."""
        self.access(kernel_id, ticket).require(actions, kernel_id)
        return await self._holders.get(kernel_id)

    async def all(self, ticket: Ticket) -> list[Line]:
        """All that the bearer may view or use.

        Raises `AgentUnavailable` rather than leave one out.
        """
        return await self._holders.all(lambda kernel: _access(kernel, ticket).sees)

    async def own(self, ticket: Ticket) -> list[Line]:
        """All that the bearer has started. Raises as `all` does."""
        return await self._holders.all(lambda kernel: kernel.owner == str(ticket.principal))

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


def _access(kernel: Possession, ticket: Ticket) -> Access:
    return ownership.access(ticket.principal, ticket.rights, kernel)
