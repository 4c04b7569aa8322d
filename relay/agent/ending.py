"""The end of all kernels of a state folder, for `relay down`: with agents or without."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final

import structlog

from relay.agent.burial import bury_as_owner, kill_holder
from relay.agent.line import Line
from relay.agent.spawn import bury, is_free
from relay.errors import OtherVersion, RelayError
from relay.files import NotPlain
from relay.registry import Place, places

log = structlog.get_logger(__name__)

_RETRY: Final = 0.02
"""Seconds that the lock of a holder that was killed takes to be free, about."""


async def end_kernels(state_dir: Path, timeout: float) -> int:
    """End every kernel of every cluster in a state folder, agents or not; returns how many.

    ``timeout`` in seconds is what one kernel may take; one that takes longer is killed.
    """
    found = [
        place
        for folder in state_dir.glob("*/kernels")
        for place in places(state_dir, folder.parent.name)
    ]
    ended = await asyncio.gather(*(_end_somehow(place, timeout) for place in found))
    return sum(ended)


async def _end_somehow(place: Place, timeout: float) -> bool:
    try:
        place.check_versions()
        return await _end(place, timeout)
    except OtherVersion as error:
        # What it holds, and what runs for it, its own version can end.
        log.warning("version_refused", kernel_id=place.kernel_id, problem=error.message)
        return False
    except NotPlain as error:
        # Its user has put something else in the place of its files.
        log.warning("not_a_kernels_folder", kernel_id=place.kernel_id, problem=str(error))
        await _bury(place)
        return True


async def _end(place: Place, timeout: float) -> bool:
    unwilling = False
    if not is_free(place):
        try:
            async with asyncio.timeout(timeout):
                line = await Line.open(place)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(line.run(), name="line")
                    await line.call("shutdown", "", timeout)
        except* (OSError, EOFError, RelayError, TimeoutError) as group:
            problem = repr(group.exceptions[0])
            log.warning("holder_unwilling", kernel_id=place.kernel_id, problem=problem)
            unwilling = True
        else:
            return True
    if unwilling and _is_ours(place):
        _kill_holder(place)
    elif unwilling:
        # As its user, which ends the holder too.
        await _bury(place)
        return True
    await asyncio.sleep(_RETRY)
    with contextlib.suppress(FileNotFoundError):
        lock = place.try_lock()
        if lock is not None:
            ran = place.exists()
            try:
                await _bury(place)
            finally:
                os.close(lock)
            return ran
    return False


def _is_ours(place: Place) -> bool:
    return place.uid == os.geteuid()


def _kill_holder(place: Place) -> None:
    try:
        kill_holder(place)
    except OSError as error:
        log.warning("holder_unknown", kernel_id=place.kernel_id, problem=str(error))


async def _bury(place: Place) -> None:
    try:
        if _is_ours(place):
            bury(place)
        else:
            await bury_as_owner(place, place.uid)
    except OSError as error:
        log.warning("not_buried", kernel_id=place.kernel_id, problem=str(error))
