"""The transcoder of one client's channels: messages to frames one way, frames to messages back.

Between the edge, which knows bytes, and the holder, which knows messages: here a message becomes
WebSocket frames of the client's subprotocol and back. Frames are a fixed function of message and
subprotocol, so that any agent goes on where another one ended, in the middle of a message too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from relay import limits
from relay.agent.channels.gateway_mode import fitting
from relay.agent.holders.client import AdmittedPrincipal, HolderEndpoint, connect
from relay.bridge import ws_codec
from relay.bridge.control import Attach, Attached, Close
from relay.bridge.messages import Message
from relay.bridge.notices import left_out, with_seq
from relay.bridge.openings import AGENT, EDGE, HOLDER, read_opening, refusal_record
from relay.bridge.records import (
    BUSY,
    RecordError,
    RecordKind,
    RecordTooLarge,
    frames_record,
    read_entries,
    read_message,
    record,
    struct_record,
    submit_record,
)
from relay.errors import ClientError, OtherVersion, RelayError, TooLarge
from relay.streams import read_record

log = structlog.get_logger(__name__)

_BATCH: Final = 128 * 1024
"""Bytes of frames at which a record is sent off."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Transcoder:
    """Carries one link between an edge and a holder.

    ``message_bytes`` bounds one message to the client, ``gateway_bytes`` one to a Jupyter Server in
    gateway mode, ``max_record`` one record of either side. ``is_busy`` tells whether the kernel is.
    """

    def __init__(
        self,
        edge: Streams,
        *,
        message_bytes: int,
        gateway_bytes: int,
        max_record: int,
        is_busy: Callable[[], bool],
    ) -> None:
        self._edge_reader, self._edge = edge
        self._holder_reader: asyncio.StreamReader
        self._holder: asyncio.StreamWriter
        self._is_busy = is_busy
        self._message_bytes = message_bytes
        self._max_record = max_record
        self._gateway_bytes = gateway_bytes
        self._gateway = False
        self._counts = False
        self._epoch = ""
        self._subprotocol = ws_codec.Subprotocol.LEGACY
        self._after = 0
        """The seq of the last message that the client has whole."""
        self._skip = 0
        """Frames of the next message that the client has already."""

    async def run(self, holder: HolderEndpoint, admitted: AdmittedPrincipal) -> None:
        """Serve until one of the sides closes its connection."""
        try:
            await self._attach(holder, admitted)
            async with asyncio.TaskGroup() as tasks:
                both = [
                    tasks.create_task(self._towards_client(), name="towards client"),
                    tasks.create_task(self._towards_kernel(), name="towards kernel"),
                ]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                for task in both:
                    task.cancel()
        except* (OSError, EOFError):
            # One side is gone. The edge attaches again; the holder's session waits for that.
            pass
        except* OtherVersion as group:
            await self._refuse_version(str(group.exceptions[0]))
        except* RecordError as group:
            log.warning("malformed_record", problem=str(group.exceptions[0]))
        finally:
            self._edge.close()
            if hasattr(self, "_holder"):
                self._holder.close()

    def close(self) -> None:
        """Close the connection to the edge; the rest follows."""
        self._edge.close()

    async def _attach(self, holder: HolderEndpoint, admitted: AdmittedPrincipal) -> None:
        kind, payload = await read_record(self._edge_reader, self._max_record)
        if kind is not RecordKind.ATTACH:
            msg = f"a link begins with ATTACH, not {kind.name}"
            raise RecordError(msg)
        # Principal and rights are the ticket's, whatever the edge's record says.
        attach = read_opening(payload, Attach, EDGE, AGENT)
        attach = msgspec.structs.replace(attach, **admitted._asdict())
        try:
            self._subprotocol = ws_codec.Subprotocol(attach.subprotocol)
        except ValueError as error:
            msg = "no such subprotocol"
            raise RecordError(msg) from error
        self._gateway, self._counts = attach.gateway, attach.resumes
        streams = await connect(holder, 2 * _BATCH)
        self._holder_reader, self._holder = streams
        self._holder.write(struct_record(RecordKind.ATTACH, attach))

    async def _towards_client(self) -> None:
        while True:
            try:
                kind, payload = await read_record(self._holder_reader, self._max_record)
            except RecordTooLarge as error:
                # The end of the link alone would make the edge ask for the same message for ever.
                self._refuse(_too_large(error.size, self._message_bytes))
                return
            match kind:
                case RecordKind.ENTRIES:
                    try:
                        await self._send_entries(payload)
                    except ClientError as error:
                        # The message cannot be a frame; a holder lets none through.
                        self._refuse(error)
                        return
                case RecordKind.ATTACHED:
                    attached = read_opening(payload, Attached, HOLDER, AGENT)
                    self._epoch = attached.position.epoch
                    self._after, self._skip = attached.position.seq, attached.position.fragment
                    self._edge.write(struct_record(kind, attached))
                case RecordKind.ACK:
                    self._edge.write(record(kind, payload))
                case RecordKind.CLOSE:
                    self._edge.write(record(kind, payload))
                    await self._edge.drain()
                    return
                case _:
                    msg = f"{kind.name} is not for this connection"
                    raise RecordError(msg)

    async def _send_entries(self, entries: bytes) -> None:
        """Send messages on as frames."""
        ready: list[bytes] = []
        size = 0
        for entry in read_entries(entries):
            message = entry.message
            payload = self._encode(message, entry.seq)
            last = ws_codec.fragments(payload)
            for number, frame in enumerate(ws_codec.frames(payload, self._skip), self._skip + 1):
                ready.append(frame)
                size += len(frame)
                if number == last:
                    self._after, number = entry.seq, 0  # noqa: PLW2901 - the message is whole
                self._skip = number
                if size >= _BATCH:
                    await self._send_frames(ready)
                    ready, size = [], 0
        if ready:
            await self._send_frames(ready)

    def _encode(self, message: Message, seq: int) -> ws_codec.Payload:
        if self._gateway:
            message = fitting(message, self._gateway_bytes)
        if self._counts:
            message = with_seq(message, f"{self._epoch}-{seq}")
        payload = ws_codec.encode(self._subprotocol, message)
        if payload.size > self._message_bytes:
            _log_too_large(payload.size, self._message_bytes)
            why = f"it is over {self._message_bytes} (kernels.message_bytes)"
            payload = ws_codec.encode(self._subprotocol, left_out(message, why))
        return payload

    async def _send_frames(self, frames: list[bytes]) -> None:
        self._edge.write(frames_record(self._after, self._skip, frames))
        await self._edge.drain()

    async def _towards_kernel(self) -> None:
        while True:
            try:
                kind, payload = await read_record(self._edge_reader, self._max_record)
            except RecordTooLarge as error:
                self._refuse(_too_large(error.size, self._message_bytes))
                await self._drain_edge()
                return
            match kind:
                case RecordKind.MESSAGE:
                    if not self._submit(payload):
                        await self._drain_edge()
                        return
                case RecordKind.PROVED:
                    self._holder.write(record(kind, payload))
                case RecordKind.DETACH:
                    self._holder.write(record(kind, payload))
                    await self._holder.drain()
                    return
                case RecordKind.PING:
                    self._edge.write(record(RecordKind.PONG, BUSY if self._is_busy() else b""))
                case _:
                    msg = f"{kind.name} is not for this connection"
                    raise RecordError(msg)
            await self._holder.drain()

    async def _drain_edge(self) -> None:
        """Read until the edge closes the connection, as it does after a refusal.

        A connection that is closed with bytes unread is reset, and the reason is lost with it.
        """
        await self._edge.drain()
        while await self._edge_reader.read(_BATCH):
            pass

    def _submit(self, payload: bytes) -> bool:
        number, text, message = read_message(payload)
        try:
            decoded = ws_codec.decode(self._subprotocol, text, message)
        except ClientError as error:
            log.warning("malformed_message", problem=error.message)
            self._refuse(error)
            return False
        self._holder.write(submit_record(number, decoded))
        return True

    async def _refuse_version(self, problem: str) -> None:
        log.warning("version_refused", problem=problem)
        self._edge.write(refusal_record(problem))
        with contextlib.suppress(OSError):
            await self._drain_edge()

    def _refuse(self, error: RelayError) -> None:
        self._edge.write(struct_record(RecordKind.CLOSE, Close(error.close_code, error.message)))


def _too_large(size: int, limit: int) -> TooLarge:
    _log_too_large(size, limit)
    return TooLarge(f"a message of {size} bytes is over {limit} (kernels.message_bytes)")


def _log_too_large(size: int, limit: int) -> None:
    log.warning("message_too_large", size=size, limit=limit, setting="kernels.message_bytes")
    limits.record("kernels.message_bytes")
