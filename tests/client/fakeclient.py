"""A `Kernel` over sockets in memory: nothing of aiohttp, nothing of REST."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from relay.client.channels import Channels
from relay.client.delivery_tracker import parse_position
from relay.client.kernel import Kernel
from relay.client.kernel_session import KernelSession
from relay.client.settings import Settings
from relay.client.sockets import Socket
from relay.errors import RelayError
from tests.client.fakekernel import FakeKernel, FakeSocket

Fault = Mapping[str, Any] | RelayError
"""How a connection breaks, or why there is none."""


class NoRest:
    """REST that always succeeds."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def call(
        self, method: str, path: str, body: object = None, *, repeatable: bool = True
    ) -> bytes:
        self.calls.append((method, path))
        return b""


class Way:
    """Dials: each time with the next fault, and without any once they are used up."""

    def __init__(self, kernel: FakeKernel, faults: Iterable[Fault] = ()) -> None:
        self.kernel = kernel
        self.faults: Iterator[Fault] = iter(faults)
        self.dialled: list[str] = []
        self.sockets: list[FakeSocket] = []

    def to(self, session: str) -> Callable[[str], Any]:
        async def dial(last_seq: str) -> Socket:
            self.dialled.append(last_seq)
            fault = next(self.faults, {})
            if isinstance(fault, RelayError):
                raise fault
            self.sockets.append(FakeSocket(self.kernel, session, last_seq, **fault))
            return self.sockets[-1]

        return dial


@contextlib.asynccontextmanager
async def connected(
    way: Way,
    *,
    session: str = "s",
    last_seq: str | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[Kernel]:
    """A `Kernel`, as `RelayClient.connect` gives it."""
    start = None if last_seq is None else parse_position(last_seq)
    chosen = settings or Settings()
    date = "2026-01-01T00:00:00Z"
    conversation = KernelSession(session, start, lambda: date, chosen.requests_in_flight)
    channels = Channels(conversation, way.to(session), chosen, lambda: 0.5)
    rest: Any = NoRest()
    async with asyncio.TaskGroup() as tasks:
        kernel = Kernel("k", rest, conversation, channels).open(tasks)
        try:
            yield kernel
        finally:
            await kernel.close()
