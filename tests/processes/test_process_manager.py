from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from relay.processes import Backoff, Command, ProcessManager, stop_all, until_ready
from tests.programs import MORTAL, READY, STUBBORN, python

WAIT = 10.0


class Watch:
    """Waits for something about keepers to come true, checked at each change."""

    def __init__(self) -> None:
        self.change = asyncio.Event()
        self.changes = 0

    def note(self) -> None:
        self.changes += 1
        self.change.set()

    def keeper(self, source: str, first: float = 0.001) -> ProcessManager:
        command = Command(name="test", argv=python(source), environment={})
        return ProcessManager(command, self.note, Backoff(first))


@asynccontextmanager
async def running(*keepers: ProcessManager) -> AsyncIterator[None]:
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        for keeper in keepers:
            group.create_task(keeper.run())
        yield


def pid(keeper: ProcessManager) -> int:
    return keeper.child.pid if keeper.child else 0


def test_backoff_doubles_up_to_its_limit() -> None:
    backoff = Backoff(0.1, 5.0)
    delays = [backoff.after(1.0) for _ in range(8)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_backoff_begins_anew_after_a_good_life() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.after(9.9)
    assert backoff.after(3.0) == pytest.approx(0.1)
    assert backoff.after(0.0) == pytest.approx(0.2)


async def test_a_killed_process_is_replaced() -> None:
    watch = Watch()
    keeper = watch.keeper(READY)
    async with running(keeper):
        assert await until_ready([keeper], watch.change, asyncio.Event()) is None
        first = pid(keeper)
        os.kill(first, signal.SIGKILL)
        with capture_logs() as logs:
            while pid(keeper) in (0, first) or not keeper.ready:
                watch.change.clear()
                await watch.change.wait()
        await keeper.stop(WAIT)
    assert keeper.last_exit is not None
    assert keeper.last_exit.code == -signal.SIGTERM
    assert logs[0] == {
        "event": "process_ended",
        "log_level": "warning",
        "process": "test",
        "exit_code": -9,
        "restart_in": 0.001,
    }


async def test_a_process_that_keeps_dying_but_works_is_not_given_up() -> None:
    watch = Watch()
    keeper = watch.keeper(MORTAL)
    async with running(keeper):
        while watch.changes < 18:
            watch.change.clear()
            await watch.change.wait()
            assert not keeper.hopeless
        await keeper.stop(WAIT)
    assert keeper.was_ready


async def test_a_process_that_never_works_is_reported() -> None:
    watch = Watch()
    keeper = watch.keeper("raise SystemExit(1)")
    async with running(keeper):
        assert await until_ready([keeper], watch.change, asyncio.Event()) is keeper
        assert keeper.failures == 5
        await keeper.stop(WAIT)


async def test_a_configuration_error_is_reported_at_once() -> None:
    watch = Watch()
    keeper = watch.keeper("raise SystemExit(2)")
    async with running(keeper):
        assert await until_ready([keeper], watch.change, asyncio.Event()) is keeper
        assert keeper.failures == 1
        await keeper.stop(WAIT)


async def test_a_missing_program_is_reported() -> None:
    watch = Watch()
    command = Command(name="test", argv=("/no/such/program",), environment={})
    keeper = ProcessManager(command, watch.note, Backoff(0.001))
    async with running(keeper):
        assert await until_ready([keeper], watch.change, asyncio.Event()) is keeper
        await keeper.stop(WAIT)


async def test_waiting_for_readiness_ends_with_a_stop() -> None:
    watch = Watch()
    keeper = watch.keeper("import signal; signal.pause()")
    stop = asyncio.Event()
    async with running(keeper):
        while keeper.child is None:
            watch.change.clear()
            await watch.change.wait()
        stop.set()
        watch.change.set()
        assert await until_ready([keeper], watch.change, stop) is None
        assert not keeper.ready
        await keeper.stop(WAIT)


async def test_who_does_not_listen_is_killed() -> None:
    watch = Watch()
    keepers = [watch.keeper(STUBBORN), watch.keeper(STUBBORN)]
    async with running(*keepers):
        await until_ready(keepers, watch.change, asyncio.Event())
        await stop_all(keepers, 0.05)
    assert [keeper.last_exit.code for keeper in keepers if keeper.last_exit] == [-9, -9]


async def test_a_stop_during_back_off_does_not_wait_for_it() -> None:
    watch = Watch()
    keeper = watch.keeper("raise SystemExit(1)", first=100.0)
    async with running(keeper):
        while keeper.last_exit is None:
            watch.change.clear()
            await watch.change.wait()
        await keeper.stop(WAIT)
    assert keeper.child is None


async def test_a_kill_ends_a_patient_stop() -> None:
    watch = Watch()
    keeper = watch.keeper(STUBBORN)
    async with running(keeper):
        await until_ready([keeper], watch.change, asyncio.Event())
        async with asyncio.TaskGroup() as group:
            group.create_task(keeper.stop(1000.0))
            keeper.kill()


async def test_a_stop_before_the_start() -> None:
    keeper = Watch().keeper(READY)
    keeper.kill()
    async with running(keeper):
        pass
    assert keeper.last_exit is None


async def test_a_cancelled_keeper_leaves_no_process() -> None:
    watch = Watch()
    keeper = watch.keeper(STUBBORN)
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        task = group.create_task(keeper.run())
        await until_ready([keeper], watch.change, asyncio.Event())
        victim = pid(keeper)
        task.cancel()
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL  # noqa: ASYNC222 - it has been killed
