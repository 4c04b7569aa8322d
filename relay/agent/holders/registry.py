"""The holders of this node's kernels: found in their folders, connected to, replaced when they die.

The folders are the registry. This module keeps what it has read from them and from the holders'
sockets, and the next agent can read it again. Agents that share a state folder serve the same
kernels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from relay.agent.holders.client import HolderClient
from relay.agent.holders.connect import HolderConnector, read_ownership
from relay.agent.holders.create import KernelCreator, StartRequest
from relay.agent.holders.ended import EndedKernels
from relay.agent.holders.single_flight import SingleFlight
from relay.agent.holders.stats import HolderStats
from relay.agent.launchers.base import Launcher
from relay.auth.ownership import KernelOwnership, no_such_kernel
from relay.bridge.control import Phase
from relay.config import AgentConfig
from relay.errors import AgentUnavailable, Conflict, DiskFull, RelayError, StartFailed
from relay.kernel_folders import KernelFolder, kernels_folder
from relay.routing.names import is_kernel_id

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ANSWER: Final = 5.0
"""Seconds that a request waits for a holder that has not answered yet."""
_MARGIN: Final = 20.0
"""Seconds beyond twice the launch timeout (ipc, then TCP) after which a start has failed."""


class HolderRegistry:
    """The kernels of one cluster on this node.

    ``tasks`` owns the connections to holders. ``max_record`` in bytes bounds one record from an
    agent to a holder.
    """

    def __init__(
        self, config: AgentConfig, launcher: Launcher, max_record: int, tasks: asyncio.TaskGroup
    ) -> None:
        self._config = config
        self._launcher = launcher
        self._tasks = tasks
        self._kernels = kernels_folder(Path(config.state_dir), config.cluster)
        self._clients: dict[str, HolderClient] = {}
        self._ended = EndedKernels()
        creator = KernelCreator(config, launcher, max_record)
        self._connector = HolderConnector(launcher, creator, self._ended)
        self._connecting = SingleFlight[HolderClient | None](tasks)
        self.stats = HolderStats()

    @property
    def ready(self) -> list[HolderClient]:
        """The kernels that run, as far as is known."""
        return [client for client in self._clients.values() if client.status.phase is Phase.READY]

    async def find(self) -> None:
        """Find the kernels that run already, those whose holders have died among them."""
        try:
            found = await self.all()
        except AgentUnavailable as error:
            log.warning("holder_unavailable", problem=error.message)
        else:
            log.info("kernels_found", count=len(found))

    async def all(
        self, wanted: Callable[[KernelOwnership], bool] = lambda _: True
    ) -> list[HolderClient]:
        """Return every kernel that runs and is ``wanted``.

        Raises:
            AgentUnavailable: a kernel that may be wanted does not answer. A list is never partial.
        """
        found = self._launcher.list()
        self._ended.keep(kernel_folder.kernel_id for kernel_folder in found)

        def is_wanted(kernel_folder: KernelFolder, *, unknown: bool) -> bool:
            kernel = self.ownership(kernel_folder.kernel_id)
            return (unknown and kernel_folder.is_understood()) if kernel is None else wanted(kernel)

        # No request waits for the holder of a kernel that it does not want.
        asked = [kernel_folder for kernel_folder in found if is_wanted(kernel_folder, unknown=True)]
        return [
            client
            for client in await _within_answer(self._connect_all(asked))
            if client.status.phase is Phase.READY and is_wanted(client.kernel_folder, unknown=False)
        ]

    def ownership(self, kernel_id: str) -> KernelOwnership | None:
        """Return a kernel's ownership; None for no kernel.

        A kernel that was ended against its user's will still has it. What a connected holder tells
        counts before what its folder tells.
        """
        if not is_kernel_id(kernel_id):
            # An id becomes a path.
            return None
        kernel_folder, client = self._kernel_folder(kernel_id), self._clients.get(kernel_id)
        if client is None:
            found = read_ownership(self._launcher, kernel_folder)
        else:
            owner, name = client.status.owner, client.status.name
            grants = kernel_folder.read_grants()
            found = KernelOwnership(owner=owner, kernelspec=name, grants=grants)
            if not self._launcher.owner_matches(kernel_folder, owner):
                found = None
        return found or self._ended.ownership(kernel_id)

    def exists(self, kernel_id: str) -> bool:
        """Return whether there is a kernel of this id."""
        return (
            is_kernel_id(kernel_id)
            and kernel_id not in self._ended
            and self._kernel_folder(kernel_id).exists()
        )

    async def get(self, kernel_id: str) -> HolderClient:
        """Return one kernel.

        Raises:
            NotFound: there is none.
            AgentUnavailable: its holder does not answer.
        """
        if not is_kernel_id(kernel_id):
            raise no_such_kernel(kernel_id)
        client = self._clients.get(kernel_id)
        if client is None and self.exists(kernel_id):
            client = await _within_answer(self._connect(self._kernel_folder(kernel_id)))
        if client is None or client.status.phase is not Phase.READY:
            self._ended.raise_reason(kernel_id)
            raise no_such_kernel(kernel_id)
        return client

    async def start(self, request: StartRequest) -> HolderClient:
        """Start a kernel, or find the one that an earlier try with the same id started.

        Raises:
            StartFailed: the kernel did not start.
            Conflict: another principal's kernel has the id.
            TooMany: there is no room.
            Forbidden: the kernel would share its OS user with another principal's.
        """
        self.stats.starts += 1
        try:
            return await self._start(request)
        except StartFailed:
            self.stats.start_failures += 1
            raise

    async def _start(self, request: StartRequest) -> HolderClient:
        self._refuse_others(request)
        client = self._clients.get(request.kernel_id)
        if client is None:
            client = await self._connect(self._kernel_folder(request.kernel_id), request)
        if client is None:
            raise StartFailed("The kernel ended while it started.")
        self._refuse_others(request)
        try:
            await client.wait_started(2 * request.launch_timeout + _MARGIN)
        except TimeoutError:
            raise StartFailed("The kernel's holder does not answer.") from None
        failure = client.status.failure
        if client.status.phase is Phase.FAILED and failure is not None:
            full = failure.http_status == DiskFull.http_status
            raise (DiskFull if full else StartFailed)(failure.message)
        if client.status.phase is not Phase.READY:
            raise StartFailed("The kernel ended while it started.")
        return client

    def _refuse_others(self, request: StartRequest) -> None:
        """Raise `Conflict` for an id that another principal's kernel has, and tell no more."""
        if not self.exists(request.kernel_id):
            return
        kernel = self.ownership(request.kernel_id)
        if kernel is not None and kernel.owner != str(request.owner):
            raise Conflict("This kernel id is taken.")

    async def stop(self, kernel_id: str, request_id: str) -> None:
        """End a kernel. Raises as `get` and `HolderClient.call`."""
        client = await self.get(kernel_id)
        timeout = self._config.kernels.shutdown_timeout + _MARGIN
        await client.call("shutdown", request_id, timeout)
        self._remove(client)

    def close(self) -> None:
        """Close the connections to all holders; they and their kernels live on."""
        self._connecting.cancel()
        for client in self._clients.values():
            client.close()

    def _kernel_folder(self, kernel_id: str) -> KernelFolder:
        return KernelFolder(self._kernels / kernel_id)

    async def _connect_all(self, found: list[KernelFolder]) -> list[HolderClient]:
        """Connect to each kernel's holder; again to those that have died meanwhile."""
        while unknown := [
            kernel_folder
            for kernel_folder in found
            if kernel_folder.kernel_id not in self._clients
            and kernel_folder.kernel_id not in self._ended
        ]:
            clients = await asyncio.gather(*map(self._connect, unknown))
            ended = {
                kernel_folder
                for kernel_folder, client in zip(unknown, clients, strict=True)
                if client is None
            }
            found = [kernel_folder for kernel_folder in found if kernel_folder not in ended]
        # In the turn in which all were seen to be there.
        return list(self._clients.values())

    async def _connect(
        self, kernel_folder: KernelFolder, request: StartRequest | None = None
    ) -> HolderClient | None:
        """Connect to a kernel's holder; callers at the same time share one connection."""

        async def connect() -> HolderClient | None:
            client = await self._connector.connect(kernel_folder, request)
            if client is not None:
                self._add(client)
            return client

        return await self._connecting.run(kernel_folder.kernel_id, connect)

    def _add(self, client: HolderClient) -> None:
        kernel_id = client.kernel_folder.kernel_id
        self._clients[kernel_id] = client
        self.stats.add(client)
        self._tasks.create_task(self._follow(client), name=f"holder {kernel_id}")

    async def _follow(self, client: HolderClient) -> None:
        """Follow a holder to its end, and have it replaced where it has died."""
        await client.run()
        closed_here = client.closed
        self._remove(client)
        if closed_here or client.status.phase not in {Phase.READY, Phase.STARTING}:
            return
        kernel_id = client.kernel_folder.kernel_id
        log.warning("holder_lost", kernel_id=kernel_id)
        self.stats.holder_deaths += 1
        self._ended.discard(kernel_id)
        try:
            await self._connect(client.kernel_folder)
        except RelayError as error:
            # The next request for the kernel looks again.
            log.warning("holder_unavailable", kernel_id=kernel_id, problem=error.message)

    def _remove(self, client: HolderClient) -> None:
        kernel_id = client.kernel_folder.kernel_id
        self._ended.add(kernel_id)
        if self._clients.get(kernel_id) is client:
            self.stats.remove(client)
            del self._clients[kernel_id]
        client.close()


async def _within_answer(waited: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(waited, _ANSWER)
    except TimeoutError:
        raise AgentUnavailable("A kernel's holder does not answer.", retry_after=1) from None
