"""A line to one holder: its status as it changes, and calls with their answers."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from relay.bridge.records import (
    Call,
    Failure,
    GrantChange,
    Phase,
    RecordError,
    RecordKind,
    Result,
    Status,
    read_struct,
    struct_record,
)
from relay.errors import (
    AgentTimeout,
    AgentUnavailable,
    DiskFull,
    KernelError,
    NotFound,
    RelayError,
    TooMany,
)
from relay.kernel_folders import KernelFolder
from relay.model import KernelModel, jupyter_time
from relay.streams import peer_uid, read_record

log = structlog.get_logger(__name__)

_BY_STATUS: Final[dict[int, type[RelayError]]] = {
    error.http_status: error for error in (NotFound, TooMany, DiskFull)
}
_READ_AHEAD: Final = 64 * 1024
_MAX_RECORD: Final = 1024 * 1024
"""Bytes of a record on a line: calls, results and statuses."""


class HolderEndpoint(NamedTuple):
    """Where a holder serves, and the OS user who has to be there."""

    path: Path
    uid: int


async def connect(
    address: HolderEndpoint, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a holder; ``limit`` in bytes is how much is read ahead.

    Raises ``OSError``, also where somebody else's process listens there: what the path names is in
    the hands of the kernel's user.
    """
    reader, writer = await asyncio.open_unix_connection(address.path, limit=limit)
    if peer_uid(writer) != address.uid:
        writer.close()
        log.warning("refused_holder", path=str(address.path), uid=peer_uid(writer))
        raise PermissionError("the holder's socket is served by another OS user")
    return reader, writer


class HolderClient:
    """One holder, for as long as both it and this agent live."""

    def __init__(
        self,
        kernel_folder: KernelFolder,
        socket: HolderEndpoint,
        status: Status,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.kernel_folder = kernel_folder
        self.socket = socket
        self.status = status
        self.closed = False
        """Whether this side hung up."""
        self._reader, self._writer = streams
        self._calls: dict[int, asyncio.Future[Failure | None]] = {}
        self._ids = itertools.count(1)
        self._changed = asyncio.Event()

    @classmethod
    async def open(cls, kernel_folder: KernelFolder) -> HolderClient:
        """Connect and hear the first status. Raises ``OSError`` and ``EOFError``."""
        address = kernel_folder.read_address()
        if address is None:
            raise FileNotFoundError(kernel_folder.request)
        holder = HolderEndpoint(address.socket, kernel_folder.uid)
        reader, writer = await connect(holder, _READ_AHEAD)
        writer.write(struct_record(RecordKind.CALL, Call(id=0, op="status")))
        try:
            while True:
                kind, payload = await read_record(reader, _MAX_RECORD)
                if kind is RecordKind.STATUS:
                    status = read_struct(payload, Status)
                    streams = reader, writer
                    return cls(kernel_folder, holder, status, streams)
        except BaseException:
            writer.close()
            raise

    @property
    def model(self) -> KernelModel:
        """The kernel as REST shows it."""
        return KernelModel(
            id=self.kernel_folder.kernel_id,
            name=self.status.name,
            last_activity=jupyter_time(self.status.last_activity),
            execution_state=self.status.execution_state,
            connections=self.status.connections,
        )

    async def run(self) -> None:
        """Follow the holder until either side hangs up."""
        try:
            while self.status.phase not in {Phase.GONE, Phase.FAILED}:
                self._take(*await read_record(self._reader, _MAX_RECORD))
        except (OSError, EOFError):
            # How it ended is for the owner to find out.
            pass
        except RecordError as error:
            log.warning("bad_record", problem=error.message)
        finally:
            self._changed.set()
            self._writer.close()
            self._finish_calls()

    def _finish_calls(self) -> None:
        for waiting in self._calls.values():
            if waiting.done():
                continue
            if self.status.phase is Phase.GONE:
                waiting.set_result(None)
            else:
                msg = "The kernel's holder went away."
                waiting.set_exception(AgentUnavailable(msg, retry_after=1))

    def _take(self, kind: RecordKind, payload: bytes) -> None:
        match kind:
            case RecordKind.STATUS:
                status = read_struct(payload, Status)
                if status.owner != self.status.owner:
                    msg = "a kernel's owner does not change"
                    raise RecordError(msg)
                self.status = status
                self._changed.set()
            case RecordKind.RESULT:
                result = read_struct(payload, Result)
                waiting = self._calls.get(result.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(result.failure)
            case _:
                msg = f"{kind.name} is not for this connection"
                raise RecordError(msg)

    async def settled(self, timeout: float) -> None:
        """Wait until the kernel has started or failed to. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout):
            while self.status.phase is Phase.STARTING and not self._writer.is_closing():
                self._changed.clear()
                await self._changed.wait()

    async def call(
        self, op: str, request_id: str, timeout: float, *, grant: GrantChange | None = None
    ) -> None:
        """Have the holder do something.

        Raises `AgentTimeout`, and what the holder says: `KernelError`, or for a grant `NotFound`,
        `TooMany` or `DiskFull`.
        """
        call = Call(id=next(self._ids), op=op, grant=grant, request_id=request_id)
        waiting = asyncio.get_running_loop().create_future()
        self._calls[call.id] = waiting
        try:
            self._writer.write(struct_record(RecordKind.CALL, call))
            failure = await asyncio.wait_for(waiting, timeout)
        except TimeoutError:
            msg = f"The kernel did not {op} within {timeout:g} s."
            raise AgentTimeout(msg) from None
        finally:
            del self._calls[call.id]
        if failure is not None:
            raise _BY_STATUS.get(failure.http_status, KernelError)(failure.message)

    def close(self) -> None:
        """Hang up; the holder and its kernel live on."""
        self.closed = True
        self._writer.close()
