from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from relay.agent.holders.client import HolderClient, HolderEndpoint, connect
from relay.bridge.control import Close, Phase, Status
from relay.bridge.records import RecordKind, struct_record
from relay.errors import OtherVersion
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder
from relay.streams import peer_uid
from tests.waiting import until

STATUS = Status(
    phase=Phase.READY,
    name="python3",
    owner="token:alice",
    execution_state="idle",
    last_activity=0.0,
    connections=0,
)


class Holder:
    """Says what it is told to, in its kernel's folder."""

    def __init__(self) -> None:
        self.says: list[Status] = [STATUS]
        self.refuses: Close | None = None
        self.connected = 0
        self.writer: asyncio.StreamWriter

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        self.writer = writer
        if not await reader.read(1):
            writer.close()
            return
        if self.refuses is not None:
            writer.write(struct_record(RecordKind.CLOSE, self.refuses))
            return
        for status in self.says:
            writer.write(struct_record(RecordKind.STATUS, status))


@pytest.fixture
async def holder(tmp_path: Path) -> AsyncIterator[Holder]:
    made = Holder()
    server = await asyncio.start_unix_server(made.serve, tmp_path / "s")
    yield made
    server.close()
    if made.connected:
        made.writer.close()


@pytest.fixture
def kernel_folder(tmp_path: Path) -> KernelFolder:
    folder = tmp_path / "k"
    folder.mkdir()
    noted = {"socket": str(tmp_path / "s"), "owner": STATUS.owner, "name": STATUS.name}
    write_atomic(folder / "request.json", msgspec.json.encode(noted))
    return KernelFolder(folder)


async def test_a_client_is_of_the_folders_own_user(
    holder: Holder, kernel_folder: KernelFolder
) -> None:
    client = await HolderClient.open(kernel_folder)
    assert client.socket == HolderEndpoint(kernel_folder.path.parent / "s", os.geteuid())
    assert client.status == STATUS
    client.close()


async def test_another_users_process_gets_not_a_byte(holder: Holder, tmp_path: Path) -> None:
    address = HolderEndpoint(tmp_path / "s", os.geteuid() + 1)
    with pytest.raises(PermissionError):
        await connect(address, 1024)
    await until(lambda: holder.connected == 1 and holder.writer.is_closing())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
async def test_a_folder_that_is_another_users_has_no_client(
    holder: Holder, kernel_folder: KernelFolder
) -> None:
    os.chown(kernel_folder.path, os.geteuid() + 1, -1)
    with pytest.raises(PermissionError):
        await HolderClient.open(kernel_folder)


async def test_a_kernel_does_not_change_hands(holder: Holder, kernel_folder: KernelFolder) -> None:
    stolen = msgspec.structs.replace(STATUS, owner="token:bob")
    holder.says = [STATUS, stolen]
    client = await HolderClient.open(kernel_folder)
    await asyncio.wait_for(client.run(), 5)
    assert client.status.owner == "token:alice"


async def test_the_other_end_has_a_user(holder: Holder, tmp_path: Path) -> None:
    _, writer = await asyncio.open_unix_connection(tmp_path / "s")
    assert peer_uid(writer) == os.geteuid()
    writer.close()


async def test_a_holder_of_another_version_has_no_line(
    holder: Holder, kernel_folder: KernelFolder
) -> None:
    holder.says = [msgspec.structs.replace(STATUS, version=2)]
    with pytest.raises(OtherVersion, match=r"holder has version 2 of .* agent has version 1\."):
        await HolderClient.open(kernel_folder)


async def test_a_holder_that_refuses_the_agent_has_no_line(
    holder: Holder, kernel_folder: KernelFolder
) -> None:
    holder.refuses = Close(1012, "<stranger's words>", version=2)
    with pytest.raises(OtherVersion) as caught:
        await HolderClient.open(kernel_folder)
    assert "The kernel's holder has version 2 of the relay's records" in caught.value.message
    assert "stranger" not in caught.value.message


@pytest.mark.parametrize("noted", [{"version": 3}, {"journal": 2}])
async def test_of_a_folder_of_another_version_no_holder_is_asked(
    holder: Holder, kernel_folder: KernelFolder, noted: dict[str, int]
) -> None:
    write_atomic(kernel_folder.record, msgspec.json.encode(noted))
    with pytest.raises(OtherVersion):
        await HolderClient.open(kernel_folder)
    assert not holder.connected
