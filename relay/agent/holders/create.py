"""A kernel's folder and first holder, made where there is room for one more.

The agents of a node do this one after the other: each counts what the others have made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from pathlib import Path
from typing import Final

import msgspec
import structlog

from relay import limits
from relay.agent.launchers.local import Launcher, RuntimeInfo, spawn
from relay.config import AgentConfig, CullSettings
from relay.config.holder import HolderConfig
from relay.errors import AgentUnavailable, Forbidden, TooMany
from relay.files import first_come, try_flock
from relay.kernel_folders import KernelFolder, find_folders, kernels_folder, remove, socket_name
from relay.model import Principal

log = structlog.get_logger(__name__)

_TURN: Final = 30.0
"""Seconds that a start waits for other agents' starts to be begun."""
_RETRY: Final = 0.02


class StartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel somebody wants; ``environment`` is the kernel's whole environment."""

    kernel_id: str
    name: str
    owner: Principal
    environment: dict[str, str]
    parameters: dict[str, str]
    working_folder: str | None
    cull: CullSettings
    launch_timeout: float
    max_kernels: int | None = None
    """How many kernels the owner may have on this cluster; None: as many as it takes."""
    request_id: str


class KernelCreator:
    """Makes the kernels of one cluster on this node.

    ``replace`` gets a folder in which a holder has died, and its lock, which it closes.
    """

    def __init__(
        self,
        config: AgentConfig,
        launcher: Launcher,
        max_record: int,
        replace: Callable[[KernelFolder, int], Awaitable[None]],
    ) -> None:
        self._config = config
        self._launcher = launcher
        self._max_record = max_record
        self._replace = replace
        self._state_dir = Path(config.state_dir)

    async def make(
        self, kernel_folder: KernelFolder, request: StartRequest, gone: Container[str]
    ) -> None:
        """Have a folder and a holder for a kernel, unless they are there.

        ``gone`` are the ids of kernels that have ended. Raises `AgentUnavailable`, `TooMany`,
        `Conflict`, `Forbidden` and ``OSError``.
        """
        async with self._alone():
            if not kernel_folder.exists():
                self._check_room(request, gone)
            try:
                quarters = await self._launcher.prepare(kernel_folder, request.owner)
                await self._spawn_unless_taken(kernel_folder, request, quarters)
            except OSError:
                _discard(kernel_folder)
                raise

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Have the agents of this node count and start kernels one after the other.

        Raises `AgentUnavailable`.
        """
        path = kernels_folder(self._state_dir, self._config.cluster).with_name("starts.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _TURN
            while not try_flock(descriptor):
                if time.monotonic() > deadline:
                    raise AgentUnavailable("Another agent is busy starting kernels.", retry_after=1)
                await asyncio.sleep(_RETRY)
            yield
        finally:
            os.close(descriptor)

    def _check_room(self, request: StartRequest, gone: Container[str]) -> None:
        """Raise `TooMany` and `Forbidden` where there is no room for one more kernel."""
        owner = str(request.owner)
        alone = not self._config.shared_uid and self._config.launch_as is None
        if alone and first_come(self._state_dir / "principal", owner) != owner:
            raise Forbidden(
                "All kernels of this relay run under one user id, and it is another user's: there "
                "would be no isolation between you (shared_uid, --shared-uid)."
            )
        found = [
            address.owner
            for kernel_folder in find_folders(self._state_dir, self._config.cluster)
            if kernel_folder.kernel_id not in gone
            and (address := kernel_folder.read_address()) is not None
            and self._launcher.believes(kernel_folder, address.owner)
            # One that is being ended leaves its clients the time to read the rest.
            and not kernel_folder.is_ending()
        ]
        limit, quota = self._config.kernels.max_kernels, request.max_kernels
        if limit and len(found) >= limit:
            log.warning("too_many_kernels", limit=limit, setting="kernels.max_kernels")
            limits.record("kernels.max_kernels")
            raise TooMany(f"This cluster runs {limit} kernels already (kernels.max_kernels).")
        if quota is not None and found.count(owner) >= quota:
            log.warning("too_many_kernels", limit=quota, setting="quotas.user_kernels")
            limits.record("quotas.user_kernels")
            raise TooMany(
                f"You have {quota} kernels on this cluster already (quotas.user_kernels)."
            )

    async def _spawn_unless_taken(
        self, kernel_folder: KernelFolder, request: StartRequest, quarters: RuntimeInfo
    ) -> None:
        lock = kernel_folder.try_lock()
        if lock is None:
            return
        try:
            left = kernel_folder.read_record()
            if left is None:
                config = self._holder_config(request, quarters)
                await spawn(self._launcher, kernel_folder, config, lock)
        except BaseException:
            os.close(lock)
            raise
        if left is None:
            os.close(lock)
        else:
            await self._replace(kernel_folder, lock)

    def _holder_config(self, request: StartRequest, quarters: RuntimeInfo) -> HolderConfig:
        working_folder = request.working_folder
        if quarters.working_folder is not None and self._config.root_dir is None:
            working_folder = quarters.working_folder
        return HolderConfig(
            name=request.name,
            owner=str(request.owner),
            request_id=request.request_id,
            created=time.time(),
            socket=str(quarters.runtime / f"{socket_name()}.sock"),
            environment={**request.environment, **quarters.environment},
            parameters=request.parameters,
            working_folder=working_folder,
            culling=request.cull,
            max_record=self._max_record,
            kernels=msgspec.structs.replace(
                self._config.kernels, launch_timeout=request.launch_timeout
            ),
            journal=self._config.journal,
            sessions=self._config.sessions,
            log=self._config.log,
        )


def _discard(kernel_folder: KernelFolder) -> None:
    """Remove the folder of a kernel that could not be started."""
    with contextlib.suppress(OSError):
        lock = kernel_folder.try_lock()
        if lock is not None:
            try:
                if kernel_folder.read_record() is None:
                    remove(kernel_folder)
            finally:
                os.close(lock)
    with contextlib.suppress(OSError):
        # There was no room for the lock either.
        kernel_folder.path.rmdir()
