"""Admission of new kernels: whether a cluster, or one user's quota, has room for one more."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import structlog

from relay import limits
from relay.agent.launchers.base import Launcher
from relay.config import AgentConfig
from relay.errors import Forbidden, TooMany
from relay.files import create_or_read

log = structlog.get_logger(__name__)


class AdmissionControl:
    """Refuses kernels for which one cluster has no room on this node.

    Ask with the lock of starts held: agents count each other's kernels.
    """

    def __init__(self, config: AgentConfig, launcher: Launcher) -> None:
        self._config = config
        self._launcher = launcher

    def check(self, owner: str, quota: int | None, ended: Container[str]) -> None:
        """Return where ``owner`` may start one more kernel.

        ``quota`` is how many kernels the owner may have here; None: any number. ``ended`` are the
        ids of kernels that take no room any more.

        Raises:
            Forbidden: the kernel would share its OS user with another principal's.
            TooMany: the cluster is full, or the owner's quota is used up.
        """
        self._check_isolation(owner)
        owners = self._owners(ended)
        limit = self._config.kernels.max_kernels
        if limit and len(owners) >= limit:
            _note_limit("kernels.max_kernels", limit)
            raise TooMany(f"This cluster runs {limit} kernels already (kernels.max_kernels).")
        if quota is not None and owners.count(owner) >= quota:
            _note_limit("quotas.user_kernels", quota)
            raise TooMany(
                f"You have {quota} kernels on this cluster already (quotas.user_kernels)."
            )

    def _check_isolation(self, owner: str) -> None:
        if self._config.shared_uid or self._config.launch_as is not None:
            return
        if create_or_read(Path(self._config.state_dir) / "principal", owner) != owner:
            raise Forbidden(
                "All kernels of this relay run under one user id, and it is another user's: there "
                "would be no isolation between you (shared_uid, --shared-uid)."
            )

    def _owners(self, ended: Container[str]) -> list[str]:
        """Return the owner of each kernel that takes room."""
        return [
            address.owner
            for kernel_folder in self._launcher.list()
            if kernel_folder.kernel_id not in ended
            and (address := kernel_folder.read_address()) is not None
            and self._launcher.owner_matches(kernel_folder, address.owner)
            # A kernel that is being ended leaves its clients the time to read the rest.
            and not kernel_folder.is_ending()
        ]


def _note_limit(setting: str, limit: int) -> None:
    log.warning("too_many_kernels", limit=limit, setting=setting)
    limits.record(setting)
