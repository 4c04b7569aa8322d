"""A node within one process: a real launcher, and holders that are servers in this event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from relay.agent.holder_process import HolderFiles, clean_up
from relay.agent.holders.create import StartRequest
from relay.agent.launchers.local import LocalLauncher, RuntimeInfo
from relay.bridge.control import Call, Failure, Phase, Result, Status
from relay.bridge.records import RecordKind, read_struct, struct_record
from relay.config import AgentConfig, CullSettings, ListenSettings
from relay.config.holder import HolderConfig
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder, KernelRecord, kernels_folder
from relay.model import Principal
from relay.streams import read_record
from tests.waiting import until

ADA, BOB = Principal("token", "ada"), Principal("token", "bob")
RECORD = KernelRecord(holder_pid=1, holder_started=1, epoch="e", state="ready", provisioner={})
STATUS = Status(
    phase=Phase.READY,
    name="python3",
    owner=str(ADA),
    execution_state="idle",
    last_activity=0.0,
    connections=0,
)


def agent_config(state: Path, **settings: Any) -> AgentConfig:
    return AgentConfig(
        cluster="alpha",
        listen=ListenSettings(host="127.0.0.1", port=0),
        state_dir=str(state),
        ticket_keys=["ticket.pub"],
        **settings,
    )


def start_request(kernel_id: str, owner: Principal = ADA, **fields: Any) -> StartRequest:
    asked: dict[str, Any] = {
        "name": "python3",
        "environment": {},
        "parameters": {},
        "working_folder": None,
        "cull": CullSettings(),
        "launch_timeout": 7.0,
        "request_id": "r1",
    }
    return StartRequest(kernel_id=kernel_id, owner=owner, **asked | fields)


def holder_config(owner: str) -> HolderConfig:
    """What a kernel's first holder is told, but for what the launcher adds."""
    config = agent_config(Path())
    return HolderConfig(
        name="python3",
        owner=owner,
        created=0.0,
        socket="",
        environment={},
        max_record=1,
        culling=CullSettings(),
        kernels=config.kernels,
        journal=config.journal,
        sessions=config.sessions,
        log=config.log,
    )


class FakeHolder:
    """A holder that serves its socket, as far as it is told to."""

    def __init__(self, kernel_folder: KernelFolder, files: HolderFiles, status: Status) -> None:
        self.kernel_folder = kernel_folder
        self.status = status
        self.calls: list[Call] = []
        self.failure: Failure | None = None
        self.perform: Callable[[Call, asyncio.StreamWriter], object] = self._perform
        self._lock, self._serving = os.dup(files.lock), os.dup(files.serving)
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self) -> None:
        if self._lock < 0:
            # It died first.
            return
        address = self.kernel_folder.read_address()
        assert address is not None
        write_atomic(self.kernel_folder.record, msgspec.json.encode(RECORD))
        address.socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, address.socket)
        self._close("_serving")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(EOFError, OSError):
            while True:
                kind, payload = await read_record(reader, 1 << 20)
                assert kind is RecordKind.CALL
                self.perform(read_struct(payload, Call), writer)

    def _perform(self, call: Call, writer: asyncio.StreamWriter) -> None:
        self.calls.append(call)
        if call.op == "shutdown" and self.failure is None:
            self.tell(phase=Phase.GONE)
        if call.id:
            writer.write(struct_record(RecordKind.RESULT, Result(id=call.id, failure=self.failure)))
        else:
            writer.write(struct_record(RecordKind.STATUS, self.status))
        if call.op == "shutdown" and self.failure is None:
            clean_up(self.kernel_folder)
            self.die()

    def tell(self, **fields: Any) -> None:
        """Change the status, and tell every agent."""
        self.status = msgspec.structs.replace(self.status, **fields)
        for writer in self._writers:
            writer.write(struct_record(RecordKind.STATUS, self.status))

    def die(self) -> None:
        """End as a process does: of what it had, only files stay."""
        # The lock last: whoever sees the end of a connection may find it still taken.
        for writer in self._writers:
            writer.close()
        if self._server is not None:
            self._server.close()
        self._close("_serving")
        self._close("_lock")

    def _close(self, name: str) -> None:
        with suppress(OSError):
            os.close(getattr(self, name))
        setattr(self, name, -1)


class FakeRunner:
    """A `HolderRunner` whose holders are fakes. ``manner`` is what becomes of a new one."""

    def __init__(self, state: Path, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._kernels = kernels_folder(state, "alpha")
        self._sockets = state / "s"
        self.problem: OSError | None = None
        self.manner: Callable[[FakeHolder], object] = self.serve
        self.status = STATUS
        self.holders: list[FakeHolder] = []
        self.cleaned: list[str] = []
        self.mismatched: set[str] = set()

    @property
    def started(self) -> list[str]:
        """The ids of the kernels for which holders were started."""
        return [holder.kernel_folder.kernel_id for holder in self.holders]

    def serve(self, holder: FakeHolder) -> None:
        self._tasks.create_task(holder.serve(), name="holder")

    def open_folders(self) -> None:
        self._kernels.mkdir(parents=True, exist_ok=True)
        self._sockets.mkdir(exist_ok=True)

    async def prepare(self, kernel_folder: KernelFolder, owner: str) -> RuntimeInfo:
        kernel_folder.path.mkdir(exist_ok=True)
        return RuntimeInfo(self._sockets)

    async def run(self, kernel_folder: KernelFolder, owner: str, files: HolderFiles) -> int:
        if self.problem is not None:
            raise self.problem
        noted = msgspec.json.decode(kernel_folder.request.read_bytes(), type=HolderConfig)
        status = msgspec.structs.replace(self.status, owner=noted.owner)
        self.holders.append(FakeHolder(kernel_folder, files, status))
        self.manner(self.holders[-1])
        return 1

    async def clean_up(self, kernel_folder: KernelFolder, lock: int | None) -> None:
        self.cleaned.append(kernel_folder.kernel_id)
        clean_up(kernel_folder)

    def owner_matches(self, kernel_folder: KernelFolder, owner: str) -> bool:
        return kernel_folder.kernel_id not in self.mismatched


class Node:
    """A state folder, and what starts holders in it."""

    def __init__(self, state: Path, tasks: asyncio.TaskGroup) -> None:
        self.state = state
        self.tasks = tasks
        self.runner = FakeRunner(state, tasks)
        self.launcher = LocalLauncher(state, "alpha", self.runner)
        self.launcher.open_folders()

    def folder(self, kernel_id: str) -> KernelFolder:
        return KernelFolder(kernels_folder(self.state, "alpha") / kernel_id)

    async def submit(self, kernel_id: str, owner: Principal = ADA) -> KernelFolder:
        """Start a kernel, as another agent of the node would."""
        kernel_folder = self.folder(kernel_id)
        await self.launcher.submit(kernel_folder, holder_config(str(owner)))
        return kernel_folder

    async def wait_serving(self, kernel_id: str) -> None:
        """Wait until a kernel's holder serves its socket and the launcher knows of it."""
        record = self.folder(kernel_id).record
        expected = self.launcher._signals.is_expected
        await until(lambda: record.exists() and not expected(kernel_id))


@asynccontextmanager
async def running_node(state: Path) -> AsyncIterator[Node]:
    """Run a node's holders; they end with the test."""
    async with asyncio.TaskGroup() as tasks:
        node = Node(state, tasks)
        yield node
        for holder in node.runner.holders:
            holder.die()
