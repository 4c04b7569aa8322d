from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from relay.processes import Command, ProcessManager, RestartDelay, stop_all, wait_until_ready
from tests.programs import MORTAL, READY, STUBBORN, python

WAIT = 10.0


class Watch:
    """Waits for something about managers to come true, checked at each change."""

    def __init__(self) -> None:
        self.change = asyncio.Event()
        self.changes = 0

    def note(self) -> None:
        self.changes += 1
        self.change.set()

    def manager(self, source: str, first: float = 0.001) -> ProcessManager:
        command = Command(name="test", argv=python(source), environment={})
        return ProcessManager(command, self.note, RestartDelay(first))


@asynccontextmanager
async def running(*managers: ProcessManager) -> AsyncIterator[None]:
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        for manager in managers:
            group.create_task(manager.run())
        yield


def pid(manager: ProcessManager) -> int:
    return manager.child.pid if manager.child else 0


def test_backoff_doubles_up_to_its_limit() -> None:
    backoff = RestartDelay(0.1, 5.0)
    delays = [backoff.after(1.0) for _ in range(8)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_backoff_begins_anew_after_a_good_life() -> None:
    backoff = RestartDelay()
    for _ in range(5):
        backoff.after(9.9)
    assert backoff.after(3.0) == pytest.approx(0.1)
    assert backoff.after(0.0) == pytest.approx(0.2)


async def test_a_killed_process_is_replaced() -> None:
    watch = Watch()
    manager = watch.manager(READY)
    async with running(manager):
        assert await wait_until_ready([manager], watch.change, asyncio.Event()) is None
        first = pid(manager)
        os.kill(first, signal.SIGKILL)
        with capture_logs() as logs:
            while pid(manager) in (0, first) or not manager.ready:
                watch.change.clear()
                await watch.change.wait()
        await manager.stop(WAIT)
    assert manager.last_exit is not None
    assert manager.last_exit.code == -signal.SIGTERM
    assert logs[0] == {
        "event": "process_ended",
        "log_level": "warning",
        "process": "test",
        "exit_code": -9,
        "restart_in": 0.001,
    }


async def test_a_process_that_keeps_dying_but_works_is_not_given_up() -> None:
    watch = Watch()
    manager = watch.manager(MORTAL)
    async with running(manager):
        while watch.changes < 18:
            watch.change.clear()
            await watch.change.wait()
            assert not manager.crash_looping
        await manager.stop(WAIT)
    assert manager.was_ready


async def test_a_process_that_never_works_is_reported() -> None:
    watch = Watch()
    manager = watch.manager("raise SystemExit(1)")
    async with running(manager):
        assert await wait_until_ready([manager], watch.change, asyncio.Event()) is manager
        assert manager.failures == 5
        await manager.stop(WAIT)


async def test_a_configuration_error_is_reported_at_once() -> None:
    watch = Watch()
    manager = watch.manager("raise SystemExit(2)")
    async with running(manager):
        assert await wait_until_ready([manager], watch.change, asyncio.Event()) is manager
        assert manager.failures == 1
        await manager.stop(WAIT)


async def test_a_missing_program_is_reported() -> None:
    watch = Watch()
    command = Command(name="test", argv=("/no/such/program",), environment={})
    manager = ProcessManager(command, watch.note, RestartDelay(0.001))
    async with running(manager):
        assert await wait_until_ready([manager], watch.change, asyncio.Event()) is manager
        await manager.stop(WAIT)


async def test_waiting_for_readiness_ends_with_a_stop() -> None:
    watch = Watch()
    manager = watch.manager("import signal; signal.pause()")
    stop = asyncio.Event()
    async with running(manager):
        while manager.child is None:
            watch.change.clear()
            await watch.change.wait()
        stop.set()
        watch.change.set()
        assert await wait_until_ready([manager], watch.change, stop) is None
        assert not manager.ready
        await manager.stop(WAIT)


async def test_who_does_not_listen_is_killed() -> None:
    watch = Watch()
    managers = [watch.manager(STUBBORN), watch.manager(STUBBORN)]
    async with running(*managers):
        await wait_until_ready(managers, watch.change, asyncio.Event())
        await stop_all(managers, 0.05)
    assert [manager.last_exit.code for manager in managers if manager.last_exit] == [-9, -9]


async def test_a_stop_during_back_off_does_not_wait_for_it() -> None:
    watch = Watch()
    manager = watch.manager("raise SystemExit(1)", first=100.0)
    async with running(manager):
        while manager.last_exit is None:
            watch.change.clear()
            await watch.change.wait()
        await manager.stop(WAIT)
    assert manager.child is None


async def test_a_kill_ends_a_patient_stop() -> None:
    watch = Watch()
    manager = watch.manager(STUBBORN)
    async with running(manager):
        await wait_until_ready([manager], watch.change, asyncio.Event())
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.stop(1000.0))
            manager.kill()


async def test_a_stop_before_the_start() -> None:
    manager = Watch().manager(READY)
    manager.kill()
    async with running(manager):
        pass
    assert manager.last_exit is None


async def test_a_cancelled_keeper_leaves_no_process() -> None:
    watch = Watch()
    manager = watch.manager(STUBBORN)
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        task = group.create_task(manager.run())
        await wait_until_ready([manager], watch.change, asyncio.Event())
        victim = pid(manager)
        task.cancel()
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL  # noqa: ASYNC222 - it has been killed
