"""The end of all kernels of a state folder, for `relay down`: with agents or without."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final

import structlog

from relay.agent.holders.client import HolderClient
from relay.agent.launchers.local import bury, is_free
from relay.agent.privsep.cleanup import bury_as_owner, kill_holder
from relay.errors import RelayError
from relay.files import NotPlain
from relay.kernel_folders import KernelFolder, find_folders

log = structlog.get_logger(__name__)

_RETRY: Final = 0.02
"""Seconds that the lock of a holder that was killed takes to be free, about."""


async def end_kernels(state_dir: Path, timeout: float) -> int:
    """End every kernel of every cluster in a state folder, agents or not; returns how many.

    ``timeout`` in seconds is what one kernel may take; one that takes longer is killed.
    """
    found = [
        kernel_folder
        for folder in state_dir.glob("*/kernels")
        for kernel_folder in find_folders(state_dir, folder.parent.name)
    ]
    ended = await asyncio.gather(*(_end_somehow(kernel_folder, timeout) for kernel_folder in found))
    return sum(ended)


async def _end_somehow(kernel_folder: KernelFolder, timeout: float) -> bool:
    try:
        return await _end(kernel_folder, timeout)
    except NotPlain as error:
        # Its user has put something else in the place of its files.
        log.warning("not_a_kernels_folder", kernel_id=kernel_folder.kernel_id, problem=str(error))
        await _bury(kernel_folder)
        return True


async def _end(kernel_folder: KernelFolder, timeout: float) -> bool:
    unwilling = False
    if not is_free(kernel_folder):
        try:
            async with asyncio.timeout(timeout):
                line = await HolderClient.open(kernel_folder)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(line.run(), name="line")
                    await line.call("shutdown", "", timeout)
        except* (OSError, EOFError, RelayError, TimeoutError) as group:
            problem = repr(group.exceptions[0])
            log.warning("holder_unwilling", kernel_id=kernel_folder.kernel_id, problem=problem)
            unwilling = True
        else:
            return True
    if unwilling and _is_ours(kernel_folder):
        _kill_holder(kernel_folder)
    elif unwilling:
        # As its user, which ends the holder too.
        await _bury(kernel_folder)
        return True
    await asyncio.sleep(_RETRY)
    with contextlib.suppress(FileNotFoundError):
        lock = kernel_folder.try_lock()
        if lock is not None:
            ran = kernel_folder.exists()
            try:
                await _bury(kernel_folder)
            finally:
                os.close(lock)
            return ran
    return False


def _is_ours(kernel_folder: KernelFolder) -> bool:
    return kernel_folder.uid == os.geteuid()


def _kill_holder(kernel_folder: KernelFolder) -> None:
    try:
        kill_holder(kernel_folder)
    except OSError as error:
        log.warning("holder_unknown", kernel_id=kernel_folder.kernel_id, problem=str(error))


async def _bury(kernel_folder: KernelFolder) -> None:
    try:
        if _is_ours(kernel_folder):
            bury(kernel_folder)
        else:
            await bury_as_owner(kernel_folder, kernel_folder.uid)
    except OSError as error:
        log.warning("not_buried", kernel_id=kernel_folder.kernel_id, problem=str(error))
