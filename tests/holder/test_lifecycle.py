"""A kernel's lifecycle with a kernel that is a list, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from relay.bridge.control import Failure, Phase
from relay.bridge.session_table import SessionLimits
from relay.config import KernelSettings
from relay.errors import KernelError, StartFailed
from relay.holder.broker.broker import Broker
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Journal
from relay.holder.lifecycle import Lifecycle
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.store import SessionStore
from relay.kernel_folders import KernelFolder, KernelRecord, KernelState
from tests.holder.fake_backend import FakeBackend
from tests.virtualtime import elapse, virtual

LIMITS = SessionLimits(
    sessions=10, requests=10, repeats=10, lifetime=100.0, anonymous_lifetime=100.0
)
SETTINGS = KernelSettings(launch_timeout=30.0, restart_limit=2, restart_window=60.0)
RECORD = KernelRecord(
    holder_pid=1,
    holder_started=1,
    epoch="e" * 12,
    state="ready",
    identities=["old", "older"],
    provisioner={},
)


class Bench:
    def __init__(self, folder: Path) -> None:
        journal = Journal.open(
            folder / "journal", max_bytes=2**20, segment_bytes=2**20, tail_bytes=2**20
        )
        replies = ReplyJournal(folder / "answers", 2**20)
        store = SessionStore.open(folder / "sessions", LIMITS, 0, 0.0)
        grants = GrantStore(KernelFolder(folder), 1)
        self.broker = Broker(store, journal, replies, grants, lambda: None)
        self.backend = FakeBackend()
        self.phases: list[str] = []
        self.noted: list[str] = []
        self.lifecycle = Lifecycle(
            self.backend,
            self.broker,
            SETTINGS,
            on_change=lambda: self.phases.append(self.lifecycle.phase),
            on_note=lambda: self.noted.append(self.lifecycle.state),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        """While its kernel is up; it is stopped in the end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.lifecycle.run())
            await elapse(5)
            yield self
            await self.lifecycle.stop()

    def phase(self) -> Phase:
        return self.lifecycle.phase

    @property
    def state(self) -> str:
        return self.broker.activity.state

    def announced(self) -> list[str]:
        """The states that clients were told, but for those of the kernel's own requests."""
        self.broker.outbound.flush()
        entries = self.broker.outbound.journal.read(0, 2**20).entries
        contents = [json.loads(each.parts[3]) for each in entries]
        return [each["execution_state"] for each in contents if "execution_state" in each]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@virtual
async def test_a_kernel_is_ready_once_it_has_answered_and_been_heard(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        assert bench.phase() is Phase.READY
        assert bench.state == "idle"
        assert bench.noted == ["starting", "ready"]
        assert bench.backend.calls == ["launch"]
    assert bench.phase() is Phase.GONE
    assert bench.noted[-1] == "ending"
    assert bench.backend.calls == ["launch", "end"]
    assert bench.announced() == ["dead"]
    assert bench.backend.channel.closed


@virtual
async def test_a_kernel_that_ends_early_gets_another_transport_once(folder: Path) -> None:
    bench = Bench(folder)
    bench.backend.early_ends = 1
    async with bench.running():
        assert bench.phase() is Phase.READY
        assert bench.backend.calls == ["launch", "fall back", "launch"]
        assert bench.backend.channels[0].closed


@virtual
async def test_a_kernel_that_ends_early_again_has_failed(folder: Path) -> None:
    bench = Bench(folder)
    bench.backend.early_ends = 2
    bench.backend.tail = "no module named x\n"
    await bench.lifecycle.run()
    assert bench.phase() is Phase.FAILED
    assert bench.noted[-1] == "ending"
    assert bench.state == "dead"
    assert bench.lifecycle.failure == Failure(
        "The kernel ended with exit code 3 before it answered. Its last output: no module named x",
        StartFailed.reason,
        StartFailed.http_status,
    )
    assert bench.backend.calls == ["launch", "fall back", "launch", "end now"]


@virtual
async def test_a_launch_that_is_refused_has_failed(folder: Path) -> None:
    bench = Bench(folder)
    bench.backend.refused = 1
    await bench.lifecycle.run()
    assert bench.lifecycle.failure is not None
    assert bench.lifecycle.failure.message == "It could not be launched."
    assert bench.backend.calls == ["launch", "end now"]


@virtual
async def test_a_kernel_that_dies_is_restarted(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        bench.backend.die(9)
        await elapse(1)
        assert bench.backend.calls == ["launch", "clean up", "launch"]
        assert bench.announced() == ["restarting"]
        assert bench.state == "idle"
        assert bench.phase() is Phase.READY
        assert bench.noted[-1] == "ready"


@virtual
async def test_restarts_in_a_row_are_limited(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        for _ in range(3):
            bench.backend.die(9)
            await elapse(1)
        assert bench.announced() == ["restarting", "restarting", "dead"]
        assert bench.state == "dead"
        assert bench.noted[-1] == "dead"
        # It is still there, to be restarted by hand.
        assert bench.phase() is Phase.READY
        await elapse(60)
        assert bench.backend.calls.count("launch") == 3
        await bench.lifecycle.restart()
        assert bench.state == "idle"
        assert bench.noted[-1] == "ready"


@virtual
async def test_a_kernel_that_was_up_for_long_starts_counting_anew(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        for _ in range(5):
            await elapse(61)
            bench.backend.die(9)
            await elapse(1)
        assert bench.state == "idle"
        assert bench.announced() == ["restarting"] * 5


@virtual
async def test_a_restart_that_fails_is_one_more(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        bench.backend.die(9)
        bench.backend.early_ends = 1
        await elapse(2)
        assert bench.state == "idle"
        assert bench.announced() == ["restarting", "restarting"]
        assert bench.backend.calls.count("end now to relaunch") == 1


@virtual
async def test_a_restart_by_hand_is_told_by_the_kernel_itself(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        await bench.lifecycle.restart()
        assert bench.backend.calls == ["launch", "end to relaunch", "launch"]
        assert bench.announced() == []
        assert bench.backend.channels[0].closed
        assert not bench.backend.channels[1].closed


@virtual
async def test_a_restart_by_hand_that_fails_leaves_a_dead_kernel(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        bench.backend.refused = 1
        with pytest.raises(StartFailed):
            await bench.lifecycle.restart()
        assert (bench.state, bench.noted[-1]) == ("dead", "dead")
        assert bench.announced() == ["dead"]
        await bench.lifecycle.restart()
        assert bench.state == "idle"


@virtual
async def test_an_interrupt_waits_for_nobody_and_needs_a_kernel(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        async with bench.lifecycle._lock:
            await bench.lifecycle.interrupt()
        assert bench.backend.calls == ["launch", "interrupt"]
        bench.backend.exit_code = 1
        with pytest.raises(KernelError):
            await bench.lifecycle.interrupt()


@virtual
async def test_what_has_ended_stays_so(folder: Path) -> None:
    async with Bench(folder).running() as bench:
        await bench.lifecycle.stop()
        await bench.lifecycle.stop()
        with pytest.raises(KernelError):
            await bench.lifecycle.restart()
    assert bench.backend.calls == ["launch", "end"]


# Adoption


async def adopted(bench: Bench, state: KernelState = "ready") -> None:
    record = msgspec.structs.replace(RECORD, state=state)
    await bench.lifecycle.adopt(record, "a notice")


@virtual
async def test_an_adopted_kernel_is_not_launched(folder: Path) -> None:
    bench = Bench(folder)
    await adopted(bench)
    async with bench.running():
        assert bench.backend.calls == ["adopt old older"]
        assert bench.phase() is Phase.READY
        # Until it has answered it may be running anything.
        assert bench.state == "busy"
        bench.lifecycle.recovered()
        assert bench.backend.calls == ["adopt old older", "forget predecessors"]
        assert bench.noted == ["ready", "ready"]


@virtual
async def test_an_adopted_kernel_that_has_died_is_restarted(folder: Path) -> None:
    bench = Bench(folder)
    bench.backend.exit_code = 255
    await adopted(bench)
    async with bench.running():
        assert bench.backend.calls == ["adopt old older", "clean up", "launch"]
        assert bench.state == "idle"


@virtual
async def test_a_dead_kernel_is_adopted_as_one(folder: Path) -> None:
    bench = Bench(folder)
    bench.backend.exit_code = 255
    await adopted(bench, state="dead")
    async with bench.running():
        assert bench.state == "dead"
        assert bench.noted == ["dead"]
        assert bench.backend.calls == ["adopt old older"]
