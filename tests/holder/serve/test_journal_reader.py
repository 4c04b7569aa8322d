from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.bridge.control import Close, Gap, Read, Reading
from relay.bridge.messages import Channel
from relay.bridge.records import RecordError, RecordKind, read_entries, read_struct, struct_record
from relay.holder.journal.store import Journal, JournalEntry
from relay.holder.serve.journal_reader import JournalReader
from relay.streams import read_record
from tests.virtualtime import settle
from tests.waiting import until

EPOCH = "a1b2c3d4e5f6"
SOMEBODY = b"8 bytes!"
LIMIT = 1 << 24


class FakeBroker:
    """What a reader of the journal needs of the broker, in one."""

    def __init__(self, journal: Journal) -> None:
        self.epoch = EPOCH
        self.journal = journal
        self.readers: dict[int, Any] = {}
        self.gaps: list[tuple[int, str | None]] = []
        self.inbound = self.outbound = self.sessions = self

    def watch(self, reader: Any, principal: str, *, granted: bool) -> int:
        self.watched = principal, granted
        self.readers[1] = reader
        return 1

    def unwatch(self, number: int) -> None:
        del self.readers[number]

    def note_gap(self, messages: int, setting: str | None) -> None:
        self.gaps.append((messages, setting))


def entry(
    seq: int, audience: bytes = b"", size: int = 10, channel: Channel = Channel.IOPUB
) -> JournalEntry:
    return JournalEntry(
        seq, channel, audience, (b"{}", b"{}", b"{}", str(seq).encode().ljust(size))
    )


class Desk:
    """A journal, a reader of it, and who asked, at the other end of a socket."""

    def __init__(self, folder: Path, **bounds: int) -> None:
        chosen = {"max_bytes": LIMIT, "segment_bytes": LIMIT, "tail_bytes": LIMIT, **bounds}
        self.journal = Journal.open(folder, **chosen)
        self.broker = FakeBroker(self.journal)

    @contextlib.asynccontextmanager
    async def read(self, **read: Any) -> AsyncIterator[Callable[[], Any]]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        mine, end = await asyncio.open_connection(sock=theirs)
        asked = {"after": 0, "limit": None, "follow": False, "message_bytes": LIMIT, **read}
        broker: Any = self.broker
        payload = struct_record(RecordKind.READ, Read(**asked))[5:]
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(
                    JournalReader(broker, reader, writer).run(payload), name="past"
                )

                async def heard() -> list[Any]:
                    """What came, until the end or, where there is none, a silence."""
                    return await _collect(mine)

                yield heard
                end.close()
                with contextlib.suppress(OSError):
                    await task
        except* OSError:
            pass
        finally:
            writer.close()


async def _collect(reader: asyncio.StreamReader) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            async with asyncio.timeout(0.2):
                kind, payload = await read_record(reader, LIMIT)
        except TimeoutError:
            return found
        match kind:
            case RecordKind.READING:
                found.append(read_struct(payload, Reading))
            case RecordKind.GAP:
                found.append(read_struct(payload, Gap))
            case RecordKind.ENTRIES:
                found += [each.seq for each in read_entries(payload)]
            case RecordKind.CLOSE:
                return [*found, read_struct(payload, Close).code]
            case _:
                found.append(kind)


async def test_only_what_is_for_everybody_up_to_the_newest(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.journal.append([entry(1), entry(2, SOMEBODY, channel=Channel.SHELL), entry(3)])
    async with desk.read() as heard:
        assert await heard() == [Reading(epoch=EPOCH, last_seq=3), 1, 3, 1000]
    async with desk.read(after=1) as heard:
        assert await heard() == [Reading(epoch=EPOCH, last_seq=3), 3, 1000]
    async with desk.read(after=3) as heard:
        assert await heard() == [Reading(epoch=EPOCH, last_seq=3), 1000]
    assert desk.broker.readers == {}


async def test_a_limit_counts_what_is_sent(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.journal.append([entry(1, SOMEBODY), entry(2), entry(3, SOMEBODY), entry(4), entry(5)])
    async with desk.read(limit=2) as heard:
        assert (await heard())[1:] == [2, 4, 1000]


async def test_a_follower_hears_more_until_the_kernel_ends(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.journal.append([entry(1)])
    async with desk.read(follow=True) as heard:
        assert (await heard())[1:] == [1]
        desk.journal.append([entry(2), entry(3)])
        desk.broker.readers[1].wake()
        assert await heard() == [2, 3]
        desk.journal.append([entry(4)])
        desk.broker.readers[1].end(1000, "the kernel was shut down")
        assert await heard() == [4, 1000]


async def test_a_follower_that_hangs_up_is_let_go_at_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    async with desk.read(follow=True) as heard:
        await heard()
        assert desk.broker.readers
    assert desk.broker.readers == {}


async def test_what_was_dropped_is_a_gap_with_its_setting(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_bytes=4000, segment_bytes=2000, tail_bytes=1)
    for seq in range(1, 41):
        desk.journal.append([entry(seq, size=300)])
    first = desk.journal.first_seq
    async with desk.read() as heard:
        _, gap, *rest = await heard()
    assert gap == Gap(messages=first - 1, seq=first - 1, setting="journal.bytes")
    assert rest == [*range(first, 41), 1000]
    assert desk.broker.gaps == [(first - 1, "journal.bytes")]


async def test_what_never_reached_the_disk_is_a_gap_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "full")

    desk = Desk(tmp_path, tail_bytes=1)
    desk.journal.append([entry(1)])
    with monkeypatch.context() as broken:
        broken.setattr("relay.holder.journal.store.write_all", full)
        for seq in (2, 3, 4):
            desk.journal.append([entry(seq)])
    desk.journal.append([entry(5)])
    async with desk.read() as heard:
        assert (await heard())[1:] == [1, Gap(messages=3, seq=4, setting=None), 5, 1000]


async def test_a_message_that_the_agent_cannot_take_is_a_gap(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.journal.append([entry(1), entry(2, size=5000), entry(3)])
    async with desk.read(message_bytes=1000) as heard:
        gap = Gap(messages=1, seq=2, setting="kernels.message_bytes")
        assert (await heard())[1:] == [1, gap, 3, 1000]


async def test_nothing_is_read_before_the_last_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)
    desk.journal.append([entry(seq, size=100_000) for seq in range(1, 101)])
    reads = 0
    read = desk.journal.read

    def counted(*arguments: int) -> Any:
        nonlocal reads
        reads += 1
        return read(*arguments)

    monkeypatch.setattr(desk.journal, "read", counted)
    async with desk.read() as heard:
        await until(lambda: reads > 0)
        before = 0
        while reads != before:
            before = reads
            await settle()
        # 200 kB each; a socket and its buffers take a few.
        assert reads < 10
        assert (await heard())[1:] == [*range(1, 101), 1000]


async def test_a_read_that_makes_no_sense(tmp_path: Path) -> None:
    broker: Any = Desk(tmp_path).broker
    stream: Any = None
    with pytest.raises(RecordError):
        await JournalReader(broker, stream, stream).run(b"{}")
