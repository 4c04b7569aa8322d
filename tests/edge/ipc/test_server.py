from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from relay.edge.ipc.protocol import (
    HEAD,
    MESSAGE_BYTES,
    PART,
    CallFailure,
    CallResult,
    MessageReader,
    MessageWriter,
    Notification,
    ParentMessage,
    Refusal,
    Release,
    ServiceCall,
    encode,
)
from relay.edge.ipc.quotas import ConnectionPermit
from relay.edge.ipc.server import WorkerConnection
from tests.edge.ipc.demo import Break, Desk, Elsewhere, Keep, ListModels, Parent, listening
from tests.fakes import FakeTransport
from tests.virtualtime import settle, virtual


def framed(*messages: msgspec.Struct | bytes) -> bytes:
    data = bytearray()
    writer = MessageWriter(data.extend)
    for message in messages:
        writer.send(message if isinstance(message, bytes) else encode(message))
    return bytes(data)


def call(number: int, request: Desk | Keep | ConnectionPermit | ListModels) -> ServiceCall[object]:
    return ServiceCall(number, request.service, request)


class Worker:
    """A worker's end without a network, which reads when it is told to."""

    def __init__(self, parent: Parent) -> None:
        self.connection = WorkerConnection(parent.server._services, parent.server.accepts)
        self.transport = FakeTransport(self.connection)
        self.ours, theirs = socket.socketpair()
        self.transport.extra["socket"] = theirs
        self.connection.connection_made(self.transport)
        theirs.close()
        self.ours.close()
        self._reader = MessageReader()

    def send(self, *messages: msgspec.Struct | bytes) -> None:
        self.connection.data_received(framed(*messages))

    def answers(self) -> list[ParentMessage]:
        self._reader.feed(self.transport.take())
        found = []
        while (message := self._reader.next()) is not None:
            found.append(msgspec.msgpack.decode(message, type=ParentMessage))
        return found


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    return Parent(tmp_path)


# --- services by name ---


def test_services_are_found_by_name(parent: Parent) -> None:
    worker = Worker(parent)
    worker.send(call(1, ConnectionPermit("a")), call(2, Keep(b"x")), call(3, Desk()))
    numbers = [answer.number for answer in worker.answers()]
    assert numbers == [1, 2, 3]
    assert (len(parent.quotas), parent.kept, parent.desks) == (2, [b"x"], 1)


def test_an_unknown_service_is_an_answer_and_costs_nothing_else(parent: Parent) -> None:
    worker = Worker(parent)
    with capture_logs() as logs:
        worker.send(ServiceCall(1, "elsewhere", Elsewhere()), Notification("elsewhere", 7))
        worker.send(call(2, Keep(b"x")))
    failure, result = worker.answers()
    assert isinstance(failure, CallFailure)
    assert (failure.number, failure.code) == (1, "unknown_service")
    assert failure.message == "The parent has no service elsewhere."
    assert isinstance(result, CallResult)
    assert parent.kept == [b"x"]
    assert [(line["event"], line["service"]) for line in logs] == [
        ("ipc_unknown_service", "elsewhere")
    ] * 2
    assert not worker.transport.aborted


def test_a_service_that_fails_takes_nobody_along(parent: Parent) -> None:
    worker = Worker(parent)
    with capture_logs() as logs:
        worker.send(ServiceCall(1, "demo", Break()), Notification("demo", Break()))
        worker.send(call(2, Keep(b"x")))
    failure, _ = worker.answers()
    assert isinstance(failure, CallFailure)
    assert (failure.code, failure.message) == ("internal_error", "The service demo failed.")
    assert [(line["event"], line["request"]) for line in logs] == [
        ("ipc_call_failed", "Break"),
        ("ipc_notification_failed", "Break"),
    ]
    assert parent.kept == [b"x"]


def test_a_notification_that_is_refused_is_logged(parent: Parent) -> None:
    parent.server._services["demo"] = parent.demo()
    worker = Worker(parent)
    parent.refusal = Refusal("a.setting", "no")
    with capture_logs() as logs:
        worker.send(Notification("demo", Keep(b"x")))
    assert worker.answers() == []
    assert [(line["event"], line["code"]) for line in logs] == [
        ("ipc_notification_refused", "a.setting")
    ]


# --- permits ---


def test_a_permit_is_released_once(parent: Parent) -> None:
    worker = Worker(parent)
    worker.send(call(1, Desk()), call(2, Desk()), call(3, Desk()))
    assert parent.desks == 2
    worker.send(Release(1), Release(1), Release(3), Release(77))
    assert parent.desks == 1
    worker.transport.lose()
    assert parent.desks == 0


def test_whatever_a_worker_held_is_released_when_its_connection_ends(parent: Parent) -> None:
    one, other = Worker(parent), Worker(parent)
    one.send(call(1, Desk()), call(2, ConnectionPermit("a")))
    other.send(call(1, Desk()), call(2, ConnectionPermit("a")))
    one.transport.lose(ConnectionResetError())
    assert (parent.desks, len(parent.quotas)) == (1, 2)
    other.transport.lose()
    assert (parent.desks, len(parent.quotas)) == (0, 0)


def test_a_release_that_fails_keeps_no_other_permit(parent: Parent) -> None:
    failures = [KeyError("once")]

    def leave() -> None:
        if failures:
            raise failures.pop()

    parent.released = leave
    worker = Worker(parent)
    worker.send(call(1, Desk()), call(2, Desk()), call(3, ConnectionPermit("a")))
    with capture_logs() as logs:
        worker.transport.lose()
    assert (parent.desks, len(parent.quotas)) == (0, 0)
    assert [(line["event"], line["request"]) for line in logs] == [("ipc_release_failed", "Desk")]


# --- flow control ---

HUGE = ListModels(2, "x" * (MESSAGE_BYTES // 4))
"""Its answer is half of what may wait."""


def test_of_a_worker_that_does_not_read_no_more_is_taken(parent: Parent) -> None:
    async def run() -> None:
        worker = Worker(parent)
        worker.connection.pause_writing()
        worker.send(*(call(number, HUGE) for number in range(1, 6)), call(6, Keep(b"x")))
        assert not worker.transport.is_reading()
        waiting = worker.connection._writer.waiting
        assert MESSAGE_BYTES <= waiting < MESSAGE_BYTES * 2
        assert parent.kept == []
        worker.connection.resume_writing()
        assert worker.transport.is_reading()
        assert parent.kept == [b"x"]
        assert [answer.number for answer in worker.answers()] == [1, 2, 3, 4, 5, 6]

    asyncio.run(run())


def test_while_answers_wait_that_are_fewer_calls_go_on(parent: Parent) -> None:
    worker = Worker(parent)
    worker.connection.pause_writing()
    worker.send(call(1, HUGE), call(2, Keep(b"x")))
    assert worker.transport.is_reading()
    assert parent.kept == [b"x"]
    worker.connection.resume_writing()
    # The short answer goes first.
    assert [answer.number for answer in worker.answers()] == [2, 1]


# --- who may connect ---


@virtual
async def test_a_process_that_is_no_worker_is_not_let_in(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        parent.workers.clear()
        with capture_logs() as logs:
            client = await parent.connect()
            await settle()
        assert client.gone
        assert len(parent.quotas) == 0
        assert [(line["event"], line["pid"]) for line in logs] == [
            ("ipc_peer_refused", os.getpid())
        ]


def test_nor_is_another_user(parent: Parent) -> None:
    assert parent.server.accepts(os.getpid(), os.geteuid())
    assert not parent.server.accepts(os.getpid(), os.geteuid() + 1)
    assert not parent.server.accepts(os.getpid() + 1, os.geteuid())


def test_what_a_stranger_sent_already_is_not_looked_at(parent: Parent) -> None:
    async def run() -> None:
        parent.workers.clear()
        worker = Worker(parent)
        assert worker.transport.aborted
        worker.send(call(1, Keep(b"x")))
        assert parent.kept == []
        await settle()

    asyncio.run(run())


# --- what is no message ---

BAD = {
    "a length past the limit": HEAD.pack(2**20, 0),
    "a kind that there is not": HEAD.pack(1, 9) + b"x",
    "no msgpack": framed(b"\xc1"),
    "no message": framed(b"\x90"),
    "an unknown request": framed(ServiceCall(1, "quotas", ["Everything"])),
    "a request without its fields": framed(ServiceCall(1, "quotas", ["CountRequest", "u"])),
    "another service's request": framed(ServiceCall(1, "quotas", Keep(b"x"))),
    "a notification that nobody knows": framed(Notification("demo", ["Drop"])),
    "a notification for a permit": framed(Notification("demo", Desk())),
    "a number twice": framed(*2 * [call(1, Desk())]),
    "nesting without end": framed(b"\x94\xabServiceCall\x01\xa1s" + b"\x91" * 60_000),
    "a message past the limit": HEAD.pack(65536, PART).join(
        [b"", *[bytes(65536)] * (MESSAGE_BYTES // 65536 + 1)]
    ),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
@virtual
async def test_what_is_no_message_ends_the_connection(tmp_path: Path, data: bytes) -> None:
    async with listening(tmp_path) as parent:
        reader, writer = await asyncio.open_unix_connection(parent.path)
        with capture_logs() as logs:
            writer.write(framed(call(7, ConnectionPermit("a"))) + data)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(10_000)
        assert [line["event"] for line in logs] == ["ipc_malformed_message"]
        writer.close()
        await settle()
        assert (len(parent.quotas), parent.desks) == (0, 0)


@virtual
async def test_messages_in_single_bytes(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        reader, writer = await asyncio.open_unix_connection(parent.path)
        permit = call(1, ConnectionPermit("a"))
        sent = Notification("demo", Keep(b"x")), permit, Release(1), Release(1), permit
        for byte in framed(*sent):
            writer.write(bytes([byte]))
            await settle()
        for _ in range(2):
            length, _ = HEAD.unpack(await reader.readexactly(HEAD.size))
            answer = msgspec.msgpack.decode(await reader.readexactly(length))
            assert answer == ["CallResult", 1, None]
        assert parent.kept == [b"x"]
        writer.close()
        await settle()
        assert len(parent.quotas) == 0
