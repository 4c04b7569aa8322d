"""Ends what a dead holder left, as the OS user whose folder it is.

What that user has written there is believed no further than the user's own rights go: a pid that
is read from it may name anybody's process. So whoever has more rights runs this as a program, as
that user.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import structlog

from relay.agent.launchers.local import bury, when_ended
from relay.kernel_folders import KernelFolder, hidden_name, process_started

log = structlog.get_logger(__name__)

_NOBODY: Final = 65534
_PATIENCE: Final = 30.0
"""Seconds that a burial may take: its user can stop it as any other process of his."""


def main() -> None:
    """Bury what is in the folder given on the command line."""
    parser = argparse.ArgumentParser(prog="relay.agent.privsep.cleanup")
    parser.add_argument("--folder", type=Path, required=True)
    kernel_folder = KernelFolder(parser.parse_args().folder)
    kill_holder(kernel_folder)
    bury(kernel_folder)


def kill_holder(kernel_folder: KernelFolder) -> None:
    """End the holder that the folder names, where it still runs. Raises ``OSError``."""
    record = kernel_folder.read_record()
    if record is None or record.holder_pid <= 0:
        return
    if process_started(record.holder_pid) == record.holder_started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(record.holder_pid, signal.SIGKILL)


async def bury_as_owner(kernel_folder: KernelFolder, uid: int) -> None:
    """Free the kernel's id and end what is left of it, holder included, as the OS user ``uid``.

    Needs root's rights. Raises ``OSError`` where the folder cannot be moved aside.
    """
    if uid == 0:
        raise PermissionError("nothing is run as root")
    doomed = KernelFolder(kernel_folder.path.with_name(hidden_name(kernel_folder.kernel_id)))
    kernel_folder.path.rename(doomed.path)
    await empty_as_owner(doomed, uid)
    with contextlib.suppress(OSError):
        doomed.path.rmdir()


async def empty_as_owner(doomed: KernelFolder, uid: int) -> None:
    """End what is left of a kernel whose folder was moved aside, and delete what is in that.

    Raises ``OSError`` where no process can be started.
    """
    try:
        gid = pwd.getpwuid(uid).pw_gid
    except KeyError:
        gid = _NOBODY
    process = _run(doomed.path, uid, gid)
    ended = asyncio.Event()
    when_ended(process, ended.set)
    try:
        async with asyncio.timeout(_PATIENCE):
            await ended.wait()
    except TimeoutError:
        log.warning("burial_given_up", folder=doomed.kernel_id, uid=uid, seconds=_PATIENCE)
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
