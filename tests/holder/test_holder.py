"""A whole holder with its files and its socket, and a kernel that is a list."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay.bridge.control import Attach, Attached, Call, Phase, Result, Status
from relay.bridge.messages import Channel, Message
from relay.bridge.records import RecordKind, read_entries, read_struct, struct_record, submit_record
from relay.config import CullSettings, JournalSettings, KernelSettings, SessionSettings
from relay.config.holder import HolderConfig
from relay.config.values import LogSettings
from relay.errors import KernelError
from relay.holder.holder import Holder
from relay.kernel_folders import KernelFolder
from relay.streams import read_record
from tests.holder.fake_backend import FakeBackend

LIMIT = 2**20
WAIT = 30.0
CELL = {"msg_id": "m", "session": "s", "msg_type": "execute_request"}
ATTACH = struct_record(RecordKind.ATTACH, Attach(link="l", principal="token:ada", session_id="s"))


def config(folder: Path) -> HolderConfig:
    return HolderConfig(
        name="python3",
        owner="token:ada",
        created=0.0,
        socket=str(folder / "s"),
        environment={},
        max_record=LIMIT,
        culling=CullSettings(),
        kernels=KernelSettings(),
        journal=JournalSettings(),
        sessions=SessionSettings(),
        log=LogSettings(),
    )


class Bench:
    """One holder after the other in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = KernelFolder(folder)
        self.backend = FakeBackend()
        self.holder: Holder
        self.serving: list[bool] = []
        """Once for each holder that has been served."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """While a holder runs; one that is still there is killed."""
        self.holder = self._made()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.holder.run())
            # The socket of a holder that was killed is still there.
            served = len(self.serving)
            await until(lambda: len(self.serving) > served)
            try:
                yield task
            finally:
                task.cancel()
                self._release()

    def _release(self) -> None:
        """Give back what the operating system takes from a process that was killed."""
        self.holder._server.close()
        self.holder._broker.outbound.close()
        self.holder._store.close()

    def _made(self) -> Holder:
        record = self.folder.read_record()
        return Holder(
            self.folder,
            config(self.folder.path),
            frozenset({_uid()}),
            record,
            lambda: self.serving.append(True),
            self.backend,
        )

    async def connect(self, opening: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.folder.path / "s")
        writer.write(opening)
        return reader, writer


def _uid() -> int:
    return Path("/proc/self").stat().st_uid


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not happened():  # noqa: ASYNC110 - nothing sets an event for it
            await asyncio.sleep(0)


async def next_of(reader: asyncio.StreamReader, kind: RecordKind) -> bytes:
    async with asyncio.timeout(WAIT):
        while True:
            found, payload = await read_record(reader, LIMIT)
            if found is kind:
                return payload


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_an_agent_follows_a_kernel_from_start_to_end(bench: Bench) -> None:
    async with bench.running() as task:
        call = struct_record(RecordKind.CALL, Call(id=0, op="status"))
        reader, writer = await bench.connect(call)
        status = read_struct(await next_of(reader, RecordKind.STATUS), Status)
        while status.phase is not Phase.READY:
            status = read_struct(await next_of(reader, RecordKind.STATUS), Status)
        assert (status.name, status.owner, status.execution_state) == (
            "python3",
            "token:ada",
            "idle",
        )
        writer.write(struct_record(RecordKind.CALL, Call(id=1, op="shutdown")))
        result = read_struct(await next_of(reader, RecordKind.RESULT), Result)
        while result.id != 1:
            result = read_struct(await next_of(reader, RecordKind.RESULT), Result)
        assert result.failure is None
        writer.close()
        async with asyncio.timeout(WAIT):
            await task
    assert not (bench.folder.path / "s").exists()
    record = bench.folder.read_record()
    assert record is not None
    assert record.state == "ending"


async def test_only_what_a_holder_can_do_is_done(bench: Bench) -> None:
    async with bench.running():
        await until(lambda: bench.holder._lifecycle.phase is Phase.READY)
        await bench.holder.operate("interrupt")
        await bench.holder.operate("restart")
        await bench.holder.operate("status")
        with pytest.raises(KernelError):
            await bench.holder.operate("dance")
        assert bench.backend.calls == ["launch", "interrupt", "end to relaunch", "launch"]


async def test_the_next_holder_synthesizes_what_the_dead_one_owed(bench: Bench) -> None:
    async with bench.running():
        await until(lambda: bench.holder._lifecycle.phase is Phase.READY)
        bench.backend.channel.answers = False
        reader, writer = await bench.connect(ATTACH)
        first = read_struct(await next_of(reader, RecordKind.ATTACHED), Attached)
        parts = [json.dumps(CELL).encode(), b"{}", b"{}", b"{}"]
        writer.write(submit_record(1, Message.from_parts(Channel.SHELL, parts)))
        await next_of(reader, RecordKind.ACK)
        writer.close()
    # Killed, and the kernel with its cell goes on.
    async with bench.running():
        assert bench.backend.calls == ["launch", "adopt launch 1"]
        reader, writer = await bench.connect(ATTACH)
        attached = read_struct(await next_of(reader, RecordKind.ATTACHED), Attached)
        assert attached == first.__class__(position=first.position, acknowledged=1)
        await bench.backend.channel.answer_probes(Channel.SHELL)
        await until(lambda: "forget predecessors" in bench.backend.calls)
        found: list[tuple[str, str]] = []
        while len(found) < 3:
            for entry in read_entries(await next_of(reader, RecordKind.ENTRIES)):
                header, parent, _, content = (json.loads(bytes(part)) for part in entry.parts[:4])
                if parent == CELL:
                    what = content.get("ename") or content.get("execution_state")
                    found.append((header["msg_type"], what or content["name"]))
        assert found == [
            ("stream", "stderr"),
            ("execute_reply", "RelayReplyLost"),
            ("status", "idle"),
        ]
        writer.close()
