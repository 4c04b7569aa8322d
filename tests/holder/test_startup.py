"""When a kernel has started, with a kernel that is a list, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay import limits
from relay.bridge.control import Phase
from relay.bridge.messages import Channel
from tests.holder.test_lifecycle import Bench
from tests.virtualtime import elapse, virtual


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@virtual
async def test_a_kernel_that_is_not_heard_on_iopub_is_asked_again(folder: Path) -> None:
    bench = Bench(folder)
    bench.backend.answers = False
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.lifecycle.run())
        await elapse(1)
        # A request waits in the channel: only one while the kernel has not answered.
        ((_, first),) = bench.backend.channel.sent
        bench.backend.channel.say(Channel.SHELL, "kernel_info_reply", first, status="ok")
        await elapse(1)
        again = len(bench.backend.channel.sent)
        assert 5 < again < 15
        assert bench.phase() is Phase.STARTING
        bench.backend.channel.say(Channel.IOPUB, "status", first, execution_state="idle")
        await elapse(1)
        assert bench.phase() is Phase.READY
        await bench.lifecycle.stop()


@pytest.mark.parametrize(
    ("alive", "answers", "missing"),
    [
        (False, False, "its heartbeat"),
        (True, False, "its kernel_info reply"),
        (True, True, "anything on iopub"),
    ],
)
@virtual
async def test_who_waits_too_long_is_told_for_what(
    folder: Path, alive: bool, answers: bool, missing: str
) -> None:
    bench = Bench(folder)
    bench.backend.answers = False
    before = limits.counts["kernels.launch_timeout"]
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(bench.lifecycle.run())
        await elapse(1)
        channel = bench.backend.channel
        channel.is_alive = alive
        if answers:
            channel.say(Channel.SHELL, "kernel_info_reply", channel.sent[0][1], status="ok")
        await elapse(28)
        assert bench.phase() is Phase.STARTING
        await task
    assert bench.lifecycle.failure is not None
    assert bench.lifecycle.failure.message == (
        f"The kernel did not come up within 30 s (kernels.launch_timeout): waited for {missing}."
    )
    assert limits.counts["kernels.launch_timeout"] == before + 1
    assert channel.beats > 100
