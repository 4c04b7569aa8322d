from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.auth.ownership import Grant
from relay.bridge.control import Attach, Call, Close, GrantChange, Phase, Read, Result, Status
from relay.bridge.openings import AGENT, HOLDER, refused
from relay.bridge.records import RecordKind, read_struct, struct_record
from relay.bridge.versions import Opening
from relay.errors import KernelError
from relay.holder.serve.client import ChannelLimits
from relay.holder.serve.server import HolderServer
from relay.streams import read_record

LIMIT = 2**20
STATUS = Status(
    phase=Phase.READY,
    name="python3",
    owner="token:ada",
    execution_state="idle",
    last_activity=0.0,
    connections=0,
)
OPENINGS = [
    (RecordKind.CALL, Call(id=0, op="shutdown", version=2)),
    (RecordKind.ATTACH, Attach(link="l", principal="token:ada", version=2)),
    (RecordKind.READ, Read(after=0, limit=None, follow=False, message_bytes=1, version=2)),
]


class Asked(Exception):
    """Somebody who is refused has got through."""


class NoBroker:
    """Nobody is let in."""

    def __getattr__(self, name: str) -> Any:
        raise Asked(name)


class Bench:
    """A holder's server, and an agent that connects to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.operations: list[str] = []
        self.grants: list[tuple[str, Grant | None]] = []
        broker: Any = NoBroker()
        broker.inbound = SimpleNamespace(grant=lambda *grant: self.grants.append(grant))
        self.server = HolderServer(
            broker,
            status=lambda: STATUS,
            operate=self._operate,
            agents=frozenset({os.geteuid()}),
            max_record=LIMIT,
            limits=ChannelLimits(message_bytes=LIMIT, journal_bytes=LIMIT),
        )

    async def _operate(self, operation: str) -> None:
        if operation == "restart":
            raise KernelError("The kernel does not want to.")
        self.operations.append(operation)

    async def say(self, *records: bytes) -> list[tuple[RecordKind, bytes]]:
        """What is answered until the holder hangs up, or is silent."""
        reader, writer = await asyncio.open_unix_connection(self._path)
        writer.write(b"".join(records))
        found = []
        try:
            async with asyncio.timeout(0.5):
                while True:
                    found.append(await read_record(reader, LIMIT))
        except TimeoutError:
            found.append((RecordKind.PING, b"silence"))
        except EOFError:
            pass
        finally:
            writer.close()
        return found


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "s")
    await made.server.listen(tmp_path / "s")
    yield made
    await made.server.deserted(5)
    made.server.close()


async def test_an_agent_that_calls_hears_the_status_and_the_result(bench: Bench) -> None:
    heard = await bench.say(struct_record(RecordKind.CALL, Call(id=0, op="status")))
    kinds = [kind for kind, _ in heard]
    assert sorted(kinds) == [RecordKind.RESULT, RecordKind.STATUS, RecordKind.PING]
    for kind, payload in heard[:-1]:
        if kind is RecordKind.RESULT:
            assert read_struct(payload, Result) == Result(id=0)
        else:
            assert read_struct(payload, Status) == STATUS
    assert bench.operations == ["status"]


@pytest.mark.parametrize(("kind", "opening"), OPENINGS)
async def test_an_agent_of_another_version_hears_so_and_nothing_else(
    bench: Bench, kind: RecordKind, opening: Opening
) -> None:
    ((heard, payload),) = await bench.say(struct_record(kind, opening))
    assert heard is RecordKind.CLOSE
    close = read_struct(payload, Close)
    assert close.code == 1012
    assert close.reason == (
        "The agent has version 2 of the relay's records, the kernel's holder has version 1. "
        "One of them has to be upgraded."
    )
    assert "holder has version 1" in refused(payload, HOLDER, AGENT).message
    assert bench.operations == []


def result_in(heard: list[tuple[RecordKind, bytes]]) -> Result:
    (payload,) = [payload for kind, payload in heard if kind is RecordKind.RESULT]
    return read_struct(payload, Result)


async def test_what_does_not_work_is_told_in_words(bench: Bench) -> None:
    heard = await bench.say(struct_record(RecordKind.CALL, Call(id=3, op="restart")))
    result = result_in(heard)
    assert result.id == 3
    assert result.failure is not None
    assert result.failure.message == "The kernel does not want to."
    assert result.failure.http_status == KernelError.http_status


@pytest.mark.parametrize("action", [*Grant, None])
async def test_grants_are_changed(bench: Bench, action: Grant | None) -> None:
    change = GrantChange(principal="token:bob", action=action)
    heard = await bench.say(struct_record(RecordKind.CALL, Call(id=1, op="grant", grant=change)))
    assert result_in(heard).failure is None
    assert bench.grants == [("token:bob", action)]


async def test_a_grant_that_is_none_is_refused(bench: Bench) -> None:
    change = GrantChange(principal="token:bob", action="own")
    heard = await bench.say(struct_record(RecordKind.CALL, Call(id=1, op="grant", grant=change)))
    failure = result_in(heard).failure
    assert failure is not None
    assert (failure.http_status, bench.grants) == (400, [])


@pytest.mark.parametrize(
    "record",
    [struct_record(RecordKind.STATUS, STATUS), struct_record(RecordKind.CALL, STATUS), b"\xff" * 9],
    ids=["not for holders", "no call", "no record"],
)
async def test_what_is_no_record_of_an_agents_ends_the_connection(
    bench: Bench, record: bytes
) -> None:
    heard = await bench.say(record)
    # It hangs up, and serves the next.
    assert RecordKind.PING not in [kind for kind, _ in heard]
    assert bench.operations == []
    heard = await bench.say(struct_record(RecordKind.CALL, Call(id=0, op="status")))
    assert result_in(heard) == Result(id=0)
