"""One client's channels at the holder: reads from the journal at the client's own pace."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
import structlog

from relay import limits
from relay.bridge.control import Attach, Attached, Close, Detach
from relay.bridge.events import StartReading
from relay.bridge.messages import Channel, Message
from relay.bridge.notices import left_out
from relay.bridge.records import (
    Entry,
    RecordError,
    RecordKind,
    entries_record,
    number_record,
    read_number,
    read_struct,
    read_submit,
    struct_record,
)
from relay.bridge.session_table import BROADCAST
from relay.errors import Forbidden, MalformedMessage
from relay.holder.broker.broker import Broker
from relay.holder.journal.store import Batch, JournalEntry
from relay.streams import read_record

log = structlog.get_logger(__name__)

_BATCH_BYTES: Final = 256 * 1024
_VIEWERS_PAUSE: Final = 0.05
"""Seconds between two answers to a viewer: they take the room of the kernel's output in the
journal."""
_POISON: Final = "three connections of this client ended on it"


class ChannelLimits(msgspec.Struct, frozen=True, kw_only=True):
    """``message_bytes`` bounds one message to a client; ``journal_bytes`` is named in notices."""

    message_bytes: int
    journal_bytes: int


class ClientReader:
    """One client's channels: reads from the journal at the client's own pace."""

    def __init__(
        self, broker: Broker, writer: asyncio.StreamWriter, attach: Attach, bounds: ChannelLimits
    ) -> None:
        self._broker = broker
        self._writer = writer
        self._attach = attach
        self._bounds = bounds
        self._start: StartReading
        self._close: Close | None = None
        self._was_cut = False
        self._more = asyncio.Event()

    # What the broker calls.

    def start(self, action: StartReading) -> None:
        """Begin to read."""
        self._start = action
        attached = Attached(position=action.position, acknowledged=action.acknowledged)
        self._writer.write(struct_record(RecordKind.ATTACHED, attached))

    def end(self, code: int, reason: str) -> None:
        """Close the client's WebSocket, once it has read what is in the journal."""
        self._close = Close(code, reason)
        self._more.set()

    def acknowledge(self, number: int) -> None:
        """Tell the edge that a client message arrived."""
        self._writer.write(number_record(RecordKind.ACK, number))

    def wake(self) -> None:
        """There is more in the journal."""
        self._more.set()

    def cut(self, reason: str) -> None:
        """Close the client's WebSocket, whatever it has not read yet."""
        self._was_cut = True
        self._writer.write(struct_record(RecordKind.CLOSE, Close(Forbidden.close_code, reason)))
        self._more.set()

    async def run(self, reader: asyncio.StreamReader, max_record: int) -> None:
        """Serve until the client or the kernel is done.

        Raises `Forbidden` where the client may not come in any more.
        """
        connection = self._broker.inbound.attach(self, self._attach)
        detach = None
        try:
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(self._pump(self._start), name="pump")
                try:
                    detach = await self._receive(reader, connection, max_record)
                finally:
                    pump.cancel()
        finally:
            self._broker.inbound.detach(connection, detach)

    async def _receive(
        self, reader: asyncio.StreamReader, connection: int, max_record: int
    ) -> Detach:
        while True:
            kind, payload = await read_record(reader, max_record)
            match kind:
                case RecordKind.SUBMIT:
                    self._submit(connection, payload)
                    if self._broker.inbound.views_only(connection):
                        await asyncio.sleep(_VIEWERS_PAUSE)
                case RecordKind.PROVED:
                    self._broker.inbound.prove(connection, read_number(payload))
                case RecordKind.DETACH:
                    return read_struct(payload, Detach)
                case _:
                    msg = f"{kind.name} is not for this connection"
                    raise RecordError(msg)
            # An agent that does not read its acknowledgements sends no more.
            await self._writer.drain()

    def _submit(self, connection: int, payload: bytes) -> None:
        number, channel, parts = read_submit(payload)
        try:
            self._broker.inbound.submit(connection, number, Message.from_parts(channel, parts))
        except MalformedMessage as error:
            self.end(error.close_code, error.message)

    async def _pump(self, start: StartReading) -> None:
        after, fragment = start.position.seq, start.position.fragment
        poison = start.poison
        while not self._was_cut:
            self._more.clear()
            batch = self._broker.outbound.read(after, _BATCH_BYTES)
            if batch.gap and not self._bridge_gap(batch, fragment):
                return
            mine = [
                self._deliverable(entry)
                for entry in batch.entries
                if entry.audience in start.audiences
            ]
            if mine:
                if poison:
                    mine[0], poison = self._left_out(mine[0], _POISON), False
                self._writer.write(entries_record(mine))
                fragment = 0
                await self._writer.drain()
            if batch.entries:
                after = batch.entries[-1].seq
                continue
            if self._close is not None:
                self._writer.write(struct_record(RecordKind.CLOSE, self._close))
                return
            await self._more.wait()

    def _deliverable(self, entry: JournalEntry) -> Entry:
        found = Entry(entry.seq, entry.channel, entry.parts)
        if entry.size <= self._bounds.message_bytes:
            return found
        limits.record("kernels.message_bytes")
        why = f"it is over {self._bounds.message_bytes} (kernels.message_bytes)"
        return self._left_out(found, why)

    def _left_out(self, entry: Entry, why: str) -> Entry:
        message = entry.message
        notice = left_out(message, why)
        log.warning("message_replaced_by_notice", seq=entry.seq, size=message.size, why=why)
        return Entry(entry.seq, notice.channel, notice.parts)

    def _bridge_gap(self, batch: Batch, fragment: int) -> bool:
        """Say what is missing; false where half a message has been sent and its rest is gone."""
        self._broker.outbound.note_gap(batch.gap)
        if fragment:
            close = Close(1011, "the rest of a message is gone from the journal (journal.bytes)")
            self._writer.write(struct_record(RecordKind.CLOSE, close))
            return False
        text = (
            # Some of them may have been replies to other clients: the journal no longer knows.
            f"[relay] Up to {batch.gap} messages are missing here: they are no longer in the "
            f"journal (journal.bytes = {self._bounds.journal_bytes}).\n"
        )
        # Of the cell that the next message comes from: what runs by now may be another, or
        # nothing, and clients show no output that belongs to no cell.
        heard = [entry for entry in batch.entries if entry.audience == BROADCAST]
        _, parent_header, *_ = (heard or batch.entries)[0].parts
        content = {"name": "stderr", "text": text}
        notice = self._broker.synthetic.say(Channel.IOPUB, "stream", content, parent_header)
        notice = msgspec.structs.replace(notice, metadata=b'{"relay_gap":%d}' % batch.gap)
        seq = batch.entries[0].seq - 1
        self._writer.write(entries_record([Entry(seq, notice.channel, notice.parts)]))
        return True
