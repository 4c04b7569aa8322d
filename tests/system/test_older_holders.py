"""Holders run for as long as their kernels: what one of 0.1 says, and leaves, is understood.

For ever: none of these tests, and no byte under ``fixtures/holder-0.1/``, is to be changed for a
later version's sake.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer, TestClient
from websockets.frames import Frame
from websockets.protocol import OPEN, Protocol, Side

from relay.agent.api.messages import JournalMessages
from relay.agent.channels.transcoder import Transcoder
from relay.agent.holders.adopt import adopt
from relay.agent.holders.client import AdmittedPrincipal, HolderClient, HolderEndpoint
from relay.agent.holders.create import StartRequest
from relay.agent.holders.registry import HolderRegistry
from relay.agent.holders.stop_all import end_kernels
from relay.agent.launchers.local import LocalLauncher
from relay.agent.launchers.own_user import OwnUserRunner
from relay.auth.ownership import Grant
from relay.bridge.control import Attach, Detach, Disconnect, GrantChange, Phase, Position
from relay.bridge.control import Attached as AttachedRecord
from relay.bridge.events import ClientAttached, StartReading
from relay.bridge.messages import Channel
from relay.bridge.records import (
    HEADER,
    RecordKind,
    message_record,
    number_record,
    read_entries,
    read_frames,
    read_struct,
    struct_record,
)
from relay.bridge.session_table import SessionLimits
from relay.bridge.versions import FOLDER, JOURNAL
from relay.client import kernel_message
from relay.config import AgentConfig, CullSettings, ListenSettings, PastSettings
from relay.config.holder import HolderConfig
from relay.files import read_struct as read_file
from relay.holder.journal.replies import SHARE, ReplyJournal
from relay.holder.journal.store import Journal, JournalEntry
from relay.holder.sessions import version1
from relay.holder.sessions.store import SessionStore
from relay.kernel_folders import KernelFolder, KernelRecord, kernels_folder
from relay.model import Principal
from relay.routing.paths import parse_target
from relay.streams import read_record
from tests.fixtures import holder_01
from tests.fixtures.holder_01 import Player, copy_folder, transcript

ALICE = Principal("token", "alice")
KERNEL = "5f6c1d2e-0000-4000-8000-000000000002"
V1 = "v1.kernel.websocket.jupyter.org"
CODE = "print('written by 0.1')"
LIMIT = 2**20
WAIT = 20.0


def config(state: Path) -> AgentConfig:
    return AgentConfig(
        cluster="alpha",
        listen=ListenSettings(port=1),
        state_dir=str(state),
        runtime_dir=str(state / "run"),
        ticket_keys=["key.pem"],
    )


@asynccontextmanager
async def played(name: str, path: Path) -> AsyncIterator[Player]:
    """A holder of 0.1 at the other end of a unix socket."""
    player = Player(name)
    server = await asyncio.start_unix_server(player.serve, path)
    yield player
    server.close()
    async with asyncio.timeout(WAIT):
        await server.wait_closed()
    assert player.problem is None


def recorded(name: str, kind: RecordKind) -> bytes:
    """The payload of the one record of that kind in a transcript."""
    (found,) = [record for _, record in transcript(name) if record[4] == kind]
    return found[HEADER.size :]


# An agent of this version and a holder of 0.1


def test_no_record_of_0_1_bears_a_version() -> None:
    for name in ("line", "channels", "past"):
        for _, record in transcript(name):
            assert b'"version":' not in record.partition(b'"header"')[0][:60]


async def test_an_agent_finds_and_commands_a_holder_of_0_1(tmp_path: Path) -> None:
    folder = kernels_folder(tmp_path, "alpha") / KERNEL
    copy_folder(folder, tmp_path)
    place = KernelFolder(folder)
    address = place.read_address()
    assert address is not None
    address.socket.parent.mkdir()
    lock = place.try_lock()
    assert lock is not None
    launcher = launcher_of(tmp_path)
    async with played("line", address.socket) as player, asyncio.TaskGroup() as tasks:
        holders = HolderRegistry(config(tmp_path), launcher, LIMIT, tasks)
        line = await holders.start(start_request())
        assert line.status.phase is Phase.READY
        assert (line.model.name, line.model.execution_state) == ("python3", "idle")
        assert await holders.get(KERNEL) is line
        assert await holders.all() == [line]
        kernel = holders.ownership(KERNEL)
        assert kernel is not None
        assert (kernel.owner, kernel.grants) == (str(ALICE), {"token:bob": Grant.VIEW})
        await line.call("interrupt", "r1", WAIT)
        granting = GrantChange(principal="token:bob", action="view")
        await line.call("grant", "r2", WAIT, grant=granting)
        await holders.stop(KERNEL, "r3")
        holders.close()
    assert [(call.id, call.op) for call in player.heard] == [
        (0, "status"),
        (1, "interrupt"),
        (2, "grant"),
        (3, "shutdown"),
    ]
    assert player.heard[2].grant == holder_01.Granting(principal="token:bob", action="view")
    assert [call.request_id for call in player.heard[1:]] == ["r1", "r2", "r3"]
    assert await holders.all() == []
    os.close(lock)


def launcher_of(state: Path) -> LocalLauncher:
    return LocalLauncher(state, "alpha", OwnUserRunner(state, "alpha", str(state / "run")))


def start_request() -> StartRequest:
    return StartRequest(
        kernel_id=KERNEL,
        name="python3",
        owner=ALICE,
        environment={},
        parameters={},
        working_folder=None,
        cull=CullSettings(),
        launch_timeout=1.0,
        request_id="r0",
    )


async def test_a_line_to_a_holder_of_0_1_follows_it_to_the_end(tmp_path: Path) -> None:
    copy_folder(tmp_path / "k", tmp_path)
    (tmp_path / "run").mkdir()
    place = KernelFolder(tmp_path / "k")
    address = place.read_address()
    assert address is not None
    async with played("line", address.socket), asyncio.TaskGroup() as tasks:
        line = await HolderClient.open(place)
        assert line.status.phase is Phase.STARTING
        running = tasks.create_task(line.run())
        await line.wait_started(WAIT)
        assert line.status.knows_viewers
        assert line.status.figures is not None
        assert line.status.figures.messages == 5
        for op in ("interrupt", "grant", "shutdown"):
            await line.call(op, "", WAIT)
        await running
        assert (line.status.phase, line.status.execution_state) == (Phase.GONE, "dead")


class Edge:
    """An edge's end of a link, and the client behind it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._client = Protocol(Side.CLIENT, state=OPEN, max_size=None)
        self.acknowledged = 0
        self.position = (0, 0)

    def send(self, *records: bytes) -> None:
        self._writer.write(b"".join(records))

    async def attached(self) -> AttachedRecord:
        kind, payload = await read_record(self._reader, LIMIT)
        assert kind is RecordKind.ATTACHED
        return read_struct(payload, AttachedRecord)

    async def messages_until(self, seq: int) -> list[kernel_message.KernelMessage]:
        """What the client gets up to a seq."""
        before = Position("0" * 12, 0)
        while self.position != (seq, 0):
            kind, payload = await read_record(self._reader, LIMIT)
            if kind is RecordKind.ACK:
                (self.acknowledged,) = payload[:1]
                continue
            assert kind is RecordKind.FRAMES
            seq_sent, fragment, frames = read_frames(payload)
            self.position = seq_sent, fragment
            self._client.receive_data(bytes(frames))
        events = self._client.events_received()
        return [
            kernel_message.read(bytes(each.data), before)
            for each in events
            if isinstance(each, Frame)
        ]

    async def close(self) -> None:
        assert await self._reader.read() == b""
        self._writer.close()


def execute_request() -> bytes:
    content = {"code": CODE, "silent": False}
    return kernel_message.request(
        Channel.SHELL, "execute_request", content, msg_id="m1", session="s1", date="2026-01-01"
    )


@pytest.mark.guarantee
async def test_a_client_runs_a_cell_through_a_holder_of_0_1(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    edge = Edge(*await asyncio.open_unix_connection(sock=far))
    channels = Transcoder(
        await asyncio.open_unix_connection(sock=near),
        message_bytes=LIMIT,
        gateway_bytes=LIMIT,
        max_record=LIMIT,
        is_busy=lambda: False,
    )
    admission = AdmittedPrincipal(str(ALICE), views_only=False, granted=False)
    position = msgspec.json.decode(recorded("channels", RecordKind.ATTACHED))["position"]
    last = msgspec.json.decode(recorded("channels", RecordKind.DETACH))["seq"]
    async with played("channels", tmp_path / "s") as player, asyncio.TaskGroup() as tasks:
        tasks.create_task(channels.run(HolderEndpoint(tmp_path / "s", os.geteuid()), admission))
        attach = Attach(link="l1", principal="token:mallory", session_id="s1", subprotocol=V1)
        edge.send(struct_record(RecordKind.ATTACH, attach))
        answer = await edge.attached()
        assert answer.position == Position(position["epoch"], position["seq"])
        edge.send(message_record(1, text=False, payload=execute_request()))
        messages = await asyncio.wait_for(edge.messages_until(last), WAIT)
        detach = Detach(disconnect=Disconnect.CLEAN, seq=last)
        edge.send(number_record(RecordKind.PROVED, last), struct_record(RecordKind.DETACH, detach))
        await edge.close()
    assert edge.acknowledged == 1
    assert [each.msg_type for each in messages] == [
        *("status", "execute_input", "stream", "execute_reply", "status"),
    ]
    assert messages[2].content == {"name": "stdout", "text": "written by 0.1\n"}
    assert messages[3].content["status"] == "ok"
    assert [messages[0].state(), messages[4].state()] == ["busy", "idle"]
    attached, submitted, proved, detached = player.heard
    assert (attached.principal, attached.session_id, attached.link) == (str(ALICE), "s1", "l1")
    assert (submitted.number, submitted.channel) == (1, 0)
    assert json.loads(submitted.parts[0])["msg_id"] == "m1"
    assert json.loads(submitted.parts[3])["code"] == CODE
    assert (proved, detached.seq, detached.departure) == (last, last, "goodbye")


async def test_the_past_of_a_holder_of_0_1_is_read(tmp_path: Path) -> None:
    past = JournalMessages(PastSettings(), message_bytes=LIMIT, max_record=LIMIT)
    address = HolderEndpoint(tmp_path / "s", os.geteuid())

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        target = parse_target(request.raw_path)
        return await past.answer(request, target, address, AdmittedPrincipal(str(ALICE)), "r1")

    client: TestClient[Any, Any] = TestClient(RawTestServer(handle))
    async with played("past", tmp_path / "s") as player, client:
        response = await client.get("/messages?since=0&limit=1000")
        assert response.status == 200
        lines = [json.loads(line) for line in (await response.text()).splitlines()]
    epoch = msgspec.json.decode(recorded("past", RecordKind.READING))["epoch"]
    assert [line["seq"] for line in lines] == [
        f"{epoch}-{entry.seq}" for entry in read_entries(recorded("past", RecordKind.ENTRIES))
    ]
    assert {line["channel"] for line in lines} == {"iopub"}
    texts = [line["content"].get("text") for line in lines]
    assert "written by 0.1\n" in texts
    (read,) = player.heard
    assert (read.after, read.limit, read.follow) == (0, 1000, False)
    assert (read.principal, read.request_id) == (str(ALICE), "r1")


# A holder of this version and the folder that one of 0.1 left


@pytest.fixture
def place(tmp_path: Path) -> KernelFolder:
    copy_folder(tmp_path / KERNEL, tmp_path)
    return KernelFolder(tmp_path / KERNEL)


@pytest.fixture
def request_of_0_1(place: KernelFolder) -> HolderConfig:
    found = read_file(place.request, HolderConfig)
    assert found is not None
    return found


@pytest.fixture
def journal(place: KernelFolder, request_of_0_1: HolderConfig) -> Journal:
    return Journal.open(
        place.journal,
        max_bytes=request_of_0_1.journal.bytes,
        segment_bytes=request_of_0_1.journal.segment_bytes,
        tail_bytes=request_of_0_1.journal.tail_bytes,
    )


def test_its_notes_are_read(place: KernelFolder, request_of_0_1: HolderConfig) -> None:
    place.check_versions()
    assert (request_of_0_1.owner, request_of_0_1.name) == (str(ALICE), "python3")
    assert request_of_0_1.environment["USER"] == "alice"
    record = place.read_record()
    assert record is not None
    assert record.adoptable
    assert record.kernelspec["language"] == "python"
    assert place.read_grants() == {"token:bob": Grant.VIEW}
    replacements = read_file(place.replacements, list[float])
    assert replacements is not None
    assert len(replacements) == 1


def test_its_journal_is_read_from_the_beginning(place: KernelFolder, journal: Journal) -> None:
    assert journal.first_seq == 1
    before = {path.name: path.read_bytes() for path in place.journal.glob("*.log")}
    assert len(before) > 3
    entries = all_in(journal)
    assert [entry.seq for entry in entries] == list(range(1, journal.last_seq + 1))
    printed = b"".join(entry.parts[3] for entry in entries)
    for text in (*(f"xx {number}\\n" for number in range(64)), "begun"):
        assert text.encode() in printed
    assert b"read by the second holder" in printed
    assert b"died and was replaced" in printed
    assert {path.name: path.read_bytes() for path in place.journal.glob("*.log")} == before
    journal.close()


def all_in(journal: Journal) -> list[JournalEntry]:
    entries: list[JournalEntry] = []
    while batch := journal.read(entries[-1].seq if entries else 0, LIMIT).entries:
        entries += batch
    return entries


def test_its_answers_are_read(
    place: KernelFolder, journal: Journal, request_of_0_1: HolderConfig
) -> None:
    answers = ReplyJournal(place.journal / "answers", request_of_0_1.journal.bytes // SHARE)
    found = all_in(answers._kept)
    kinds = [json.loads(entry.parts[0])["msg_type"] for entry in found]
    assert kinds.count("execute_reply") == 2
    assert set(kinds) == {"execute_reply", "status"}
    by_seq = {entry.seq: entry for entry in all_in(journal)}
    assert all(by_seq[entry.seq] == entry for entry in found)
    answers.close()
    journal.close()


def test_its_clients_are_remembered(
    place: KernelFolder, journal: Journal, request_of_0_1: HolderConfig
) -> None:
    bounds = msgspec.convert(request_of_0_1.sessions, SessionLimits, from_attributes=True)
    lines = [json.loads(line) for line in place.sessions.read_bytes().splitlines()]
    table, begun = lines[0], lines[1]
    now = lines[-1]["now"] + 1
    memory = SessionStore.open(place.sessions, bounds, journal.last_seq, now)
    record = place.read_record()
    assert record is not None
    assert memory.sessions.epoch == record.epoch
    # Of one the table tells, as of an earlier holder's time, of the other the events behind it.
    for name, seq in (("d", table["sessions"][0]["cursor"]), ("e", begun["seq"])):
        attach = Attach(link=name, principal=str(ALICE), session_id=name * 32, subprotocol=V1)
        (start,) = memory.handle(ClientAttached(1, attach), now)
        assert isinstance(start, StartReading)
        assert start.position == Position(record.epoch, seq)
    memory.close()
    journal.close()


def test_what_it_had_not_finished_is_known(
    place: KernelFolder, journal: Journal, request_of_0_1: HolderConfig
) -> None:
    bounds = msgspec.convert(request_of_0_1.sessions, SessionLimits, from_attributes=True)
    found = version1.read_requests(place.requests)
    memory = SessionStore.open(place.sessions, bounds, journal.last_seq, 0.0, found)
    (left,) = memory.sessions.unfinished
    memory.close()
    journal.close()
    assert left.asker
    assert (left.msg_id, left.session) == (f"{'e' * 32}-2", "e" * 32)
    assert (left.msg_type, left.answered, left.idle) == ("execute_request", False, False)


async def test_its_kernel_is_adopted(tmp_path: Path) -> None:
    """The kernel died too: the holder finds that out, and starts it anew under the same id."""
    folder = kernels_folder(tmp_path, "alpha") / KERNEL
    copy_folder(folder, tmp_path)
    place = KernelFolder(folder)
    left = place.read_record()
    assert left is not None
    async with replaced(place, tmp_path) as line, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(line.run())
        record = await until(lambda: noted(place, left))
        assert (record.epoch, record.version, record.journal) == (
            left.epoch,
            FOLDER.writes,
            JOURNAL.writes,
        )
        assert place.read_grants() == {"token:bob": Grant.VIEW}
        reader, writer = await asyncio.open_unix_connection(line.socket.path)
        position = Position(left.epoch, 0)
        attach = Attach(
            link="l", principal=str(ALICE), session_id="s", subprotocol=V1, position=position
        )
        writer.write(struct_record(RecordKind.ATTACH, attach))
        kind, payload = await read_record(reader, LIMIT)
        assert (kind, read_struct(payload, AttachedRecord).position) == (
            RecordKind.ATTACHED,
            position,
        )
        kind, payload = await read_record(reader, LIMIT)
        assert (kind, next(read_entries(payload)).seq) == (RecordKind.ENTRIES, 1)
        writer.close()
        await line.call("shutdown", "", WAIT)
        await running
        # Else this process has a child when its loop ends.
        await until(lambda: gone(record.holder_pid))
    assert line.status.phase is Phase.GONE
    assert not place.exists()


@asynccontextmanager
async def replaced(place: KernelFolder, state: Path) -> AsyncIterator[HolderClient]:
    """A line to a holder of this version, in the place of the one that died."""
    launcher = launcher_of(state)
    launcher.open_folders()
    assert await adopt(launcher, place) == ""
    try:
        yield await until(lambda: HolderClient.open(place))
    finally:
        # Where the test has failed.
        await end_kernels(state, WAIT)


async def gone(pid: int) -> None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    raise BlockingIOError


async def noted(place: KernelFolder, left: KernelRecord) -> KernelRecord:
    """What the next holder notes, once it has a kernel of its own."""
    record = place.read_record()
    if record is None or record.kernel_pid in {None, left.kernel_pid}:
        raise FileNotFoundError(place.record)
    return record


async def until(found: Callable[[], Awaitable[Any]]) -> Any:
    """What is found, once it can be."""
    async with asyncio.timeout(WAIT):
        while True:
            try:
                return await found()
            except OSError:
                await asyncio.sleep(0.05)
