"""A client that stops reading for a minute while half a gigabyte is printed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.system.channels import Channels, Execution
from tests.system.running import RunningRelay
from tests.system.test_channels import MIB, all_until_idle, shown, watch_memory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

COUNT = 1000
SIZE = MIB // 2
AWAY = 60.0
"""Seconds."""
CODE = (
    "import time\n"
    f"for i in range({COUNT}):\n"
    f"    display({{'text/plain': f'{{i}} ' + 'x' * {SIZE}}}, raw=True)\n"
    "    time.sleep(0.02)\n"
)


def relay_with(journal: str) -> Iterator[RunningRelay]:
    with RunningRelay(("alpha",), environ={"RELAY_JOURNAL__BYTES": journal}) as running:
        yield running


@pytest.fixture
def roomy() -> Iterator[RunningRelay]:
    yield from relay_with("1GiB")


@pytest.fixture
def default() -> Iterator[RunningRelay]:
    yield from relay_with("256MiB")


def stop_reading(relay: RunningRelay, kernel: str, slow: Channels) -> Execution:
    """What ``slow`` read once it read again, after another client had read everything."""
    with watch_memory(relay, kernel) as memory, relay.connect("alpha", kernel) as other:
        began = time.monotonic()
        done = other.execute(CODE, timeout=200)
        assert shown(done.messages) == list(range(COUNT))
        # The other one did not wait.
        assert time.monotonic() - began < AWAY
        time.sleep(AWAY - (time.monotonic() - began))
        came = all_until_idle(slow, done.messages[0]["parent_header"]["msg_id"])
    # Of 500 MiB.
    assert max(memory.growth.values()) < 100, memory.growth
    return Execution(came)


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
def test_with_room_for_it_nothing_is_missing(roomy: RunningRelay, v1: bool) -> None:
    kernel = roomy.start_kernel("alpha")
    with roomy.connect("alpha", kernel, v1=v1) as slow:
        came = stop_reading(roomy, kernel, slow)
        assert shown(came.messages) == list(range(COUNT))
        assert came.stderr == ""
        assert slow.execute("print('still here')").stdout == "still here\n"


def test_by_default_the_gap_is_told_exactly(default: RunningRelay) -> None:
    kernel = default.start_kernel("alpha")
    with default.connect("alpha", kernel) as slow:
        came = stop_reading(default, kernel, slow)
        numbers = shown(came.messages)
        missing = re.findall(r"(\d+) messages are missing here.*\(journal\.bytes", came.stderr)
        # The other client's reply is in the journal too, and is not for this one.
        assert 0 <= sum(map(int, missing)) - (COUNT - len(numbers)) <= 2
        assert 0 < len(numbers) < COUNT
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == COUNT - 1
        assert slow.execute("print('still here')").stdout == "still here\n"
