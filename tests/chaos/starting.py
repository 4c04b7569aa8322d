"""The moment in which a kernel starts: one is started, by a client that repeats what broke."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
import uuid
from http import HTTPStatus
from typing import Final

from tests.chaos.desk import PATIENCE, Desk, Stuck
from tests.chaos.raw import Door, RawSeat
from tests.chaos.wiring import ports_of
from tests.system.running import RunningRelay, processes_of

_PAUSE: Final = 0.1
"""Seconds between two tries."""
_OF_A_KERNEL: Final = 2
"""Processes: the holder and the kernel."""


class Nobody:
    """Stands for a client that has no WebSocket yet."""

    def __init__(self, relay: RunningRelay) -> None:
        self._relay = relay
        self._others = ports_of(os.getpid(), relay)

    def ports(self) -> set[int]:
        """Those that this process has had since: its request's."""
        return ports_of(os.getpid(), self._relay) - self._others

    async def ask(self, key: str, code: str) -> None:
        """Nobody answers."""

    async def close(self) -> None:
        """Nobody leaves."""


class Starting:
    """A kernel starts; after the blow there is one of it, it executes code, and it ends."""

    within = 0.7

    def __init__(
        self,
        relay: RunningRelay,
        cluster: str,
        desk: Desk,
        dice: random.Random,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._relay = relay
        self._path = f"/{cluster}/api/kernels"
        self._desk = desk
        self._dice = dice
        self._tasks = tasks
        self._kernel = ""
        self._start: asyncio.Task[None] | None = None

    @property
    def lasts(self) -> bool:
        """Until the start is answered."""
        return self._start is not None and not self._start.done()

    async def ready(self) -> None:
        """Ask for one. The blow comes within a moment, so that it starts still."""
        self._kernel = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
        self._desk.seat = Nobody(self._relay)
        body = {"name": "python3", "kernel_id": self._kernel}
        wanted = self._repeat("POST", self._path, body, {HTTPStatus.CREATED})
        self._start = self._tasks.create_task(wanted, name=f"start {self._kernel}")

    async def begin(self) -> None:
        """Nothing more to begin."""

    async def aim(self) -> None:
        """It is on its way."""

    async def recover(self, struck: str) -> None:
        """Use the kernel, see that it is the only one, end it."""
        assert self._start is not None
        await self._start
        running = [
            argv for argv in processes_of(self._relay.folder).values() if self._kernel in argv
        ]
        if len(running) != _OF_A_KERNEL:
            raise Stuck(f"{len(running)} processes of one kernel: {running}")
        relay = self._relay
        url = f"{relay.info.wss_url}{self._path}/{self._kernel}/channels"
        seat = RawSeat(Door(url, relay.authorization, relay.tls), self._desk.hear)
        self._desk.seat = seat
        running_seat = self._tasks.create_task(seat.run(), name=f"seat {self._kernel}")
        name = self._desk.next_key
        await self._desk.settle(await self._desk.ask(f"print({name!r})", [name]))
        await seat.close()
        await running_seat
        ended = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND}
        await self._repeat("DELETE", f"{self._path}/{self._kernel}", None, ended)

    async def finish(self) -> None:
        """Nothing is left to wait for."""

    async def _repeat(self, method: str, path: str, body: object, wanted: set[HTTPStatus]) -> None:
        """Ask until it is answered so. Raises `Stuck`."""
        deadline = time.monotonic() + PATIENCE
        status = 0
        while status not in wanted:
            if time.monotonic() > deadline:
                raise Stuck(f"{method} {path}: {status}")
            # relay.json is not there while a supervisor is away.
            with contextlib.suppress(OSError):
                answer = await asyncio.to_thread(self._relay.request, method, path, body)
                status = answer.status
                if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in wanted:
                    raise Stuck(f"{method} {path}: {answer}")
            await asyncio.sleep(_PAUSE)
