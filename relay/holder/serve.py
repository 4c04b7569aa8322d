"""The holder's unix socket: agents attach clients here and ask for interrupts, restarts, the end.

A connection's first record says what it is: `Attach` makes it one client's channels, anything
else an agent's line for calls, on which the kernel's `Status` is sent whenever it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

import structlog

from relay.bridge.messages import Message
from relay.bridge.records import (
    Attach,
    Attached,
    Call,
    Close,
    Detach,
    Entry,
    Failure,
    Kind,
    RecordError,
    Result,
    Status,
    entries_record,
    number_record,
    read_number,
    read_struct,
    read_submit,
    struct_record,
)
from relay.bridge.session import EVERYBODY, Start
from relay.errors import MalformedMessage, RelayError
from relay.holder.hub import Hub
from relay.holder.past import Past
from relay.holder.store import Batch
from relay.streams import read_record

log = structlog.get_logger(__name__)

_BATCH_BYTES: Final = 256 * 1024
_STATUS_PAUSE: Final = 0.02
"""Seconds in which changes of status are gathered into one record."""

Operation = Callable[[str], Coroutine[None, None, None]]


class Server:
    """Serves one kernel's hub to agents of the same user.

    ``max_record`` in bytes bounds one record from an agent; ``journal_limit`` is shown in gap
    notices.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        status: Callable[[], Status],
        operate: Operation,
        max_record: int,
        journal_limit: int,
    ) -> None:
        self._hub = hub
        self._status = status
        self._operate = operate
        self._max_record = max_record
        self._journal_limit = journal_limit
        self._version = 0
        self._connected = 0
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._server: asyncio.Server | None = None
        self._waker = asyncio.Event()

    async def listen(self, path: Path) -> None:
        """Serve on ``path``, for this user only."""
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_BATCH_BYTES)
        path.chmod(0o600)

    def changed(self) -> None:
        """The status has changed: every agent is told, in a moment."""
        self._version += 1
        waker, self._waker = self._waker, asyncio.Event()
        waker.set()

    async def deserted(self, timeout: float) -> None:
        """Wait until everybody has hung up, or ``timeout`` seconds.

        Agents do when they hear that the kernel is gone, clients when they have read the rest.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nobody.wait(), timeout)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected += 1
        self._nobody.clear()
        try:
            if not _is_this_user(writer):
                log.warning("refused_peer")
                return
            kind, payload = await read_record(reader, self._max_record)
            if kind is Kind.ATTACH:
                attach = read_struct(payload, Attach)
                channels = _Channels(self._hub, writer, attach, self._journal_limit)
                with structlog.contextvars.bound_contextvars(request_id=attach.request_id):
                    log.info("attached", link=attach.link)
                    await channels.run(reader, self._max_record)
            elif kind is Kind.READ:
                await Past(self._hub, reader, writer).run(payload)
            else:
                await self._serve_line(reader, writer, kind, payload)
        except* (OSError, EOFError):
            # The agent went away; sessions wait for the next one.
            pass
        except* RecordError as group:
            log.warning("bad_record", problem=str(group.exceptions[0]))
        finally:
            writer.close()
            self._connected -= 1
            if not self._connected:
                self._nobody.set()

    async def _serve_line(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: Kind, payload: bytes
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            pusher = tasks.create_task(self._push_status(writer), name="status")
            try:
                while True:
                    if kind is not Kind.CALL:
                        msg = f"{kind.name} is not for this connection"
                        raise RecordError(msg)
                    call = read_struct(payload, Call)
                    tasks.create_task(self._answer(call, writer), name=f"call {call.op}")
                    kind, payload = await read_record(reader, self._max_record)
            finally:
                pusher.cancel()

    async def _push_status(self, writer: asyncio.StreamWriter) -> None:
        sent = -1
        while True:
            if sent == self._version:
                await self._waker.wait()
                await asyncio.sleep(_STATUS_PAUSE)
            sent = self._version
            writer.write(struct_record(Kind.STATUS, self._status()))
            await writer.drain()

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        failure = None
        with structlog.contextvars.bound_contextvars(request_id=call.request_id):
            try:
                log.info("call", op=call.op)
                await self._operate(call.op)
            except RelayError as error:
                log.warning("call_failed", op=call.op, problem=error.message)
                failure = Failure(error.message, error.reason, error.http_status)
        writer.write(struct_record(Kind.RESULT, Result(id=call.id, failure=failure)))


class _Channels:
    """One client's channels: reads from the journal at the client's own pace."""

    def __init__(
        self, hub: Hub, writer: asyncio.StreamWriter, attach: Attach, journal_limit: int
    ) -> None:
        self._hub = hub
        self._writer = writer
        self._attach = attach
        self._journal_limit = journal_limit
        self._start: Start
        self._close: Close | None = None
        self._more = asyncio.Event()

    # What the hub calls.

    def start(self, action: Start) -> None:
        self._start = action
        attached = Attached(position=action.position, acknowledged=action.acknowledged)
        self._writer.write(struct_record(Kind.ATTACHED, attached))

    def end(self, code: int, reason: str) -> None:
        self._close = Close(code, reason)
        self._more.set()

    def acknowledge(self, number: int) -> None:
        self._writer.write(number_record(Kind.ACK, number))

    def wake(self) -> None:
        self._more.set()

    async def run(self, reader: asyncio.StreamReader, max_record: int) -> None:
        """Serve until the client or the kernel is done."""
        connection = self._hub.attach(self, self._attach)
        clean = False
        try:
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(self._pump(self._start), name="pump")
                try:
                    clean = await self._receive(reader, connection, max_record)
                finally:
                    pump.cancel()
        finally:
            self._hub.detach(connection, clean=clean)

    async def _receive(
        self, reader: asyncio.StreamReader, connection: int, max_record: int
    ) -> bool:
        while True:
            kind, payload = await read_record(reader, max_record)
            match kind:
                case Kind.SUBMIT:
                    self._submit(connection, payload)
                case Kind.PROVED:
                    self._hub.prove(connection, read_number(payload))
                case Kind.DETACH:
                    return read_struct(payload, Detach).clean
                case _:
                    msg = f"{kind.name} is not for this connection"
                    raise RecordError(msg)
            # An agent that does not read its acknowledgements sends no more.
            await self._writer.drain()

    def _submit(self, connection: int, payload: bytes) -> None:
        number, channel, parts = read_submit(payload)
        header, parent, metadata, content, *buffers = parts
        message = Message(channel, header, parent, metadata, content, tuple(buffers))
        try:
            self._hub.submit(connection, number, message)
        except MalformedMessage as error:
            self.end(error.close_code, error.message)

    async def _pump(self, start: Start) -> None:
        after, fragment = start.position.seq, start.position.fragment
        while True:
            self._more.clear()
            batch = self._hub.journal.read(after, _BATCH_BYTES)
            if batch.gap and not self._bridge_gap(batch, fragment):
                return
            mine = [
                Entry(entry.seq, entry.channel, entry.parts)
                for entry in batch.entries
                if entry.audience in (EVERYBODY, start.audience)
            ]
            if mine:
                self._writer.write(entries_record(mine))
                fragment = 0
                await self._writer.drain()
            if batch.entries:
                after = batch.entries[-1].seq
                continue
            if self._close is not None:
                self._writer.write(struct_record(Kind.CLOSE, self._close))
                return
            await self._more.wait()

    def _bridge_gap(self, batch: Batch, fragment: int) -> bool:
        """Say what is missing; false where half a message has been sent and its rest is gone."""
        self._hub.note_gap(batch.gap)
        if fragment:
            close = Close(1011, "the rest of a message is gone from the journal (journal.bytes)")
            self._writer.write(struct_record(Kind.CLOSE, close))
            return False
        text = (
            # Some of them may have been replies to other clients: the journal no longer knows.
            f"[relay] Up to {batch.gap} messages are missing here: they are no longer in the "
            f"journal (journal.bytes = {self._journal_limit}).\n"
        )
        # Of the cell that the next message comes from: what runs by now may be another, or
        # nothing, and clients show no output that belongs to no cell.
        heard = [entry for entry in batch.entries if entry.audience == EVERYBODY]
        _, parent_header, *_ = (heard or batch.entries)[0].parts
        content = {"name": "stderr", "text": text}
        notice = self._hub.notice("stream", content, parent_header)
        parts = notice.header, notice.parent_header, notice.metadata, notice.content
        seq = batch.entries[0].seq - 1
        self._writer.write(entries_record([Entry(seq, notice.channel, parts)]))
        return True


def _is_this_user(writer: asyncio.StreamWriter) -> bool:
    connection: socket.socket = writer.get_extra_info("socket")
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    _, uid, _ = struct.unpack("3i", credentials)
    return bool(uid == os.geteuid())
