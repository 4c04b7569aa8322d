"""The runner where each kernel runs as its owner's OS user: it asks the privileged helper.

What a kernel's user writes into the kernel's folder is read with care (``files.py``), and trusted
as far as the folder's own uid, which only root can set, says the same.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from relay.agent.holder_process import HolderFiles, clean_up
from relay.agent.launchers.local import RuntimeInfo
from relay.agent.privsep.os_users import OsUsers
from relay.agent.privsep.protocol import HelperRequest, HelperResponse, close, receive, send
from relay.config import AgentConfig
from relay.errors import AgentUnavailable, Conflict, Forbidden
from relay.files import TRAVERSABLE, private_folder
from relay.kernel_folders import KernelFolder, kernels_folder
from relay.model import Principal
from relay.runtime_dir import shared_runtime_folder

_TIMEOUT: Final = 30.0
"""Seconds that the privileged helper may take for one request."""


class OtherUserRunner:
    """The `HolderRunner` for kernels of their owners' OS users."""

    def __init__(self, config: AgentConfig, users: OsUsers, channel: socket.socket) -> None:
        """Raise `FolderError` where the runtime folder cannot be used."""
        self._kernels = kernels_folder(Path(config.state_dir), config.cluster)
        self._runtime = shared_runtime_folder(config.runtime_dir or "")
        self._starts_at_home = config.root_dir is None
        self._users = users
        self._channel = channel
        self._waiting: dict[str, asyncio.Future[HelperResponse]] = {}
        self._reading = False

    def open_folders(self) -> None:
        """As in `Launcher`. The privileged helper sweeps."""
        for folder in (self._kernels.parent, self._kernels):
            private_folder(folder, TRAVERSABLE)

    async def prepare(self, kernel_folder: KernelFolder, owner: str) -> RuntimeInfo:
        """As in `HolderRunner`."""
        user = await asyncio.to_thread(self._users.of, Principal.parse(owner))
        await self._ask("prepare", kernel_folder, owner)
        home = user.working_folder if self._starts_at_home else None
        return RuntimeInfo(self._runtime / str(user.uid), user.environment, home)

    async def run(self, kernel_folder: KernelFolder, owner: str, files: HolderFiles) -> int:
        """As in `HolderRunner`."""
        return (await self._ask("start", kernel_folder, owner, files)).pid

    async def clean_up(self, kernel_folder: KernelFolder, lock: int | None) -> None:
        """As in `HolderRunner`."""
        if kernel_folder.uid == os.geteuid():
            # The folder is from a time when all kernels ran as the agent's own user.
            clean_up(kernel_folder)
        else:
            files = () if lock is None else (lock,)
            await self._ask("clean_up", kernel_folder, "", files)

    def owner_matches(self, kernel_folder: KernelFolder, owner: str) -> bool:
        """As in `Launcher`: the owner's OS user is the folder's."""
        try:
            return self._users.uid_of(owner) == kernel_folder.uid
        except OSError:
            return False

    async def _ask(
        self,
        op: Literal["prepare", "start", "clean_up"],
        kernel_folder: KernelFolder,
        owner: str,
        files: Sequence[int] = (),
    ) -> HelperResponse:
        request = HelperRequest(
            id=secrets.token_hex(8), op=op, kernel_id=kernel_folder.kernel_id, owner=owner
        )
        loop = asyncio.get_running_loop()
        if not self._reading:
            loop.add_reader(self._channel, self._read)
            self._reading = True
        waiting: asyncio.Future[HelperResponse] = loop.create_future()
        self._waiting[request.id] = waiting
        try:
            send(self._channel, request, files)
            response = await asyncio.wait_for(waiting, _TIMEOUT)
        except (BlockingIOError, TimeoutError):
            msg = "The agent's privileged helper does not answer."
            raise AgentUnavailable(msg, retry_after=1) from None
        finally:
            del self._waiting[request.id]
        _raise_problem(response)
        return response

    def _read(self) -> None:
        while True:
            try:
                response, files = receive(self._channel, HelperResponse)
            except BlockingIOError:
                return
            except (EOFError, OSError):
                # The helper has ended, and this agent is about to.
                asyncio.get_running_loop().remove_reader(self._channel)
                return
            close(files)
            # Nobody waits for responses to an agent that was killed.
            waiting = self._waiting.get(response.id) if response is not None else None
            if response is not None and waiting is not None and not waiting.done():
                waiting.set_result(response)


def _raise_problem(response: HelperResponse) -> None:
    match response.kind:
        case "forbidden":
            raise Forbidden(response.problem)
        case "conflict":
            raise Conflict(response.problem)
        case "os":
            raise OSError(response.errno, response.problem)
        case "":
            return
