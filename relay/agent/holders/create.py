"""Creation of kernels: a folder and a first holder, where there is room for one more.

The agents of a node create kernels one after the other: each counts what the others have created.
"""

from __future__ import annotations

import time
from collections.abc import Container
from pathlib import Path
from typing import Final

import msgspec

from relay.agent.holders.admission import AdmissionControl
from relay.agent.holders.starts_lock import StartsLock
from relay.agent.launchers.base import Launcher
from relay.config import AgentConfig, CullSettings
from relay.config.holder import HolderConfig
from relay.kernel_folders import KernelFolder, kernels_folder
from relay.model import Principal

_TURN: Final = 30.0
"""Seconds that a start waits for other starts to be begun."""


class StartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel to start; ``environment`` is the kernel's whole environment."""

    kernel_id: str
    name: str
    owner: Principal
    environment: dict[str, str]
    parameters: dict[str, str]
    working_folder: str | None
    cull: CullSettings
    launch_timeout: float
    max_kernels: int | None = None
    """How many kernels the owner may have on this cluster; None: any number."""
    request_id: str


class KernelCreator:
    """Creates the kernels of one cluster on this node.

    ``max_record`` in bytes bounds one record from an agent to a holder.
    """

    def __init__(self, config: AgentConfig, launcher: Launcher, max_record: int) -> None:
        self._config = config
        self._launcher = launcher
        self._max_record = max_record
        self._admission = AdmissionControl(config, launcher)
        folder = kernels_folder(Path(config.state_dir), config.cluster)
        self._starts = StartsLock(folder.with_name("starts.lock"))

    async def create(
        self, kernel_folder: KernelFolder, request: StartRequest, ended: Container[str]
    ) -> None:
        """Submit a kernel to the launcher, unless that was done before.

        ``ended`` are the ids of kernels that have ended.

        Raises:
            RelayError: there is no room, or it is not the requester's kernel (`TooMany`,
                `Forbidden`, `Conflict`), or the launcher cannot be reached.
            OSError: the kernel's folder or holder cannot be made.
        """
        async with self._starts.held(_TURN):
            if not kernel_folder.exists():
                self._admission.check(str(request.owner), request.max_kernels, ended)
            await self._launcher.submit(kernel_folder, self._holder_config(request))

    def _holder_config(self, request: StartRequest) -> HolderConfig:
        return HolderConfig(
            name=request.name,
            owner=str(request.owner),
            request_id=request.request_id,
            created=time.time(),
            # The launcher's to choose.
            socket="",
            environment=request.environment,
            parameters=request.parameters,
            working_folder=request.working_folder,
            culling=request.cull,
            max_record=self._max_record,
            kernels=msgspec.structs.replace(
                self._config.kernels, launch_timeout=request.launch_timeout
            ),
            journal=self._config.journal,
            sessions=self._config.sessions,
            log=self._config.log,
        )
