"""What is done to the relay: one class of failure each, and how long it takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from relay.kernel_folders import KernelFolder, kernels_folder
from tests.chaos.desk import Seat, until
from tests.chaos.silence import Network
from tests.chaos.tally import Requirement
from tests.chaos.wiring import Parts, clients_of, parts_of
from tests.system.running import RunningRelay

STOPPED: Final = 10.0
"""Seconds that SIGSTOP lasts."""
_SETTLED: Final = 3.1
"""Seconds that a process must live to be replaced at once (processes/process_manager.py)."""


class Target(NamedTuple):
    """What a blow falls on."""

    relay: RunningRelay
    cluster: str
    killed: set[int]
    """Pids that are not to be killed again."""
    dice: random.Random
    network: Network | None = None
    """Between clients and edge, where it is not the usual."""

    async def parts(self) -> Parts:
        """Who runs, once everybody has for a while: what dies sooner is replaced later."""
        found: list[Parts] = []

        def look() -> bool:
            parts = parts_of(self.relay, self.cluster)
            if parts and parts.all.isdisjoint(self.killed) and parts.youngest > _SETTLED:
                found.append(parts)
            return bool(found)

        await until("a complete relay", look)
        return found[0]


class Blow(Protocol):
    """One kind of failure."""

    async def aim(self, target: Target, seats: Iterable[Seat]) -> None:
        """Choose the victims, once everything runs."""

    def strike(self) -> None:
        """Do it, at once."""

    def hits(self, seat: Seat) -> bool:
        """Whether a client has to do with the victims; asked before the blow."""

    async def over(self, began: float) -> float:
        """Wait until nothing more is done to the relay, or do what a person would.

        When it began, or where the relay only stood still, when that ended: seconds, monotonic.
        """


class Kill:
    """SIGKILL for parts of the relay, which come back by themselves."""

    def __init__(self, victims: Callable[[Parts], Iterable[int]]) -> None:
        self._victims = victims
        self._pids: list[int] = []

    async def aim(self, target: Target, seats: Iterable[Seat]) -> None:
        """Choose the victims."""
        self._pids = list(self._victims(await target.parts()))
        target.killed.update(self._pids)

    def strike(self) -> None:
        """Kill them."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)

    def hits(self, seat: Seat) -> bool:
        """Everybody."""
        return True

    async def over(self, began: float) -> float:
        """Nothing more is done."""
        return began


class KillWorker:
    """SIGKILL for the edge worker that has the most of those who wait for a hit, or the fewest."""

    def __init__(self) -> None:
        self._target: Target
        self._pid = 0
        self._turns = 0

    async def aim(self, target: Target, seats: Iterable[Seat]) -> None:
        """Choose it."""
        waiting = set[int]().union(*(seat.ports() for seat in seats))
        clients = {
            pid: len(waiting & clients_of(pid, target.relay))
            for pid in (await target.parts()).workers
        }
        # Who has no connection yet may get one to either.
        choose = (max, max, min)[self._turns % 3]
        self._turns += 1
        self._target = target
        self._pid = choose(clients, key=lambda pid: clients[pid])
        target.killed.add(self._pid)

    def strike(self) -> None:
        """Kill it."""
        os.kill(self._pid, signal.SIGKILL)

    def hits(self, seat: Seat) -> bool:
        """Whether a connection of the client's ends there."""
        return bool(clients_of(self._pid, self._target.relay) & seat.ports())

    async def over(self, began: float) -> float:
        """Nothing more is done."""
        return began


class KillHolders:
    """SIGKILL for all holders of the cluster."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self._killed: set[int] = set()

    async def aim(self, target: Target, seats: Iterable[Seat]) -> None:
        """Choose those that serve."""
        await target.parts()
        folder = kernels_folder(target.relay.state, target.cluster)
        pids: list[int] = []

        def look() -> bool:
            records = [KernelFolder(path).read_record() for path in folder.iterdir()]
            pids[:] = [record.holder_pid for record in records if record is not None]
            return len(pids) == len(records) and self._killed.isdisjoint(pids)

        await until("a holder for each kernel", look)
        self._pids = pids
        self._killed.update(pids)

    def strike(self) -> None:
        """Kill them."""
        for pid in self._pids:
            # A kernel may have ended meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def hits(self, seat: Seat) -> bool:
        """Everybody."""
        return True

    async def over(self, began: float) -> float:
        """Nothing more is done."""
        return began


class KillSupervisor:
    """SIGKILL for `relay up`, which is started again on its ports."""

    def __init__(self) -> None:
        self._relay: RunningRelay
        self._ports: list[str] = []

    async def aim(self, target: Target, seats: Iterable[Seat]) -> None:
        """Choose it."""
        target.killed.add((await target.parts()).supervisor)
        self._relay = target.relay
        info = target.relay.info
        self._ports = [url.rpartition(":")[2] for url in (info.https_url, info.wss_url)]

    def strike(self) -> None:
        """Kill it."""
        self._relay.process.kill()

    def hits(self, seat: Seat) -> bool:
        """Everybody."""
        return True

    async def over(self, began: float) -> float:
        """Start it again."""
        await asyncio.to_thread(self._relay.stop)
        await asyncio.to_thread(self._relay.restart_on, *self._ports)
        return began


class Stop:
    """SIGSTOP for parts of the relay, and later SIGCONT."""

    def __init__(self, victims: Callable[[Parts], Iterable[int]], seconds: float = STOPPED) -> None:
        self._victims = victims
        self._seconds = seconds
        self._pids: list[int] = []

    async def aim(self, target: Target, seats: Iterable[Seat]) -> None:
        """Choose the victims."""
        self._pids = list(self._victims(await target.parts()))

    def strike(self) -> None:
        """Stop them."""
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def hits(self, seat: Seat) -> bool:
        """Everybody."""
        return True

    async def over(self, began: float) -> float:
        """Let them go on, after a while."""
        try:
            await asyncio.sleep(self._seconds)
        finally:
            for pid in self._pids:
                os.kill(pid, signal.SIGCONT)
        return time.monotonic()


class Silence:
    """The clients' network drops everything for a while; some longer than the edge waits."""

    def __init__(self) -> None:
        self._network: Network
        self._seconds = 0.0

    async def aim(self, target: Target, seats: Iterable[Seat]) -> None:
        """Choose for how long."""
        assert target.network is not None
        await target.parts()
        self._network = target.network
        self._seconds = target.dice.uniform(1.0, 10.0)

    def strike(self) -> None:
        """Drop everything."""
        self._network.silence(on=True)

    def hits(self, seat: Seat) -> bool:
        """Everybody."""
        return True

    async def over(self, began: float) -> float:
        """Drop nothing, after a while."""
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self._network.silence(on=False)
        return time.monotonic()


class Row(NamedTuple):
    """A row of the matrix: a failure, and what is promised when it happens."""

    name: str
    blow: Callable[[], Blow]
    required: Requirement = Requirement()
    environ: Mapping[str, str] = MappingProxyType({})
    """Settings of the relay under which it happens."""
    silent: bool = False
    """Whether the clients' network is one that can go silent."""


_EDGES: Final = (
    Row("one edge worker", KillWorker),
    Row("all edge workers", lambda: Kill(lambda parts: parts.workers)),
    Row("the edge's parent", lambda: Kill(lambda parts: [parts.parent])),
)
_AGENTS: Final = (
    Row("agent", lambda: Kill(lambda parts: [parts.agent]), Requirement(once=True, arrives=True)),
    Row("edge and agent", lambda: Kill(lambda parts: [parts.parent, parts.agent])),
)
_SUPERVISOR: Final = (Row("supervisor", KillSupervisor),)
# An agent that stands still must be noticed within that time.
_SOON: Final = MappingProxyType({"RELAY_UPSTREAM__LINK_PING_INTERVAL": "3"})
_EDGE_STOPS: Final = (
    Row("edge stopped for 10 s", lambda: Stop(lambda parts: [parts.parent, *parts.workers])),
)
_AGENT_STOPS: Final = (
    Row(
        "agent stopped for 10 s",
        lambda: Stop(lambda parts: [parts.agent]),
        Requirement(once=True, arrives=True),
        _SOON,
    ),
    Row(
        "edge and agent stopped for 10 s",
        lambda: Stop(lambda parts: [parts.parent, *parts.workers, parts.agent]),
        environ=_SOON,
    ),
)
_SILENCES: Final = (
    Row(
        "silent network, 1 to 10 s",
        Silence,
        environ=MappingProxyType({"RELAY_WEBSOCKET__PONG_TIMEOUT": "4"}),
        silent=True,
    ),
)
# What a kernel says while no holder reads is lost, and said to be; it does not wait for anybody.
_HOLDERS: Final = (
    Row(
        "holder",
        KillHolders,
        Requirement(complete=False),
        # So many deaths in a row would otherwise end the kernel.
        MappingProxyType({"RELAY_KERNELS__HOLDER_RESTART_LIMIT": "1000"}),
    ),
)
LANES: Final = (_SUPERVISOR, _EDGES, _AGENT_STOPS, _AGENTS, _EDGE_STOPS, _SILENCES, _HOLDERS)
"""Rows with one relay each, which suffers them in turn; the longest first."""
