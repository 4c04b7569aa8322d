"""Kernels that run as other OS users: asked of the launcher, which is root and does little else.

What a kernel's user writes into the kernel's folder is read with care (``files.py``), and
believed where the folder's own uid, which only root can set, says the same.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import structlog

from relay.agent.launchers.local import RuntimeInfo, bury, open_log
from relay.agent.privsep.os_users import OsUsers
from relay.agent.privsep.protocol import HelperRequest, HelperResponse, close, receive, send
from relay.config import AgentConfig
from relay.errors import AgentUnavailable, Conflict, Forbidden
from relay.files import TRAVERSABLE, private_folder
from relay.kernel_folders import KernelFolder, kernels_folder, shared_runtime_folder
from relay.model import Principal

log = structlog.get_logger(__name__)

_ANSWER: Final = 30.0
"""Seconds that the launcher may take."""


class OtherUserLauncher:
    """The `Starter` where each kernel runs as the OS user of its owner."""

    def __init__(self, config: AgentConfig, users: OsUsers, channel: socket.socket) -> None:
        """Raise `FolderError` where the runtime folder cannot be used."""
        self._kernels = kernels_folder(Path(config.state_dir), config.cluster)
        self._runtime = shared_runtime_folder(config.runtime_dir or "")
        self._users = users
        self._channel = channel
        self._waiting: dict[str, asyncio.Future[HelperResponse]] = {}
        self._reading = False

    def open_folders(self) -> None:
        """As in `Starter`. The launcher sweeps."""
        for folder in (self._kernels.parent, self._kernels):
            private_folder(folder, TRAVERSABLE)

    async def prepare(self, kernel_folder: KernelFolder, owner: Principal) -> RuntimeInfo:
        """As in `Starter`."""
        user = await asyncio.to_thread(self._users.of, owner)
        await self._ask("prepare", kernel_folder, str(owner))
        return RuntimeInfo(self._runtime / str(user.uid), user.environment, user.working_folder)

    async def start(self, kernel_folder: KernelFolder, owner: str, lock: int) -> int:
        """As in `Starter`."""
        log_file = open_log(kernel_folder)
        try:
            return (await self._ask("start", kernel_folder, owner, (lock, log_file))).pid
        finally:
            os.close(log_file)

    async def bury(self, kernel_folder: KernelFolder, lock: int) -> None:
        """As in `Starter`."""
        if kernel_folder.uid == os.geteuid():
            # Of a time when all kernels ran as our own user.
            bury(kernel_folder)
        else:
            await self._ask("bury", kernel_folder, "", (lock,))

    def believes(self, kernel_folder: KernelFolder, owner: str) -> bool:
        """As in `Starter`."""
        try:
            return self._users.uid_of(owner) == kernel_folder.uid
        except OSError:
            return False

    async def _ask(
        self,
        op: Literal["prepare", "start", "bury"],
        kernel_folder: KernelFolder,
        owner: str,
        files: Sequence[int] = (),
    ) -> HelperResponse:
        order = HelperRequest(
            id=secrets.token_hex(8), op=op, kernel_id=kernel_folder.kernel_id, owner=owner
        )
        loop = asyncio.get_running_loop()
        if not self._reading:
            loop.add_reader(self._channel, self._read)
            self._reading = True
        waiting: asyncio.Future[HelperResponse] = loop.create_future()
        self._waiting[order.id] = waiting
        try:
            send(self._channel, order, files)
            done = await asyncio.wait_for(waiting, _ANSWER)
        except (BlockingIOError, TimeoutError):
            msg = "The agent's launcher does not answer."
            raise AgentUnavailable(msg, retry_after=1) from None
        finally:
            del self._waiting[order.id]
        _raise(done)
        return done

    def _read(self) -> None:
        while True:
            try:
                done, files = receive(self._channel, HelperResponse)
            except BlockingIOError:
                return
            except (EOFError, OSError):
                # The launcher is gone, and we are about to be.
                asyncio.get_running_loop().remove_reader(self._channel)
                return
            close(files)
            # Answers to an agent that was killed have nobody who waits for them.
            waiting = self._waiting.get(done.id) if done is not None else None
            if done is not None and waiting is not None and not waiting.done():
                waiting.set_result(done)


def _raise(done: HelperResponse) -> None:
    match done.kind:
        case "forbidden":
            raise Forbidden(done.problem)
        case "conflict":
            raise Conflict(done.problem)
        case "os":
            raise OSError(done.errno, done.problem)
        case "":
            return
