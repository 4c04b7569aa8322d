"""Counts what is sent twice when an edge worker dies, for several rhythms of pings, and their cost.

    python -m tests.chaos.rhythm

docs/decisions/0017 has the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table

from tests.chaos.arena import CLIENTS, CLUSTER, Arena
from tests.chaos.blows import LANES
from tests.chaos.posts import Speed
from tests.chaos.raw import pings
from tests.chaos.wiring import parts_of

INTERVALS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
SPEEDS: Final = MappingProxyType(
    {
        "1 line in 1 s": Speed(60, 1, 1.0),
        "50 lines a second": Speed(3000, 1, 0.02),
        "500 lines a second": Speed(30_000, 10, 0.02),
    }
)
_ROW: Final = next(row for lane in LANES for row in lane if row.name == "all edge workers")
_WATCHED: Final = 5.0
"""Seconds for which the cost is measured, before anything is killed."""


async def measure(interval: float, clients: Sequence[str], kills: int, seed: int) -> list[str]:
    """A line of the table: repeated per kill, for each client and speed; then the cost."""
    environ = {"RELAY_WEBSOCKET__PROOF_INTERVAL": str(interval)}
    dice = random.Random(seed)  # noqa: S311
    async with Arena(clients, list(SPEEDS), dice, environ, SPEEDS) as arena:
        for post in arena.posts:
            await post.ready()
        cost = await _cost(arena)
        tallies = await arena.fight(_ROW, kills, lambda _: None)
    repeated = [
        f"{tallies[client, speed].repeated / max(tallies[client, speed].hits, 1):.1f}"
        for client in clients
        for speed in SPEEDS
    ]
    lost = sum(tally.lost for tally in tallies.values())
    return [f"{interval} s", *repeated, *cost, str(lost)]


async def _cost(arena: Arena) -> list[str]:
    """Pings per second of each WebSocket of the raw client; CPU of all workers."""
    parts = parts_of(arena.relay, CLUSTER)
    assert parts is not None
    workers = [psutil.Process(pid) for pid in parts.workers]
    began, answered = time.monotonic(), pings()
    used = sum(sum(worker.cpu_times()[:2]) for worker in workers)
    await asyncio.sleep(_WATCHED)
    used = sum(sum(worker.cpu_times()[:2]) for worker in workers) - used
    seconds = time.monotonic() - began
    return [f"{(pings() - answered) / len(SPEEDS) / seconds:.1f}", f"{100 * used / seconds:.0f} %"]


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rhythm", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    parser.add_argument("--interval", type=float, action="append", help="all, if left out")
    asked = parser.parse_args()
    clients = ("raw", "node")
    console = Console(width=150)
    console.print(f"seed {asked.seed}")
    head = [f"{CLIENTS[client]}: {speed}" for client in clients for speed in SPEEDS]
    table = Table("interval", *head, "pings/s", "edge's CPU", "lost", box=None)
    for interval in asked.interval or INTERVALS:
        line = await measure(interval, clients, asked.kills, asked.seed)
        console.print(*line)
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main())
