from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from relay.bridge.messages import Channel
from relay.holder.backends.sockets import _DRAIN_BYTES, _DRAIN_MESSAGES, Endpoints, KernelSockets

MIB = 1024 * 1024


class Burst:
    """In a ZMQ socket's place: what a kernel has sent and nobody has read yet."""

    closed = False

    def __init__(self, messages: list[list[bytes]]) -> None:
        self._messages = deque(messages)

    def recv_multipart(self, *, flags: int) -> list[bytes]:
        assert flags == zmq.NOBLOCK
        if not self._messages:
            raise zmq.Again
        return self._messages.popleft()


@pytest.fixture
async def taken() -> list[list[bytes]]:
    return []


@pytest.fixture
async def sockets(tmp_path: Path, taken: list[list[bytes]]) -> AsyncIterator[KernelSockets]:
    """The sockets of a kernel that is not there."""
    addresses = {channel: f"ipc://{tmp_path}/{channel.wire}" for channel in Channel}
    endpoints = Endpoints(addresses=addresses, heartbeat=f"ipc://{tmp_path}/beat")
    opened = KernelSockets(endpoints, b"me", lambda _, parts: taken.append(parts))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("messages", "size", "at_most"),
    [
        (3 * _DRAIN_MESSAGES, 1, _DRAIN_MESSAGES),
        # What is taken stays in memory until the others' turn, when it is written.
        (64, MIB, _DRAIN_BYTES // MIB + 1),
        (3, 2 * _DRAIN_BYTES, 1),
    ],
    ids=["many", "large", "huge"],
)
async def test_a_burst_is_taken_in_turns(
    sockets: KernelSockets,
    taken: list[list[bytes]],
    messages: int,
    size: int,
    at_most: int,
) -> None:
    sent = [[bytes(size)] for _ in range(messages)]
    burst: Any = Burst(sent)
    # As the event loop does it when the socket has something.
    asyncio.get_running_loop().call_soon(sockets._drain, Channel.IOPUB, burst)
    turns: list[int] = []
    while not turns or turns[-1]:
        before = len(taken)
        await asyncio.sleep(0)
        turns.append(len(taken) - before)
    assert max(turns) == at_most
    assert taken == sent
