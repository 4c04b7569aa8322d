from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import uvloop

from relay.config import ConnectionSettings, LoginSettings, QuotaSettings
from relay.edge import council as module
from relay.edge.council import (
    MESSAGE_BYTES,
    Ask,
    Chair,
    Council,
    Free,
    Note,
    Refused,
    council_path,
)
from relay.edge.quotas import Claim, Connection, FailedLogin, Quotas, Refusal, Request, Socket
from tests.waiting import until

WAIT = 10.0
ME = os.getpid()


class Room:
    """A chair of our own process, and whoever joins."""

    def __init__(self, folder: Path) -> None:
        self.path = council_path(folder)
        self.quotas = Quotas(
            ConnectionSettings(total=3, per_address=2),
            QuotaSettings(user_sockets=2, user_requests=1.0, user_burst=2),
            LoginSettings(failures=1),
        )
        self.noted: list[bytes] = []
        self.refusal: Refusal | None = None
        self.welcome = {ME}
        self.chair = Chair(
            self.path,
            self.quotas,
            welcome=self.welcome.__contains__,
            notes={"kept": self.keep},
            clock=lambda: 0.0,
        )
        self.gone = 0

    async def join(self) -> Council:
        return await Council.join(self.path, ME, self.on_gone)

    def keep(self, data: bytes) -> Refusal | None:
        self.noted.append(data)
        return self.refusal

    def on_gone(self) -> None:
        self.gone += 1


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(tmp_path)
    await made.chair.listen()
    yield made
    made.chair.close()
    await asyncio.sleep(0)


async def refused(council: Council, claim: Claim) -> str:
    with pytest.raises(Refused) as caught:
        await council.count(claim)
    return caught.value.refusal.setting


async def test_workers_share_what_there_is(room: Room) -> None:
    one, other = await room.join(), await room.join()
    first = await one.hold(Connection("a"))
    await other.hold(Connection("a"))
    for each in (one, other):
        assert await refused(each, Connection("a")) == "connections.per_address"
    first.free()
    first.free()
    with await one.hold(Connection("a")):
        assert await refused(one, Connection("a")) == "connections.per_address"
    await one.hold(Connection("a"))
    one.close()
    other.close()


def test_on_the_workers_loop_too(tmp_path: Path) -> None:
    """Its transports are of types of their own."""

    async def run() -> None:
        room = Room(tmp_path)
        await room.chair.listen()
        one, other = await room.join(), await room.join()
        lease = await one.hold(Connection("a"))
        await one.hold(Connection("a"))
        assert await refused(other, Connection("a")) == "connections.per_address"
        lease.free()
        await one.count(FailedLogin("x"))
        await other.hold(Connection("a"))
        one.close()
        other.close()
        await until(lambda: len(room.quotas) == 1)
        room.chair.close()

    uvloop.run(run())


async def test_refusals_say_when_to_come_back(room: Room) -> None:
    council = await room.join()
    for _ in range(2):
        await council.count(Request("u", "alpha"))
    with pytest.raises(Refused) as caught:
        await council.count(Request("u", "alpha"))
    assert caught.value.refusal == Refusal("quotas.user_requests", 1)
    await council.count(FailedLogin("a"))
    assert await refused(council, FailedLogin("a")) == "logins.failures"
    council.close()


async def test_what_a_worker_held_is_free_when_it_is_gone(room: Room) -> None:
    one, other = await room.join(), await room.join()
    for _ in range(2):
        await one.hold(Connection("a"))
        await one.hold(Socket("u", "alpha"))
    assert await refused(other, Connection("a")) == "connections.per_address"
    one._transport.abort()  # type: ignore[union-attr]
    await until(lambda: len(room.quotas) == 0)
    await other.hold(Connection("a"))
    other.close()


async def test_a_question_that_nobody_waits_for_leaves_nothing(room: Room) -> None:
    council = await room.join()
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(council.hold(Connection("a")))
        await asyncio.sleep(0)
        asking.cancel()
    # Answers come in order: when this one is here, that one was.
    await council.count(FailedLogin("b"))
    assert not council._waiting
    assert await refused(council, FailedLogin("b")) == "logins.failures"
    assert [await council.hold(Connection("a")) for _ in range(2)]
    council.close()


async def test_many_at_once_each_get_their_own_answer(room: Room) -> None:
    council = await room.join()

    async def granted(address: str) -> bool:
        try:
            await council.hold(Connection(address))
        except Refused:
            return False
        return True

    answers = await asyncio.gather(*(granted(address) for address in "aabaab"))
    assert answers == [True, True, True, False, False, False]
    council.close()


async def test_notes_arrive_whole_and_in_order(room: Room) -> None:
    council = await room.join()
    lines = [bytes([65 + number % 26]) * (1 + 997 * number % 30_000) for number in range(200)]
    for line in lines:
        council.note("kept", line)
    council.note("nobody's", b"x")
    await council.count(FailedLogin("a"))
    assert room.noted == lines
    with pytest.raises(ValueError, match="a note of"):
        council.note("kept", b"x" * MESSAGE_BYTES)
    council.close()


async def test_without_its_parent_a_worker_gets_nothing(room: Room) -> None:
    council = await room.join()
    async with asyncio.TaskGroup() as group:
        group.create_task(_gone(council, FailedLogin("a")))
        await asyncio.sleep(0)
        council._transport.abort()  # type: ignore[union-attr]
    assert (council.gone, room.gone) == (True, 1)
    await _gone(council, FailedLogin("b"))


async def _gone(council: Council, claim: Claim) -> None:
    with pytest.raises(ConnectionError, match="parent is gone"):
        await council.count(claim)


# --- who may ask ---


async def test_a_process_that_is_no_worker_is_not_let_in(room: Room) -> None:
    room.welcome.clear()
    council = await room.join()
    await until(lambda: council.gone)
    assert len(room.quotas) == 0


async def test_nor_is_another_user(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    council = await room.join()
    monkeypatch.setattr(module, "_peer", lambda _: (ME, os.geteuid() + 1))
    assert not room.chair.admits(council._transport)  # type: ignore[arg-type]
    council.close()


async def test_who_listens_must_be_the_parent(room: Room) -> None:
    with pytest.raises(ConnectionError, match="not our parent's"):
        await Council.join(room.path, ME + 1, room.on_gone)
    with pytest.raises(OSError, match="No such file"):
        await Council.join(room.path.with_name("absent"), ME, room.on_gone)


UNKNOWN = msgspec.msgpack.encode(["Ask", 1, ["Everything"]])
BAD = {
    "a length past the limit": struct.pack("<I", MESSAGE_BYTES + 1),
    "no msgpack": struct.pack("<I", 1) + b"\xc1",
    "no message": struct.pack("<I", 1) + b"\x90",
    "an unknown claim": struct.pack("<I", len(UNKNOWN)) + UNKNOWN,
    "a number twice": 2 * module._packed(Ask(1, Connection("a"))),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
async def test_what_is_no_message_ends_the_connection(room: Room, data: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(room.path)
    writer.write(module._packed(Ask(7, Connection("a"))) + data)
    async with asyncio.timeout(WAIT):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(10_000)
    writer.close()
    await until(lambda: len(room.quotas) == 0)


async def test_messages_in_single_bytes(room: Room) -> None:
    reader, writer = await asyncio.open_unix_connection(room.path)
    said = (Note("kept", b"x"), Ask(1, Connection("a")), Free(1), Free(1), Ask(1, Connection("a")))
    for byte in b"".join(module._packed(each) for each in said):
        writer.write(bytes([byte]))
        await writer.drain()
    for _ in range(2):
        length = struct.unpack("<I", await reader.readexactly(4))[0]
        assert msgspec.msgpack.decode(await reader.readexactly(length)) == [1, None]
    assert room.noted == [b"x"]
    writer.close()
    await until(lambda: len(room.quotas) == 0)


# --- the folder ---


async def test_a_worker_can_wait_until_its_note_is_kept(room: Room) -> None:
    council = await room.join()
    async with asyncio.timeout(WAIT):
        await council.tell("kept", b"one")
        assert room.noted == [b"one"]
        room.refusal = Refusal("a.setting")
        with pytest.raises(Refused) as caught:
            await council.tell("kept", b"two")
        assert caught.value.refusal.setting == "a.setting"
        with pytest.raises(Refused):
            await council.tell("of-no-topic", b"three")
        with pytest.raises(ValueError, match="bytes"):
            await council.tell("kept", bytes(MESSAGE_BYTES))
    assert room.noted == [b"one", b"two"]
    council.close()
