"""The end of all kernels of a state folder, for `relay down`: with agents or without."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from relay.agent.holders.client import HolderClient
from relay.agent.launchers.base import HolderState, Launcher
from relay.agent.launchers.local import LocalLauncher
from relay.agent.launchers.own_user import OwnUserRunner
from relay.errors import OtherVersion, RelayError
from relay.kernel_folders import KernelFolder

log = structlog.get_logger(__name__)


async def end_kernels(state_dir: Path, timeout: float) -> int:
    """End every kernel of every cluster in a state folder, agents or not; return how many.

    ``timeout`` in seconds is what one kernel may take; one that takes longer is killed. Kernels of
    other OS users take root's rights.
    """
    clusters = [folder.parent.name for folder in state_dir.glob("*/kernels")]
    launchers = [
        LocalLauncher(state_dir, cluster, OwnUserRunner(state_dir, cluster, None))
        for cluster in clusters
    ]
    ended = await asyncio.gather(
        *(
            _end(launcher, kernel_folder, timeout)
            for launcher in launchers
            for kernel_folder in launcher.list()
        )
    )
    return sum(ended)


async def _end(launcher: Launcher, kernel_folder: KernelFolder, timeout: float) -> bool:
    """End one kernel; return whether there was one, and it has ended."""
    status = await launcher.watch(kernel_folder)
    if status.state is HolderState.UNKNOWN:
        # The kernel's user may have put something else in the place of its files.
        log.warning("holder_unidentified", kernel_id=kernel_folder.kernel_id, problem=status.reason)
    elif status.state is HolderState.RUNNING and await _shut_down(kernel_folder, timeout):
        return True
    try:
        await launcher.cancel(kernel_folder)
    except OtherVersion as error:
        # What the folder holds, and what runs for it, a relay of that version can end.
        log.warning("version_refused", kernel_id=kernel_folder.kernel_id, problem=error.message)
        return False
    except (RelayError, OSError) as error:
        log.warning("kernel_not_ended", kernel_id=kernel_folder.kernel_id, problem=str(error))
        return False
    return status.state is not HolderState.ABSENT


async def _shut_down(kernel_folder: KernelFolder, timeout: float) -> bool:
    """Ask a holder to end its kernel and itself; return whether it does."""
    stopping = False
    try:
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as tasks:
            client = await HolderClient.open(kernel_folder)
            tasks.create_task(client.run(), name="holder")
            await client.call("shutdown", "", timeout)
        stopping = True
    except* (OSError, EOFError, RelayError) as group:
        problem = repr(group.exceptions[0])
        log.warning("holder_not_stopping", kernel_id=kernel_folder.kernel_id, problem=problem)
    return stopping
