from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from relay.agent.launchers.start_signals import StartSignals
from tests.virtualtime import elapse, settle, virtual


async def test_a_start_is_expected_to_tell_until_it_has() -> None:
    signals = StartSignals()
    with signals.of_start("k") as given:
        serving = os.dup(given)
    assert signals.is_expected("k")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(signals.wait("k"))
        await asyncio.sleep(0)
        assert not waiting.done()
        # As a holder does that serves, and as the system does for one that dies.
        os.close(serving)
        await asyncio.wait_for(waiting, 5)
    assert not signals.is_expected("k")
    await signals.wait("k")


async def test_what_a_holder_writes_is_the_same() -> None:
    signals = StartSignals()
    with signals.of_start("k") as given:
        serving = os.dup(given)
    os.write(serving, b"anything")
    await asyncio.wait_for(signals.wait("k"), 5)
    os.close(serving)
    assert not signals.is_expected("k")


async def test_a_start_that_fails_is_not_waited_for() -> None:
    signals = StartSignals()
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match="no"), signals.of_start("k"):
        raise OSError("no")
    assert not signals.is_expected("k")
    assert sorted(Path("/proc/self/fd").iterdir()) == before


async def test_a_second_start_is_not_taken_for_the_first() -> None:
    signals = StartSignals()
    descriptors = []
    for _ in range(2):
        with signals.of_start("k") as given:
            descriptors.append(os.dup(given))
    first, second = descriptors
    os.close(first)
    await settle()
    assert signals.is_expected("k")
    os.close(second)
    await asyncio.wait_for(signals.wait("k"), 5)
    assert not signals.is_expected("k")


@virtual
async def test_a_holder_that_tells_nothing_costs_no_descriptor_for_long() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    signals = StartSignals(timeout=15.0)
    with signals.of_start("k") as given:
        serving = os.dup(given)
    await elapse(14.9)
    assert signals.is_expected("k")
    await elapse(0.2)
    assert not signals.is_expected("k")
    await signals.wait("k")
    os.close(serving)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
