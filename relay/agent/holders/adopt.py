"""Adoption: another holder takes over the kernel of one that died, or the kernel is ended."""

from __future__ import annotations

import time

import msgspec
import structlog

from relay import limits
from relay.agent.launchers.base import Launcher
from relay.config import KernelSettings
from relay.config.holder import HolderConfig
from relay.files import read_struct, write_shared
from relay.kernel_folders import KernelFolder

log = structlog.get_logger(__name__)


async def adopt(launcher: Launcher, kernel_folder: KernelFolder) -> str:
    """Start a holder that adopts a kernel, or end the kernel; nothing where it has a holder.

    Return why the kernel was ended against its user's will; "" otherwise.

    Raises:
        RelayError: the launcher cannot be reached, or the folder is of another version
            (`OtherVersion`): it is left as it is.
        OSError: the folder is gone (``FileNotFoundError``), or no holder can be started.
    """
    async with launcher.claim(kernel_folder) as claim:
        if claim is None:
            return ""
        config = _adoptable(launcher, kernel_folder)
        if config is None:
            await claim.cancel()
            return ""
        deaths = _recent_deaths(kernel_folder, config.kernels.holder_restart_window)
        if len(deaths) > config.kernels.holder_restart_limit:
            reason = _give_up(kernel_folder, config.kernels, len(deaths))
            await claim.cancel()
            return reason
        # Counted before the start: an agent that dies in between does not make it free.
        write_shared(kernel_folder.replacements, msgspec.json.encode(deaths))
        await claim.resume(config.owner)
        log.warning("holder_replaced", kernel_id=kernel_folder.kernel_id)
        return ""


def _adoptable(launcher: Launcher, kernel_folder: KernelFolder) -> HolderConfig | None:
    """Return how to hold a kernel that can be adopted; None for one that cannot."""
    record = kernel_folder.read_record()
    config = read_struct(kernel_folder.request, HolderConfig)
    if record is None or config is None or not record.adoptable:
        return None
    if not launcher.owner_matches(kernel_folder, config.owner):
        log.error("owner_mismatch", kernel_id=kernel_folder.kernel_id, owner=config.owner)
        return None
    return config


def _recent_deaths(kernel_folder: KernelFolder, window: float) -> list[float]:
    """Return when holders died within ``window`` seconds, the latest death, which is now, too.

    Times are seconds since the machine started: a clock that all its processes share.
    """
    try:
        noted = read_struct(kernel_folder.replacements, list[float]) or []
    except OSError:
        noted = []
    now = time.monotonic()
    return [*(then for then in noted if now - window < then <= now), now]


def _give_up(kernel_folder: KernelFolder, settings: KernelSettings, deaths: int) -> str:
    """Report a kernel that was ended since its holders keep dying; return what its user is told."""
    setting, window = "kernels.holder_restart_limit", settings.holder_restart_window
    log.error(
        "holder_restart_limit_reached",
        kernel_id=kernel_folder.kernel_id,
        deaths=deaths,
        window=window,
        setting=setting,
    )
    limits.record(setting)
    return f"The kernel was ended: its holder died {deaths} times within {window:g} s ({setting})."
