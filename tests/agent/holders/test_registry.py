from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from relay.agent.holders.create import StartRequest
from relay.agent.holders.registry import HolderRegistry
from relay.agent.launchers.local import RuntimeInfo
from relay.bridge.records import Phase, RecordKind, Status, struct_record
from relay.config import AgentConfig, CullSettings, ListenSettings
from relay.errors import AgentUnavailable, OtherVersion
from relay.kernel_folders import KernelFolder, kernels_folder
from relay.model import Principal

ADA, BOB = "token:ada", "token:bob"
NOTED = {
    "a request": ("request.json", {"version": 3}),
    "a record": ("record.json", {"version": 3, "holder": "as a later version notes it"}),
    "a journal": ("record.json", {"journal": 2, "holder_pid": 1, "holder_started": 1}),
}


class Starter:
    """A `Starter` that must not be needed, but for folders."""

    def open_folders(self) -> None:
        raise NotImplementedError

    async def prepare(self, kernel_folder: KernelFolder, owner: Principal) -> RuntimeInfo:
        return RuntimeInfo(kernel_folder.path)

    async def start(self, kernel_folder: KernelFolder, owner: str, lock: int) -> int:
        raise NotImplementedError

    async def bury(self, kernel_folder: KernelFolder, lock: int) -> None:
        raise NotImplementedError

    def believes(self, kernel_folder: KernelFolder, owner: str) -> bool:
        return True


class Node:
    """A node's folders, and an agent on it."""

    holders: HolderRegistry

    def __init__(self, state: Path, tasks: asyncio.TaskGroup) -> None:
        self._state = state
        self._closing: list[asyncio.StreamWriter | asyncio.Server] = []
        self._locks: list[int] = []
        config = AgentConfig(
            cluster="alpha",
            listen=ListenSettings(port=1),
            state_dir=str(state),
            ticket_keys=["key.pem"],
            shared_uid=True,
        )
        self.holders = HolderRegistry(config, Starter(), 1000, tasks)

    def folder(self, name: str, owner: str) -> KernelFolder:
        """A kernel's folder, whose holder is gone."""
        kernel_folder = KernelFolder(kernels_folder(self._state, "alpha") / name)
        kernel_folder.path.mkdir(parents=True)
        noted = {"socket": str(self._state / name[-1]), "owner": owner, "name": "python3"}
        kernel_folder.request.write_bytes(msgspec.json.encode(noted))
        return kernel_folder

    def lock(self, kernel_folder: KernelFolder) -> None:
        """Have the lock, as a holder does that runs."""
        lock = kernel_folder.try_lock()
        assert lock is not None
        self._locks.append(lock)

    async def holder(self, name: str, owner: str, version: int = 1) -> KernelFolder:
        """A kernel whose holder answers."""
        kernel_folder = self.folder(name, owner)
        self.lock(kernel_folder)
        status = Status(
            phase=Phase.READY,
            name="python3",
            owner=owner,
            execution_state="idle",
            last_activity=0.0,
            connections=0,
            version=version,
        )

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._closing.append(writer)
            if await reader.read(1):
                writer.write(struct_record(RecordKind.STATUS, status))

        self._closing.append(await asyncio.start_unix_server(serve, self._state / name[-1]))
        return kernel_folder

    async def listed(self, owner: str) -> list[str]:
        """The ids in the list of an owner's kernels."""
        lines = await self.holders.all(lambda kernel: kernel.owner == owner)
        return [line.kernel_folder.kernel_id for line in lines]

    async def start(self, name: str, owner: str) -> None:
        request = StartRequest(
            kernel_id=name,
            name="python3",
            owner=Principal.parse(owner),
            environment={},
            parameters={},
            working_folder=None,
            cull=CullSettings(),
            launch_timeout=1.0,
            request_id="r",
        )
        await self.holders.start(request)

    def close(self) -> None:
        self.holders.close()
        for each in self._closing:
            each.close()
        for lock in self._locks:
            os.close(lock)


@asynccontextmanager
async def running(state: Path) -> AsyncIterator[Node]:
    async with asyncio.TaskGroup() as tasks:
        node = Node(state, tasks)
        yield node
        node.close()


def kernel_id(number: int) -> str:
    return f"0a0a0a0a-0000-4000-8000-00000000000{number}"


def contents(kernel_folder: KernelFolder) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in kernel_folder.path.iterdir() if path.name != "lock"
    }


@pytest.mark.parametrize("noted", NOTED.values(), ids=NOTED)
@pytest.mark.parametrize("alive", [True, False])
async def test_what_another_version_has_left_is_left_alone(
    tmp_path: Path, noted: tuple[str, dict[str, object]], alive: bool
) -> None:
    name, more = noted
    async with running(tmp_path) as node:
        await node.holder(kernel_id(1), BOB)
        kernel_folder = node.folder(kernel_id(2), ADA)
        if alive:
            node.lock(kernel_folder)
        path = kernel_folder.path / name
        before = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
        path.write_bytes(msgspec.json.encode({**before, **more}))
        found = contents(kernel_folder)
        for attempt in (
            node.holders.get(kernel_folder.kernel_id),
            node.start(kernel_folder.kernel_id, ADA),
            node.holders.stop(kernel_folder.kernel_id, "r"),
            node.listed(ADA),
        ):
            with pytest.raises(OtherVersion, match=r"folder has version \d of .* relay has"):
                await attempt
        # Others have their kernels, and an agent that starts finds those that it can serve.
        assert await node.listed(BOB) == [kernel_id(1)]
        await node.holders.find()
        assert [line.kernel_folder.kernel_id for line in node.holders.ready] == [kernel_id(1)]
        assert contents(kernel_folder) == found


@pytest.mark.parametrize("alive", [True, False])
async def test_a_folder_of_another_version_without_an_owner_is_in_nobodys_list(
    tmp_path: Path, alive: bool
) -> None:
    async with running(tmp_path) as node:
        await node.holder(kernel_id(1), BOB)
        kernel_folder = node.folder(kernel_id(2), ADA)
        if alive:
            node.lock(kernel_folder)
        kernel_folder.request.write_bytes(b'{"version":3,"owner":{"name":"ada"}}')
        assert await node.listed(BOB) == [kernel_id(1)]
        assert await node.listed(ADA) == []
        with pytest.raises(OtherVersion):
            await node.start(kernel_folder.kernel_id, ADA)
        assert kernel_folder.exists()


async def test_a_holder_that_speaks_another_version_costs_its_owner_only(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.holder(kernel_id(1), BOB)
        kernel_folder = await node.holder(kernel_id(2), ADA, version=2)
        found = contents(kernel_folder)
        for attempt in (node.holders.get(kernel_folder.kernel_id), node.listed(ADA)):
            with pytest.raises(AgentUnavailable, match="kernel's holder has version 2 of"):
                await attempt
        assert await node.listed(BOB) == [kernel_id(1)]
        assert contents(kernel_folder) == found
