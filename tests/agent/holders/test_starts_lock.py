from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from relay.agent.holders.starts_lock import StartsLock
from relay.errors import AgentUnavailable
from tests.waiting import until


class OtherAgent:
    """Another process of the node, as far as locks can tell."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def lock(self) -> bool:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            return False
        return True

    def unlock(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "starts.lock"


@pytest.fixture
def other(path: Path) -> Iterator[OtherAgent]:
    made = OtherAgent(path)
    yield made
    made.unlock()


async def test_one_has_it_at_a_time(path: Path, other: OtherAgent) -> None:
    lock = StartsLock(path)
    inside = 0
    order: list[int] = []

    async def start(number: int) -> None:
        nonlocal inside
        async with lock.held(10):
            inside += 1
            assert inside == 1
            assert not other.lock()
            await asyncio.sleep(0)
            order.append(number)
            inside -= 1

    await asyncio.gather(*map(start, range(5)))
    assert order == [0, 1, 2, 3, 4]
    assert other.lock()


async def test_it_comes_when_the_other_lets_go(path: Path, other: OtherAgent) -> None:
    lock = StartsLock(path)
    assert other.lock()

    async def start() -> None:
        async with lock.held(10):
            assert not other.lock()

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(start())
        await until(lambda: lock._waiting is not None)
        assert not waiting.done()
        other.unlock()
    assert other.lock()


@pytest.mark.parametrize("again", [True, False])
async def test_who_gives_up_leaves_it_to_others(path: Path, other: OtherAgent, again: bool) -> None:
    lock = StartsLock(path)
    assert other.lock()
    for _ in range(3):
        with pytest.raises(AgentUnavailable, match="Another agent"):
            async with lock.held(0.0):
                pytest.fail("the lock is the other's")
    # One thread waits, not three.
    waiting = lock._waiting
    assert waiting is not None
    if again:
        async with asyncio.TaskGroup() as tasks:
            held = lock.held(10)
            entering = tasks.create_task(held.__aenter__())
            await until(lambda: lock._wanted)
            assert lock._waiting is waiting
            other.unlock()
            await entering
            assert not other.lock()
            await held.__aexit__(None, None, None)
    else:
        other.unlock()
    await until(lambda: lock._waiting is None)
    assert other.lock()


async def test_a_start_that_is_cancelled_as_the_lock_comes_lets_go(
    path: Path, other: OtherAgent
) -> None:
    lock = StartsLock(path)
    assert other.lock()
    async with asyncio.TaskGroup() as tasks:
        entering = tasks.create_task(lock.held(10).__aenter__())
        await until(lambda: lock._wanted)
        waiting = lock._waiting
        assert waiting is not None
        # In the turn in which the thread hands it over, before the start goes on.
        waiting.add_done_callback(lambda _: entering.cancel())
        other.unlock()
        await asyncio.wait([entering])
    assert entering.cancelled()
    assert other.lock()


async def test_what_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    lock = StartsLock(tmp_path / "no such folder" / "starts.lock")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            async with lock.held(1):
                pytest.fail("there is no lock")
