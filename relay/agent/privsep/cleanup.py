"""Cleanup of kernels whose holders have died, as the OS user of the kernel's folder.

A pid that is read from a kernel's folder may name anybody's process. So a process with more rights
than the folder's user runs this module as a program, as that user: the user's own rights then bound
what can be signalled and deleted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Final

import structlog

from relay.agent.holder_process import clean_up, kill, open_process, reap
from relay.kernel_folders import KernelFolder, hidden_name

log = structlog.get_logger(__name__)

_NOBODY: Final = 65534
_TIMEOUT: Final = 30.0
"""Seconds that a cleanup may take: the folder's user can stop it like any process of theirs."""


def main() -> None:
    """Clean up the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="relay.agent.privsep.cleanup")
    parser.add_argument("--folder", type=Path, required=True)
    kernel_folder = KernelFolder(parser.parse_args().folder)
    record = kernel_folder.read_record()
    if record is not None:
        with open_process(record.holder_pid, record.holder_started) as pidfd:
            if pidfd is not None:
                kill(pidfd)
    clean_up(kernel_folder)


async def clean_up_as_owner(kernel_folder: KernelFolder) -> None:
    """Free the kernel's id, then end its holder and kernel as the folder's OS user.

    Needs root's rights.

    Raises:
        OSError: the folder cannot be moved aside, or is root's.
    """
    uid = kernel_folder.uid
    if uid == 0:
        raise PermissionError("nothing is run as root")
    hidden = KernelFolder(kernel_folder.path.with_name(hidden_name(kernel_folder.kernel_id)))
    kernel_folder.path.rename(hidden.path)
    await empty_as_owner(hidden, uid)
    with contextlib.suppress(OSError):
        hidden.path.rmdir()


async def empty_as_owner(hidden: KernelFolder, uid: int) -> None:
    """End what runs for a kernel whose folder was moved aside, and delete the folder's contents.

    Raises:
        OSError: no process can be started.
    """
    try:
        gid = pwd.getpwuid(uid).pw_gid
    except KeyError:
        gid = _NOBODY
    process = _run(hidden.path, uid, gid)
    ended = asyncio.Event()
    reap(process, ended.set)
    try:
        async with asyncio.timeout(_TIMEOUT):
            await ended.wait()
    except TimeoutError:
        log.warning("cleanup_timed_out", folder=hidden.kernel_id, uid=uid, seconds=_TIMEOUT)
        process.kill()
        await ended.wait()


def _run(folder: Path, uid: int, gid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-P", "-m", "relay.agent.privsep.cleanup", "--folder", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        user=uid,
        group=gid,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.defpath},
    )


if __name__ == "__main__":
    main()
