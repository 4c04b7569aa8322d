"""The runner where agent, holders and kernels share one OS user."""

from __future__ import annotations

import os
from pathlib import Path

from relay.agent.holder_process import HolderFiles, clean_up, run_holder
from relay.agent.launchers.local import RuntimeInfo
from relay.agent.privsep.cleanup import clean_up_as_owner
from relay.config.values import RELAY_PREFIXES
from relay.files import private_folder
from relay.kernel_folders import KernelFolder, kernels_folder, sweep
from relay.runtime_dir import runtime_folder


class OwnUserRunner:
    """The `HolderRunner` for kernels of the agent's own OS user.

    ``runtime_dir`` is as in `runtime_folder`.
    """

    def __init__(self, state_dir: Path, cluster: str, runtime_dir: str | None) -> None:
        self._state_dir = state_dir
        self._cluster = cluster
        self._runtime_dir = runtime_dir

    def open_folders(self) -> None:
        """As in `Launcher`."""
        runtime_folder(self._state_dir, self._runtime_dir)
        private_folder(kernels_folder(self._state_dir, self._cluster))
        sweep(self._state_dir, self._cluster)

    async def prepare(self, kernel_folder: KernelFolder, owner: str) -> RuntimeInfo:
        """As in `HolderRunner`."""
        del owner
        private_folder(kernel_folder.path)
        return RuntimeInfo(runtime_folder(self._state_dir, self._runtime_dir))

    async def run(self, kernel_folder: KernelFolder, owner: str, files: HolderFiles) -> int:
        """As in `HolderRunner`."""
        del owner
        own = {
            key: value for key, value in os.environ.items() if not key.startswith(RELAY_PREFIXES)
        }
        return run_holder(kernel_folder, files, own)

    async def clean_up(self, kernel_folder: KernelFolder, lock: int | None) -> None:
        """As in `HolderRunner`. Another OS user's kernel takes root's rights."""
        del lock
        if kernel_folder.uid == os.geteuid():
            clean_up(kernel_folder)
        else:
            await clean_up_as_owner(kernel_folder)

    def owner_matches(self, kernel_folder: KernelFolder, owner: str) -> bool:
        """As in `Launcher`."""
        del kernel_folder, owner
        return True
