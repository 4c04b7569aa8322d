"""A reader of the past: what the kernel has said to everybody, from the journal, and no more.

It is nobody's session: it has no cursor, hears no replies and says nothing to the kernel.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from relay.bridge.control import Close, Gap, Read, Reading
from relay.bridge.events import StartReading
from relay.bridge.messages import Channel
from relay.bridge.openings import AGENT, HOLDER, read_opening
from relay.bridge.records import Entry, RecordKind, entries_record, struct_record
from relay.holder.broker.broker import Broker
from relay.holder.journal import store

log = structlog.get_logger(__name__)

_BATCH_BYTES: Final = 256 * 1024
_DONE: Final = 1000
_DROPPED: Final = "journal.bytes"
_TOO_LARGE: Final = "kernels.message_bytes"


class JournalReader:
    """Serves one reader, at its own pace: nothing is read before the last was taken."""

    def __init__(
        self, broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._broker = broker
        self._reader = reader
        self._writer = writer
        self._more = asyncio.Event()
        self._ended = False

    # What the broker calls.

    def start(self, action: StartReading) -> None:
        """Never: nothing of it is a session's."""

    def acknowledge(self, number: int) -> None:
        """Never: nothing is submitted here."""

    def end(self, code: int, reason: str) -> None:
        """The kernel has ended: what is in the journal is all there will be."""
        del code, reason
        self._ended = True
        self._more.set()

    def wake(self) -> None:
        """There is more in the journal."""
        self._more.set()

    def cut(self, reason: str) -> None:
        """Break off: the reader may not any more."""
        del reason
        self._writer.close()

    async def run(self, payload: bytes) -> None:
        """Answer a READ.

        Raises `OtherVersion`, `RecordError`, ``OSError`` where the reader hangs up, and `Forbidden`
        where it may not read any more.
        """
        read = read_opening(payload, Read, AGENT, HOLDER)
        number = self._broker.inbound.watch(self, read.principal, granted=read.granted)
        try:
            with structlog.contextvars.bound_contextvars(request_id=read.request_id):
                log.info("journal_read", after=read.after, limit=read.limit, follow=read.follow)
                async with asyncio.TaskGroup() as tasks:
                    hung_up = tasks.create_task(self._until_hung_up(), name="hung up")
                    await self._send(read)
                    hung_up.cancel()
        finally:
            self._broker.inbound.unwatch(number)

    async def _until_hung_up(self) -> None:
        """Whoever reads says nothing more; while it waits for more, only this tells its end."""
        await self._reader.read(1)
        raise ConnectionResetError

    async def _send(self, read: Read) -> None:
        journal = self._broker.outbound.journal
        reading = Reading(epoch=self._broker.sessions.epoch, last_seq=journal.last_seq)
        self._writer.write(struct_record(RecordKind.READING, reading))
        after, left = read.after, read.limit
        # Without `follow` what comes meanwhile is not waited for: a kernel may be faster.
        until = None if read.follow else journal.last_seq
        while (left is None or left > 0) and (until is None or after < until):
            self._more.clear()
            # Before the look at the journal: what is written after it sets neither.
            ended = self._ended
            batch = journal.read(after, _BATCH_BYTES)
            if batch.entries:
                self._send_gap(after, batch)
                left = self._send_entries(batch.entries, read.message_bytes, left, until)
                after = batch.entries[-1].seq
                await self._writer.drain()
                # Draining alone is no turn for others where nothing was sent.
                await asyncio.sleep(0)
            elif ended or not read.follow:
                break
            else:
                await self._more.wait()
        self._writer.write(struct_record(RecordKind.CLOSE, Close(_DONE, "that is all")))
        await self._writer.drain()

    def _send_gap(self, after: int, batch: store.Batch) -> None:
        if not batch.gap:
            return
        first = batch.entries[0].seq
        setting = _DROPPED if after < self._broker.outbound.journal.dropped else None
        self._broker.outbound.note_gap(batch.gap, setting)
        gap = Gap(messages=batch.gap, seq=first - 1, setting=setting)
        self._writer.write(struct_record(RecordKind.GAP, gap))

    def _send_entries(
        self,
        entries: tuple[store.JournalEntry, ...],
        message_bytes: int,
        left: int | None,
        until: int | None,
    ) -> int | None:
        """Send what is for everybody; how many more may be sent."""
        found: list[Entry] = []
        for entry in entries:
            if left == 0 or (until is not None and entry.seq > until):
                break
            if entry.channel is not Channel.IOPUB or entry.audience:
                continue
            if entry.size > message_bytes:
                self._flush(found)
                self._broker.outbound.note_gap(1, _TOO_LARGE)
                gap = Gap(messages=1, seq=entry.seq, setting=_TOO_LARGE)
                self._writer.write(struct_record(RecordKind.GAP, gap))
                continue
            found.append(Entry(entry.seq, entry.channel, entry.parts))
            left = None if left is None else left - 1
        self._flush(found)
        return left

    def _flush(self, entries: list[Entry]) -> None:
        if entries:
            self._writer.write(entries_record(entries))
            entries.clear()
