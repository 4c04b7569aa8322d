"""Measure what the edge's `Pipe` costs per message, in microseconds, without a network.

Run as ``python -m benchmarks.pipe``. The harness is `timeit`, with garbage collection off as is its
default, and counts processor time, so that other programs disturb it little; the figure is the
median of several runs. Messages hold 1 KiB and come one a read, as from a client that types, or 16
a read, as from one that is busy.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import timeit
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from websockets.frames import Opcode

from relay.bridge.control import Attached, Position
from relay.bridge.records import RecordKind, frames_record, number_record, struct_record
from relay.config import EdgeLimits, WebSocketSettings
from relay.edge.upstream.link import Link
from relay.edge.websocket.pipe import Pipe
from relay.metrics import EdgeMetrics
from tests.fakes import FakeResponse, FakeTransport, client_frame

RUNS: Final = 25
MESSAGES: Final = 4000
"""Messages of one run."""
SIZE: Final = 1024
"""Bytes of one message."""

Work = Callable[[], None]
"""Moves `MESSAGES` messages."""


class Sink(FakeTransport):
    """A connection whose other end takes everything and remembers nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Forget the data."""


def joined(pipe_class: Callable[..., Any] = Pipe) -> tuple[Any, Link]:
    """Return a pipe of this class with an attached link, both on sinks."""
    traffic = EdgeMetrics.local().traffic("alpha")
    pipe = pipe_class(Sink(), EdgeLimits(), WebSocketSettings(), traffic)
    link = Link(FakeResponse(Sink()))  # type: ignore[arg-type] # all that a link wants of a response
    attached = Attached(position=Position("e1", 0), acknowledged=0)
    link.data_received(struct_record(RecordKind.ATTACHED, attached))
    pipe.bind(link)
    return pipe, link


def from_client(pipe_class: Callable[..., Any], batch: int) -> Work:
    """Move messages from a client to its link; the holder acknowledges each read."""
    pipe, link = joined(pipe_class)
    data = client_frame(Opcode.TEXT, b"x" * SIZE) * batch
    sent = 0

    def work() -> None:
        nonlocal sent
        for _ in range(MESSAGES // batch):
            pipe.data_received(data)
            sent += batch
            link.data_received(number_record(RecordKind.ACK, sent))

    return work


def to_client(pipe_class: Callable[..., Any], batch: int) -> Work:
    """Move FRAMES records of one message each from a link to its client."""
    _, link = joined(pipe_class)
    records = [frames_record(seq, 0, [b"\x81\x7e\x04\x00", b"x" * SIZE]) for seq in range(MESSAGES)]
    reads = [b"".join(records[start : start + batch]) for start in range(0, MESSAGES, batch)]

    def work() -> None:
        for data in reads:
            link.data_received(data)

    return work


WORKS: Final[Mapping[str, Callable[[Callable[..., Any]], Work]]] = {
    "from the client, 1 message a read": lambda pipe_class: from_client(pipe_class, 1),
    "from the client, 16 messages a read": lambda pipe_class: from_client(pipe_class, 16),
    "to the client, 1 record a read": lambda pipe_class: to_client(pipe_class, 1),
    "to the client, 16 records a read": lambda pipe_class: to_client(pipe_class, 16),
}


async def measure(
    pipe_classes: Iterable[Callable[..., Any]], runs: int = RUNS
) -> dict[str, list[list[float]]]:
    """Return each work's microseconds per message: a list of runs for each class.

    The classes take turns, so that a change of the machine's speed meets all of them.
    """
    figures: dict[str, list[list[float]]] = {}
    for name, make in WORKS.items():
        works = [make(pipe_class) for pipe_class in pipe_classes]
        timers = [timeit.Timer(work, timer=time.process_time) for work in works]
        figures[name] = [[] for _ in timers]
        for _ in range(runs):
            for timer, taken in zip(timers, figures[name], strict=True):
                taken.append(timer.timeit(1) * 1e6 / MESSAGES)
    return figures


def main() -> None:
    """Print the median and the range of all runs."""
    for name, (taken,) in asyncio.run(measure([Pipe])).items():
        median = statistics.median(taken)
        print(f"{name:36} {median:6.2f} µs per message ({min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    main()
