"""Many kernels, clients that come and go, and random kills; then looks for what was left behind.

    python -m tests.chaos.soak --minutes 5

First a storm: parts of the relay die all the time. Then a calm, in which only clients, kernels and
holders come, go and die, so that edge and agents grow old: their memory and descriptors are
compared before and after it. Between the two, and at the end, nothing may be left of what was
there. Exit code 0 only if so. `make soak` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
import uuid
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from relay.kernel_folders import KernelFolder, kernels_folder
from tests.chaos.blows import LANES, Target
from tests.chaos.desk import Desk, Stuck, numbered, until
from tests.chaos.raw import Door, RawSeat
from tests.chaos.tally import Asked, Tally
from tests.chaos.wiring import CROWD, end_in_order, parts_of
from tests.system.running import RunningRelay, processes_of

CLUSTER: Final = "alpha"
VISITORS: Final = 6
"""Clients at a time, each with a kernel of its own."""
_BETWEEN: Final = (2.0, 6.0)
"""Seconds between two kills."""
_PATIENCE: Final = 120.0
"""Seconds that a request is repeated."""
_GROWTH: Final = 1.2
"""What the memory of a process may grow by in the calm, and as many MiB as follow."""
_MORE_MIB: Final = 16.0
_MORE_FILES: Final = 8
"""Descriptors that a process may have more after the calm: idle connections between parts."""
_BLOWS: Final = [
    row.blow for lane in LANES for row in lane if not (row.silent or "stopped" in row.name)
]
_MIB: Final = 1024 * 1024


class Seen(NamedTuple):
    """One process at rest."""

    pid: int
    mib: float
    """Memory that is its own."""
    files: int
    sockets: int


class Soak:
    """One run."""

    def __init__(self, relay: RunningRelay, dice: random.Random, console: Console) -> None:
        self._relay = relay
        self._dice = dice
        self._console = console
        self._target = Target(relay, CLUSTER, set(), dice)
        self._until = 0.0
        self._kernels: set[str] = set()
        self._hurt: set[str] = set()
        """Kernels whose holder was killed."""
        self.tally = Tally()
        """Of the kernels that lived to their end."""
        self.visits = 0
        self.kills = 0
        self.left: list[str] = []
        """What should not be there."""

    async def run(self, seconds: float) -> None:
        """A storm, a rest; a calm to grow warm in, a rest, a calm, a rest."""
        await self._phase("storm", seconds * 0.5, storm=True)
        await self._rest()
        await self._phase("warming up", seconds * 0.15, storm=False)
        before = await self._rest()
        await self._phase("calm", seconds * 0.35, storm=False)
        self._compare(before, await self._rest())

    async def _phase(self, name: str, seconds: float, *, storm: bool) -> None:
        self._until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for number in range(VISITORS):
                tasks.create_task(self._come_and_go(), name=f"visitor {number}")
            tasks.create_task(self._kill(storm=storm), name="killer")
        self._console.print(f"{name}: {self.visits} visits and {self.kills} kills so far")

    # Kills.

    async def _kill(self, *, storm: bool) -> None:
        while time.monotonic() < self._until:
            await asyncio.sleep(self._dice.uniform(*_BETWEEN))
            self.kills += 1
            if not storm or self._dice.random() < 1 / (len(_BLOWS) + 1):
                self._kill_holder()
                continue
            blow = self._dice.choice(_BLOWS)()
            await blow.aim(self._target, ())
            blow.strike()
            await blow.over(time.monotonic())

    def _kill_holder(self) -> None:
        if self._kernels:
            kernel = self._dice.choice(sorted(self._kernels))
            folder = kernels_folder(self._relay.state, CLUSTER) / kernel
            with contextlib.suppress(OSError):
                if record := KernelFolder(folder).read_record():
                    self._hurt.add(kernel)
                    os.kill(record.holder_pid, signal.SIGKILL)

    # Clients.

    async def _come_and_go(self) -> None:
        while time.monotonic() < self._until:
            await self._visit(str(uuid.UUID(int=self._dice.getrandbits(128), version=4)))
            self.visits += 1

    async def _visit(self, kernel: str) -> None:
        path = f"/{CLUSTER}/api/kernels"
        # A holder that dies while its kernel starts makes that fail.
        started = await self._call("POST", path, {"name": "python3", "kernel_id": kernel})
        if started == HTTPStatus.CREATED:
            self._kernels.add(kernel)
            await self._use(kernel)
            self._kernels.discard(kernel)
        await self._call("DELETE", f"{path}/{kernel}")

    async def _use(self, kernel: str) -> None:
        relay, dice = self._relay, self._dice
        url = f"{relay.info.wss_url}/{CLUSTER}/api/kernels/{kernel}/channels"
        door = Door(url, relay.authorization, relay.tls, v1=dice.random() < 0.7)
        desk = Desk(kernel, relay.folder / f"{kernel}.marks")
        seat = RawSeat(door, desk.hear, named=dice.random() < 0.7)
        desk.seat = seat
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(seat.run(), name=f"seat {kernel}")
            try:
                for _ in range(dice.randint(1, 4)):
                    asked = await self._run_cell(desk)
                    if dice.random() < 0.3:
                        seat.cut()
                await desk.settle(asked)
            except Stuck as stuck:
                if kernel not in self._hurt:
                    self.left.append(f"stuck: {stuck}")
            if dice.random() < 0.5:
                seat.cut()
            await seat.close()
        if kernel not in self._hurt:
            desk.count(self.tally)

    async def _run_cell(self, desk: Desk) -> Asked:
        name, lines = desk.next_key, self._dice.choice((1, 50, 500))
        code = f"for number in range({lines}): print({name!r}, number, flush=True)"
        asked = await desk.ask(f"{code}\nimport time; time.sleep(0.2)", list(numbered(name, lines)))
        if self._dice.random() < 0.8:
            await desk.settle(asked)
        return asked

    async def _call(self, method: str, path: str, body: Any = None) -> int:
        """Ask, again and again, until there is an answer that is one; its status, else 0."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                answer = await asyncio.to_thread(self._relay.request, method, path, body)
                if answer.status < HTTPStatus.BAD_GATEWAY:
                    return answer.status
            await asyncio.sleep(0.2)
        self.left.append(f"no answer to {method} {path}")
        return 0

    # What is left.

    async def _rest(self) -> dict[str, Seen]:
        """See that nothing is left but what serves; look at that."""
        with contextlib.suppress(Stuck):
            await until("nothing left", lambda: not self._left(), 60)
        self.left += self._left()
        await self._target.parts()
        parts = parts_of(self._relay, CLUSTER)
        assert parts is not None
        found = {"supervisor": parts.supervisor, "edge": parts.parent, "agent": parts.agent}
        found |= {f"worker {number}": pid for number, pid in enumerate(parts.workers)}
        return {name: _look(pid) for name, pid in found.items()}

    def _left(self) -> list[str]:
        parts = parts_of(self._relay, CLUSTER)
        if parts is None:
            return ["a part of the relay is missing"]
        processes = processes_of(self._relay.folder)
        folder = self._relay.folder
        found = [
            *kernels_folder(self._relay.state, CLUSTER).iterdir(),
            *(path for path in (folder / "xdg").rglob("*") if path.is_socket()),
            *(path for path in (folder / "tmp").iterdir() if path.is_socket()),
        ]
        return [
            *(f"process {pid}: {argv}" for pid, argv in processes.items() if pid not in parts.all),
            *(str(path) for path in found),
        ]

    def _compare(self, before: dict[str, Seen], after: dict[str, Seen]) -> None:
        table = Table("process", "MiB", "then", "descriptors", "then", "sockets", "then", box=None)
        for name, then in after.items():
            was = before[name]
            table.add_row(
                name,
                *(f"{value:.1f}" for value in (was.mib, then.mib)),
                *(str(value) for value in (was.files, then.files, was.sockets, then.sockets)),
            )
            if was.pid != then.pid:
                self.left.append(f"{name} was replaced in the calm")
            if then.mib > was.mib * _GROWTH + _MORE_MIB:
                self.left.append(f"{name}: {was.mib:.1f} MiB, then {then.mib:.1f} MiB")
            if then.files > was.files + _MORE_FILES:
                self.left.append(f"{name}: {was.files} descriptors, then {then.files}")
        self._console.print(table)


def _look(pid: int) -> Seen:
    process = psutil.Process(pid)
    memory = process.memory_full_info().uss / _MIB
    return Seen(pid, memory, process.num_fds(), len(process.net_connections("all")))


async def soak(asked: argparse.Namespace, console: Console) -> int:
    """Run what is asked for; the exit code."""
    relay = RunningRelay((CLUSTER,), environ=CROWD)
    failed = True
    try:
        await asyncio.to_thread(relay.start)
        run = Soak(relay, random.Random(asked.seed), console)  # noqa: S311
        await run.run(60 * asked.minutes)
        tally = run.tally
        console.print(
            f"{run.visits} visits, {run.kills} kills; of {tally.arrived} cells {tally.lost} lines "
            f"lost, {tally.reordered} reordered, {tally.repeated} repeated, {tally.notices} with "
            f"a notice; {tally.twice} executed twice"
        )
        wrong = [*run.left, *(tally.trouble if tally.lost and not tally.notices else ())]
        for what in wrong:
            console.print(f"left over, or wrong: {what}", markup=False, soft_wrap=True)
        failed = bool(wrong)
    finally:
        # Raises where a process outlives `relay down --kernels`.
        await asyncio.to_thread(relay.close, keep=failed)
    console.print(f"nothing is left over; seed {asked.seed}" if not failed else f"see {relay.log}")
    return 1 if failed else 0


def main() -> int:
    """Run the program; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    asked = parser.parse_args()
    console = Console(width=150, highlight=False)
    console.print(f"seed {asked.seed}")
    end_in_order()
    return asyncio.run(soak(asked, console))


if __name__ == "__main__":
    sys.exit(main())
