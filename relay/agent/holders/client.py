"""The client of one holder: its status as it changes, and calls with their results."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from relay.bridge.control import Call, Failure, GrantChange, Operation, Phase, Result, Status
from relay.bridge.openings import AGENT, HOLDER, read_opening, refused
from relay.bridge.records import RecordError, RecordKind, read_struct, struct_record
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
"""Bytes of one record: a call, a result or a status."""


class AdmittedPrincipal(NamedTuple):
    """Who reads a kernel's messages, and what they may: fields of `bridge.control.Attach`."""

    principal: str
    views_only: bool = False
    granted: bool = False


class HolderEndpoint(NamedTuple):
    """Where a holder serves, and the OS user whose process it has to be."""

    path: Path
    uid: int


async def connect(
    address: HolderEndpoint, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a holder; ``limit`` in bytes is how much is read ahead.

    Raises:
        OSError: nothing listens there, or another OS user's process does: the kernel's user can
            put anything in the place of the socket.
    """
    reader, writer = await asyncio.open_unix_connection(address.path, limit=limit)
    if peer_uid(writer) != address.uid:
        writer.close()
        log.warning("holder_rejected", path=str(address.path), uid=peer_uid(writer))
        raise PermissionError("the holder's socket is served by another OS user")
    return reader, writer


async def _first_status(reader: asyncio.StreamReader) -> Status:
    """Return the status that a holder sends first. Raises as `HolderClient.open`."""
    while True:
        kind, payload = await read_record(reader, _MAX_RECORD)
        if kind is RecordKind.CLOSE:
            raise refused(payload, HOLDER, AGENT)
        if kind is RecordKind.STATUS:
            return read_opening(payload, Status, HOLDER, AGENT)


class HolderClient:
    """One holder, for as long as the connection to it lasts."""

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
        """Whether this side closed the connection."""
        self._reader, self._writer = streams
        self._calls: dict[int, asyncio.Future[Failure | None]] = {}
        self._ids = itertools.count(1)
        self._changed = asyncio.Event()

    @classmethod
    async def open(cls, kernel_folder: KernelFolder) -> HolderClient:
        """Connect and read the first status.

        Raises:
            OtherVersion: the folder, or its holder, is of a version that is not known here.
            RecordError: what answers there is no holder.
            OSError: nothing answers there, or another OS user's process does.
            EOFError: the connection ends before there is a status.
        """
        kernel_folder.check_versions()
        address = kernel_folder.read_address()
        if address is None:
            raise FileNotFoundError(kernel_folder.request)
        holder = HolderEndpoint(address.socket, kernel_folder.uid)
        reader, writer = await connect(holder, _READ_AHEAD)
        writer.write(struct_record(RecordKind.CALL, Call(id=0, op="status")))
        try:
            status = await _first_status(reader)
        except BaseException:
            writer.close()
            raise
        return cls(kernel_folder, holder, status, (reader, writer))

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
        """Follow the holder until either side closes the connection."""
        try:
            while self.status.phase not in {Phase.GONE, Phase.FAILED}:
                self._take(*await read_record(self._reader, _MAX_RECORD))
        except (OSError, EOFError):
            # Why it ended, the caller finds out.
            pass
        except RecordError as error:
            log.warning("malformed_record", problem=error.message)
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

    async def wait_started(self, timeout: float) -> None:
        """Wait until the kernel has started or failed to. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout):
            while self.status.phase is Phase.STARTING and not self._writer.is_closing():
                self._changed.clear()
                await self._changed.wait()

    async def call(
        self, op: Operation, request_id: str, timeout: float, *, grant: GrantChange | None = None
    ) -> None:
        """Have the holder perform one operation.

        Raises:
            AgentTimeout: there is no result after ``timeout`` seconds.
            AgentUnavailable: the connection ended first.
            KernelError: the holder failed; for a grant also `NotFound`, `TooMany` or `DiskFull`.
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
        """Close the connection; the holder and its kernel live on."""
        self.closed = True
        self._writer.close()
