from __future__ import annotations

import asyncio

import pytest

from relay.agent.holders.single_flight import SingleFlight
from relay.errors import NotFound


class Work:
    def __init__(self) -> None:
        self.begun = 0
        self.end = asyncio.Event()
        self.problem: NotFound | None = None

    async def run(self) -> int:
        self.begun += 1
        number = self.begun
        await self.end.wait()
        if self.problem is not None:
            raise self.problem
        return number


async def test_all_who_ask_at_the_same_time_get_the_same() -> None:
    work = Work()
    async with asyncio.TaskGroup() as tasks:
        flight = SingleFlight[int](tasks)
        asked = [tasks.create_task(flight.run("a", work.run)) for _ in range(3)]
        other = tasks.create_task(flight.run("b", work.run))
        await asyncio.sleep(0)
        work.end.set()
        assert [await each for each in asked] == [1, 1, 1]
        assert await other == 2
        # What is over is done again.
        assert await flight.run("a", work.run) == 3


async def test_who_stops_waiting_does_not_stop_the_others() -> None:
    work = Work()
    async with asyncio.TaskGroup() as tasks:
        flight = SingleFlight[int](tasks)
        first, second = (tasks.create_task(flight.run("a", work.run)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        work.end.set()
        assert await second == 1
        assert first.cancelled()


async def test_an_error_is_everybodys_and_ends_nothing_else() -> None:
    work = Work()
    work.problem = NotFound("no")
    work.end.set()
    async with asyncio.TaskGroup() as tasks:
        flight = SingleFlight[int](tasks)
        for _ in range(2):
            with pytest.raises(NotFound):
                await flight.run("a", work.run)


async def test_all_can_be_cancelled() -> None:
    work = Work()
    async with asyncio.TaskGroup() as tasks:
        flight = SingleFlight[int](tasks)
        asked = tasks.create_task(flight.run("a", work.run))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        flight.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
