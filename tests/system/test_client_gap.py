"""`relay.client` when what it was to hear meanwhile was too much for the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from relay.client import Execution, Kernel, Result
from tests.system.running import RunningRelay, wait_for
from tests.system.test_client import away, client_of

WAIT: Final = 15.0
"""Seconds for what comes at once, or never."""
JOURNAL: Final = {
    "RELAY_JOURNAL__BYTES": "256 KiB",
    "RELAY_JOURNAL__SEGMENT_BYTES": "64 KiB",
    "RELAY_JOURNAL__TAIL_BYTES": "16 KiB",
}
WAITING: Final = """
import os, time
while not os.path.exists({!r}): time.sleep(0.01)
"""
PRINTING: Final = "for number in range(100): print('x' * 10_000, flush=True)"
"""A megabyte, of which the journal keeps a quarter."""
MISSING: Final = "messages are missing here"


@pytest.fixture(scope="module")
def tiny() -> Iterator[RunningRelay]:
    with RunningRelay(("alpha",), environ=JOURNAL) as running:
        yield running


def overflow(relay: RunningRelay, kernel: Kernel) -> None:
    """Wait until the journal's beginning has made room for what came later."""
    (journal,) = relay.state.glob(f"*/kernels/{kernel.id}/journal")
    beginning = journal / f"{1:016x}.log"
    wait_for("room that was made", lambda: not beginning.exists())


async def arrived(relay: RunningRelay, kernel: Kernel, execution: Execution) -> None:
    """Wait until the holder has it, and all that was asked before."""
    (log,) = relay.state.glob(f"*/kernels/{kernel.id}/requests.log")
    await asyncio.to_thread(wait_for, "a request", lambda: execution.msg_id in log.read_text())


async def result_of(execution: Execution) -> Result:
    async with asyncio.timeout(WAIT):
        return await execution.result()


@pytest.mark.guarantee
async def test_a_reply_does_not_go_with_the_output(tiny: RunningRelay, tmp_path: Path) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    async with client_of(tiny) as client:
        kernel = await client.start()
        running = kernel.execute(WAITING.format(str(first)) + "print('lost')")
        queued = kernel.execute("runs = globals().get('runs', 0) + 1")
        failing = kernel.execute("1 / 0", stop_on_error=False)
        printing = kernel.execute(PRINTING + WAITING.format(str(last)) + "print('end')")
        await arrived(tiny, kernel, printing)
        with away(tiny):
            first.touch()
            await asyncio.to_thread(overflow, tiny, kernel)
        result = await result_of(running)
        assert result.ok
        assert result.stdout == ""
        assert MISSING in result.stderr
        assert (await result_of(queued)).ok
        result = await result_of(failing)
        assert result.reply is not None
        assert result.reply["ename"] == "ZeroDivisionError"
        # What still runs is left alone.
        last.touch()
        result = await result_of(printing)
        assert result.ok
        assert MISSING in result.stderr
        assert result.stdout.endswith("end\n")
        assert (await kernel.run("runs")).value == "1"
        assert kernel.repeated == 0
        await kernel.shutdown()
