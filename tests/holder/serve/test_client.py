"""A client's channels at the holder, over a socket pair, in front of a kernel that is a list."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.bridge.control import Attach, Attached, Close, Detach, Disconnect, Position
from relay.bridge.messages import Channel, Message
from relay.bridge.records import (
    Entry,
    RecordError,
    RecordKind,
    number_record,
    read_entries,
    read_number,
    read_struct,
    struct_record,
    submit_record,
)
from relay.bridge.session_table import SessionLimits
from relay.errors import Forbidden
from relay.holder.broker.broker import Broker
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Journal
from relay.holder.serve.client import ChannelLimits, ClientReader
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.store import SessionStore
from relay.kernel_folders import KernelFolder
from relay.streams import read_record
from tests.holder.fake_backend import FakeChannel

LIMIT = 2**20
WAIT = 20.0
LIMITS = SessionLimits(
    sessions=10, requests=10, repeats=10, lifetime=100.0, anonymous_lifetime=100.0
)
CELL = {"msg_id": "m", "session": "s", "msg_type": "execute_request"}


class Agent:
    """The agent's end of a client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *records: bytes) -> None:
        self._writer.write(b"".join(records))

    def submit(self, number: int, header: dict[str, Any], channel: Channel = Channel.SHELL) -> None:
        parts = [json.dumps(header).encode(), b"{}", b"{}", b"{}"]
        self.send(submit_record(number, Message.from_parts(channel, parts)))

    async def receive(self, kind: RecordKind) -> bytes:
        async with asyncio.timeout(WAIT):
            found, payload = await read_record(self._reader, LIMIT)
        assert found is kind
        return payload

    async def entries(self) -> list[Entry]:
        return list(read_entries(await self.receive(RecordKind.ENTRIES)))

    async def closed(self) -> Close:
        return read_struct(await self.receive(RecordKind.CLOSE), Close)

    def hang_up(self) -> None:
        self._writer.close()


class Bench:
    def __init__(
        self, folder: Path, message_bytes: int = LIMIT, journal_bytes: int = LIMIT
    ) -> None:
        journal = Journal.open(
            folder / "journal", max_bytes=journal_bytes, segment_bytes=1000, tail_bytes=1000
        )
        replies = ReplyJournal(folder / "answers", LIMIT)
        store = SessionStore.open(folder / "sessions", LIMITS, 0, 0.0)
        grants = GrantStore(KernelFolder(folder), 3)
        self.broker = Broker(store, journal, replies, grants, lambda: None)
        self.kernel = FakeChannel(self.broker.on_message)
        self.broker.open(self.kernel)
        self._bounds = ChannelLimits(message_bytes=message_bytes, journal_bytes=journal_bytes)

    @contextlib.asynccontextmanager
    async def attached(self, link: str = "l", **attach: Any) -> AsyncIterator[Agent]:
        """A client's connection; leaving hangs up and waits for the holder's end of it."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        agent = Agent(*await asyncio.open_connection(sock=theirs))
        opening = Attach(link=link, principal="token:ada", session_id="s", **attach)
        client = ClientReader(self.broker, writer, opening, self._bounds)
        running = asyncio.create_task(  # noqa: TID251 - it may fail, and the test goes on
            client.run(reader, LIMIT)
        )
        try:
            yield agent
        finally:
            agent.hang_up()
            result = await asyncio.gather(running, return_exceptions=True)
            writer.close()
            self.ended = result[0]

    def print(self, text: str) -> None:
        self.kernel.say(Channel.IOPUB, "stream", CELL, name="stdout", text=text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def text(entry: Entry) -> str:
    content = json.loads(bytes(entry.parts[3]))
    return str(content.get("text") or content.get("evalue") or content)


async def test_a_client_reads_from_where_it_stands(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.attached() as agent:
        attached = read_struct(await agent.receive(RecordKind.ATTACHED), Attached)
        assert attached == Attached(
            position=Position(bench.broker.sessions.epoch, 0), acknowledged=0
        )
        bench.print("one")
        ((entry),) = await agent.entries()
        assert (entry.seq, entry.channel, text(entry)) == (1, Channel.IOPUB, "one")
        agent.send(number_record(RecordKind.PROVED, 1))
        agent.send(struct_record(RecordKind.DETACH, Detach()))
    assert bench.ended is None
    bench.print("two")
    async with bench.attached("other") as agent:
        attached = read_struct(await agent.receive(RecordKind.ATTACHED), Attached)
        assert attached.position.seq == 1
        assert [text(each) for each in await agent.entries()] == ["two"]


async def test_a_request_is_acknowledged_and_its_reply_comes_back(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.attached() as agent:
        await agent.receive(RecordKind.ATTACHED)
        agent.submit(1, CELL)
        assert read_number(await agent.receive(RecordKind.ACK)) == 1
        ((channel, header),) = bench.kernel.sent
        assert (channel, header) == (Channel.SHELL, CELL)
        bench.kernel.say(Channel.SHELL, "execute_reply", CELL, status="ok")
        (reply,) = await agent.entries()
        assert reply.channel is Channel.SHELL
        # The same number again needs no repeating, and runs no second time.
        agent.submit(1, CELL)
        assert read_number(await agent.receive(RecordKind.ACK)) == 1
        assert len(bench.kernel.sent) == 1


@pytest.mark.parametrize(
    ("header", "channel", "why"),
    [
        (CELL, Channel.IOPUB, "Nobody but the kernel"),
        ({"msg_id": 7}, Channel.SHELL, "not a Jupyter header"),
        ({"msg_id": "x" * 2000}, Channel.SHELL, "at most 1024 characters"),
    ],
)
async def test_what_is_no_message_closes_the_websocket(
    folder: Path, header: dict[str, Any], channel: Channel, why: str
) -> None:
    bench = Bench(folder)
    async with bench.attached() as agent:
        await agent.receive(RecordKind.ATTACHED)
        agent.submit(1, header, channel)
        close = await agent.closed()
        assert close.code == 1007
        assert why in close.reason
        assert bench.kernel.sent == []


async def test_a_record_that_is_not_for_clients_ends_the_connection(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.attached() as agent:
        await agent.receive(RecordKind.ATTACHED)
        agent.send(struct_record(RecordKind.STATUS, Detach()))
    assert isinstance(bench.ended, ExceptionGroup)
    assert bench.ended.subgroup(RecordError) is not None
    assert bench.broker.sessions.connections == 0


async def test_the_rest_is_read_before_the_end(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.attached() as agent:
        await agent.receive(RecordKind.ATTACHED)
        bench.print("last words")
        bench.broker.outbound.end_all(1000, "the kernel was shut down")
        assert [text(each) for each in await agent.entries()] == ["last words"]
        assert await agent.closed() == Close(1000, "the kernel was shut down")


async def test_who_is_cut_off_reads_no_more(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.attached() as agent:
        await agent.receive(RecordKind.ATTACHED)
        (reader,) = bench.broker.outbound.readers.values()
        reader.cut("not any more")
        bench.print("not for it")
        assert await agent.closed() == Close(Forbidden.close_code, "not any more")


async def test_a_message_over_the_limit_is_replaced_by_a_notice(folder: Path) -> None:
    bench = Bench(folder, message_bytes=500)
    async with bench.attached() as agent:
        await agent.receive(RecordKind.ATTACHED)
        bench.print("x" * 600)
        (entry,) = await agent.entries()
        assert text(entry).endswith("is left out: it is over 500 (kernels.message_bytes).\n")


async def test_what_three_connections_broke_on_is_left_out(folder: Path) -> None:
    bench = Bench(folder)
    for number in range(3):
        async with bench.attached(f"l{number}") as agent:
            await agent.receive(RecordKind.ATTACHED)
            if not number:
                bench.print("poison")
            await agent.entries()
            agent.send(
                struct_record(RecordKind.DETACH, Detach(disconnect=Disconnect.ABNORMAL, seq=1))
            )
            await asyncio.sleep(0)
    async with bench.attached("last") as agent:
        await agent.receive(RecordKind.ATTACHED)
        (entry,) = await agent.entries()
        assert "three connections of this client ended on it" in text(entry)


async def test_a_gap_is_told_as_output_of_the_next_cell(folder: Path) -> None:
    bench = Bench(folder, journal_bytes=3000)
    async with bench.attached() as agent:
        await agent.receive(RecordKind.ATTACHED)
    for number in range(20):
        bench.print(f"{number} {'x' * 300}")
        await asyncio.sleep(0)
    first = bench.broker.outbound.journal.first_seq
    assert first > 2
    async with bench.attached("other") as agent:
        await agent.receive(RecordKind.ATTACHED)
        (notice,) = await agent.entries()
        assert notice.seq == first - 1
        assert f"Up to {first - 1} messages are missing here" in text(notice)
        assert json.loads(bytes(notice.parts[1])) == CELL
        assert json.loads(bytes(notice.parts[2])) == {"relay_gap": first - 1}
        assert (await agent.entries())[0].seq == first
    assert bench.broker.figures.gap_messages == first - 1


async def test_half_a_message_whose_rest_is_gone_ends_the_websocket(folder: Path) -> None:
    bench = Bench(folder, journal_bytes=3000)
    for number in range(20):
        bench.print(f"{number} {'x' * 300}")
        await asyncio.sleep(0)
    position = Position(bench.broker.sessions.epoch, 1, fragment=2)
    async with bench.attached(position=position) as agent:
        await agent.receive(RecordKind.ATTACHED)
        close = await agent.closed()
        assert close.code == 1011
        assert "journal.bytes" in close.reason
