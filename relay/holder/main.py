"""The holder's process: one kernel, from its launch to its end.

Started by an agent, apart from it: nothing that happens to agents, edge or supervisor touches a
holder. It ends with its kernel, or on SIGTERM, which ends the kernel too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path
from typing import Final

import msgspec
import structlog
import uvloop

from relay import log as logging
from relay.config.holder import HolderConfig
from relay.errors import OtherVersion
from relay.holder.holder import Holder
from relay.kernel_folders import KernelFolder, remove
from relay.processes import hide_from_user, refuse_new_privileges

_ROOT: Final = 0


def main() -> None:
    """Run one holder in the folder given on the command line."""
    parser = argparse.ArgumentParser(prog="relay.holder")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--lock", type=int, required=True, help="descriptor of the taken lock")
    parser.add_argument("--serving", type=int, help="descriptor to close when the socket is served")
    parser.add_argument("--agent-uid", type=int, help="the OS user of agents; ours by default")
    parser.add_argument("--no-new-privileges", action="store_true", help="for the kernel, too")
    arguments = parser.parse_args()
    agents = {os.geteuid()}
    if arguments.agent_uid is not None:
        # Our own user is the kernel's, too.
        agents = {arguments.agent_uid, _ROOT}
        hide_from_user()
    if arguments.no_new_privileges:
        refuse_new_privileges()
    kernel_folder = KernelFolder(arguments.folder)
    # The lock is held by this process alone, for as long as it lives: no child inherits it.
    os.set_inheritable(arguments.lock, False)
    if arguments.serving is not None:
        os.set_inheritable(arguments.serving, False)
    config = _read_config(kernel_folder)
    logging.configure(config.log.level, config.log.format, component="holder")
    structlog.contextvars.bind_contextvars(
        kernel_id=kernel_folder.kernel_id, request_id=config.request_id
    )
    uvloop.run(_run(kernel_folder, config, frozenset(agents), arguments.serving))


def _read_config(kernel_folder: KernelFolder) -> HolderConfig:
    """What the agent asks for. Exits where the folder is of a version that is not known here."""
    try:
        kernel_folder.check_versions()
    except OtherVersion as error:
        raise SystemExit(f"version_refused: {error.message}") from error
    return msgspec.json.decode(kernel_folder.request.read_bytes(), type=HolderConfig)


async def _run(
    kernel_folder: KernelFolder, config: HolderConfig, agents: frozenset[int], serving: int | None
) -> None:
    def on_serving() -> None:
        """Tell the agent that started this holder: it waits for the end of a pipe."""
        if serving is not None:
            os.close(serving)

    left = kernel_folder.read_record()
    holder = Holder(kernel_folder, config, agents, left, on_serving)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:

        def stop() -> None:
            tasks.create_task(holder.operate("shutdown"), name="shutdown")

        loop.add_signal_handler(signal.SIGTERM, stop)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(ignored, lambda: None)
        await holder.run()
        loop.remove_signal_handler(signal.SIGTERM)
    remove(kernel_folder)
