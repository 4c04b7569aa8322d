"""Kills every part of the relay in every moment under every kind of client, and counts.

    python -m tests.chaos                      the whole matrix, about a quarter of an hour
    python -m tests.chaos --row agent --client node --moment printing --seed 5

Exit code 0 only if every promise held. `make chaos` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from tests.chaos import table
from tests.chaos.arena import CLIENTS, Arena
from tests.chaos.blows import LANES, Row
from tests.chaos.posts import MOMENTS
from tests.chaos.silence import Network
from tests.chaos.tally import Requirement, Tally
from tests.chaos.wiring import end_in_order

KILLS_EACH = 20
ROWS = {row.name: row for lane in LANES for row in lane}
_TOLD = 3
"""Troubles of a cell that are shown."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    parser.add_argument("--kills", type=int, default=KILLS_EACH, help="of each cell, at least")
    parser.add_argument("--lanes", type=int, default=3, help="relays at the same time")
    parser.add_argument("--row", action="append", choices=ROWS, help="all, if left out")
    parser.add_argument("--client", action="append", choices=CLIENTS, help="likewise")
    parser.add_argument("--moment", action="append", choices=MOMENTS, help="likewise")
    parser.add_argument("--write", action="store_true", help="the table in docs/guarantees.md")
    return parser.parse_args(argv)


class Match:
    """One run of the matrix."""

    def __init__(self, asked: argparse.Namespace, console: Console) -> None:
        self._asked = asked
        self._console = console
        self._began = time.monotonic()
        self._results: dict[table.Cell, Tally] = {}

    async def run(self) -> int:
        """Run what is asked for; the exit code."""
        wanted = set(self._asked.row or (row.name for lane in LANES for row in lane))
        room = asyncio.Semaphore(self._asked.lanes)
        async with asyncio.TaskGroup() as tasks:
            for lane in LANES:
                if rows := [row for row in lane if row.name in wanted]:
                    tasks.create_task(self._run_lane(rows, room), name=rows[0].name)
        return self._conclude()

    async def _run_lane(self, rows: Sequence[Row], room: asyncio.Semaphore) -> None:
        asked = self._asked
        dice = random.Random(f"{asked.seed} {rows[0].name}")  # noqa: S311
        clients, moments = asked.client or list(CLIENTS), asked.moment or list(MOMENTS)
        silent = rows[0].silent
        if silent and (missing := Network.missing()):
            self._say(f"SKIPPED: {rows[0].name}: {missing}")
            return
        async with room, Arena(clients, moments, dice, rows[0].environ, silent=silent) as arena:
            self._say(f"{rows[0].name}: {len(arena.posts)} clients of {arena.relay.folder}")
            for row in rows:
                fought = await arena.fight(row, asked.kills, self._say)
                total = Tally.sum(fought.values())
                self._say(f"{row.name}: {total.hits} hits, {total.lost} lost; {total.trouble}")
                for (client, moment), tally in fought.items():
                    self._results[row.name, client, moment] = tally

    def _conclude(self) -> int:
        order = list(ROWS), list(CLIENTS), list(MOMENTS)
        results = {
            cell: self._results[cell] for cell in itertools.product(*order) if cell in self._results
        }
        broken = {
            cell: wrong
            for cell, tally in results.items()
            if (wrong := _required(cell).broken_by(tally, self._asked.kills))
        }
        self._console.print(table.terminal(results, broken))
        for (row, client, moment), wrong in broken.items():
            again = f"--row '{row}' --client {client} --moment {moment} --seed {self._asked.seed}"
            trouble = self._results[row, client, moment].trouble[:_TOLD]
            self._say(f"{row}, {client}, {moment}: {'; '.join([*wrong, *trouble])}\n  {again}")
        if self._asked.write:
            table.write(table.markdown(results))
        self._say(f"{len(broken)} of {len(results)} cells broke a promise; seed {self._asked.seed}")
        return 1 if broken else 0

    def _say(self, what: str) -> None:
        seconds = time.monotonic() - self._began
        self._console.print(f"{seconds:7.1f} s  {what}", markup=False, soft_wrap=True)


def _required(cell: table.Cell) -> Requirement:
    """What is promised: to a client that says where it stands, more."""
    row, client, _ = cell
    required = ROWS[row].required
    if client == "script":
        # A request that a holder had taken when it died is answered by an error.
        return required._replace(once=True, arrives=required.complete)
    if client == "anonymous" and ROWS[row].silent:
        # While the connection that went silent is believed in, it has the client's place; what it
        # was to hear comes with a later one.
        return required._replace(ordered=False)
    return required


def main() -> int:
    """Run the program; its exit code."""
    asked = parse(sys.argv[1:])
    console = Console(highlight=False, width=150)
    console.print(f"seed {asked.seed}")
    end_in_order()
    return asyncio.run(Match(asked, console).run())


if __name__ == "__main__":
    sys.exit(main())
