"""A relay with clients of every kind in front of it, each with a kernel for each moment."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self, TypeVar

from tests.chaos.apart import ApartSeat, node, script
from tests.chaos.blows import Blow, Row, Target
from tests.chaos.desk import Desk, Seat
from tests.chaos.posts import LARGE, LESS, STARTING, Post, Speed, moment, now
from tests.chaos.raw import Door, RawSeat
from tests.chaos.silence import Network
from tests.chaos.starting import Nobody, Starting
from tests.chaos.tally import Tally
from tests.chaos.wiring import CROWD, ports_of
from tests.system.gateway_mode import JupyterServer
from tests.system.running import RunningRelay

CLUSTER: Final = "alpha"
CLIENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "raw": "WebSocket, `session_id`",
        "anonymous": "WebSocket, none",
        "gateway": "`jupyter server --gateway-url`",
        "node": "JupyterLab's KernelConnection",
        "script": "`relay.client`",
    }
)
_APART: Final = MappingProxyType({"node": node, "script": script})
"""Clients that have a process of their own."""
_WITHIN_REACH: Final = {"RELAY_HTTPS__HOST": Network.address, "RELAY_WSS__HOST": Network.address}
"""For clients in a network of their own. The relay's certificate is for that address then."""
_PATIENCE: Final = 2.0
"""Seconds of silence after which a client of its own in a bad network asks, and waits again."""
_AT_ONCE: Final = 3
"""Kernels that are started at the same time."""
_MOMENT: Final = 0.005
"""Seconds, at the most, between a request and a blow that is to meet it."""
_TRIES: Final = 4
"""Blows for each hit, at the most: some find a moment that is over."""

T = TypeVar("T")


class Arena:
    """Its clients outlive the rows that are fought in it."""

    def __init__(
        self,
        clients: Sequence[str],
        moments: Sequence[str],
        dice: random.Random,
        environ: Mapping[str, str] | None = None,
        speeds: Mapping[str, Speed] = MappingProxyType({}),
        *,
        silent: bool = False,
    ) -> None:
        """``speeds`` are those of the moments in which a cell prints, where not as usual;
        ``silent`` puts the clients into a network that can go silent.
        """
        listen = _WITHIN_REACH if silent else {}
        self.relay = RunningRelay((CLUSTER,), environ={**CROWD, **(environ or {}), **listen})
        self._network = Network() if silent else None
        self.posts: list[Post] = []
        # How a kernel is asked for has nothing to do with the kind of WebSocket.
        self._wanted = [
            (client, name)
            for client, name in itertools.product(clients, moments)
            if client == "raw" or name != STARTING
        ]
        self._dice = dice
        self._speeds = speeds
        self._target = Target(self.relay, CLUSTER, set(), dice, self._network)
        self._stack = contextlib.AsyncExitStack()
        self._tasks: asyncio.TaskGroup

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            await asyncio.to_thread(self.relay.close, keep=True)
            raise
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self._stack.aclose()
        await asyncio.to_thread(self.relay.close, keep=kind is not None)

    async def _start(self) -> None:
        _forget_history(Path(self.relay.environ["IPYTHONDIR"]))
        if self._network is not None:
            self._stack.enter_context(self._network)
        await asyncio.to_thread(self.relay.start)
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        room = asyncio.Semaphore(_AT_ONCE)

        async def open_in_turn(client: str, name: str) -> None:
            async with room:
                self.posts.append(await self._open(client, name))

        async with asyncio.TaskGroup() as opening:
            for client, name in self._wanted:
                opening.create_task(open_in_turn(client, name), name=f"open {client} {name}")

    async def _within(self, do: Callable[[], T]) -> T:
        """Do something in the clients' network, in a thread."""
        network = self._network
        return await asyncio.to_thread(do if network is None else lambda: network.inside(do))

    async def _open(self, client: str, name: str) -> Post:
        title = f"{client}-{name}"
        desk = Desk(title, self.relay.folder / f"{title}.marks")
        if name == STARTING:
            desk.seat = Nobody(self.relay)
            start = Starting(self.relay, CLUSTER, desk, self._dice, self._tasks)
            return Post(client, name, desk, start)
        desk.seat = await self._seat(client, title, desk)
        gate = self.relay.folder / f"{title}.gate"
        speed = self._speeds.get(name, Speed())
        # One in a process of its own would have less before we hear that it has begun.
        large = LARGE if client == "raw" or client in _APART else LESS
        what = moment(name, desk, self._dice, gate, speed, large)
        return Post(client, name, desk, what)

    async def _seat(self, client: str, title: str, desk: Desk) -> Seat:
        relay = self.relay
        if client == "gateway":
            return await self._seat_behind_a_server(desk)
        kernel = await asyncio.to_thread(relay.start_kernel, CLUSTER)
        if client in _APART:
            program = await asyncio.to_thread(_APART[client], relay, CLUSTER)
            seat = ApartSeat(relay, title, desk.hear)
            await seat.start(program, self._network.prefix if self._network else ())
            self._stack.push_async_callback(seat.close)
            self._tasks.create_task(seat.run(), name=title)
            await seat.connect(kernel)
            return seat
        url = f"{relay.info.wss_url}/{CLUSTER}/api/kernels/{kernel}/channels"
        door = Door(url, relay.authorization, relay.tls)
        if self._network is not None:
            door = door._replace(network=self._network, patience=_PATIENCE)
        return self._run(RawSeat(door, desk.hear, named=client != "anonymous"))

    async def _seat_behind_a_server(self, desk: Desk) -> Seat:
        server = JupyterServer(self.relay, CLUSTER)
        self._stack.push_async_callback(asyncio.to_thread, _end, server)
        await self._within(server.start)
        answer = await self._within(
            functools.partial(server.request, "POST", "/api/kernels", {"name": "python3"})
        )
        door = Door(
            f"{server.url.replace('http', 'ws', 1)}/api/kernels/{answer.json['id']}/channels",
            {"Authorization": f"token {server.token}"},
            v1=False,
            # To a server beside it: silence is between that one and the relay.
            network=self._network,
        )
        pid = server.process.pid
        return self._run(RawSeat(door, desk.hear, ports=lambda: ports_of(pid, self.relay)))

    def _run(self, seat: RawSeat) -> RawSeat:
        self._tasks.create_task(seat.run(), name="seat")
        self._stack.push_async_callback(seat.close)
        return seat

    async def fight(
        self, row: Row, kills: int, said: Callable[[str], None]
    ) -> dict[tuple[str, str], Tally]:
        """Strike until everybody was hit so often; the tallies by client and moment."""
        for post in self.posts:
            post.tally = Tally()
        blow = row.blow()
        for number in range(_TRIES * kills):
            left = [post for post in self.posts if post.tally.hits < kills and not post.stuck]
            if not left:
                break
            said(f"{row.name}: blow {number + 1}, {len(left)} left")
            await self._strike(blow, left)
        await _all(post.finish() for post in self.posts)
        return {(post.client, post.moment_name): post.tally for post in self.posts}

    async def _strike(self, blow: Blow, posts: Sequence[Post]) -> None:
        await blow.aim(self._target, [post.desk.seat for post in posts])
        await _all(post.ready() for post in posts)
        await _all(post.begin() for post in posts)
        await asyncio.sleep(self._dice.uniform(0, self._dice.choice(posts).moment.within))
        near = {post for post in posts if blow.hits(post.desk.seat)}
        await _all(post.aim() for post in posts)
        await asyncio.sleep(self._dice.uniform(0, _MOMENT))
        struck = now()
        began = time.monotonic()
        blow.strike()
        hit = {post for post in near if post.moment.lasts}
        async with asyncio.TaskGroup() as tasks:
            over = tasks.create_task(blow.over(began), name="blow")
            back = {
                post: tasks.create_task(post.recover(struck), name=f"recover {post.desk.name}")
                for post in posts
            }
        for post in hit:
            post.note(back[post].result(), over.result())


def _end(server: JupyterServer) -> None:
    """It ends its kernel, busy as that is: no promise of ours."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.stop()


def _forget_history(folder: Path) -> None:
    """Have kernels keep no history. All have one file for it; one that waits for that in vain for
    5 s says so on stdout, in the middle of what is counted."""
    profile = folder / "profile_default"
    profile.mkdir()
    (profile / "ipython_kernel_config.py").write_text("c.HistoryManager.enabled = False\n")


async def _all(steps: Iterable[Coroutine[None, None, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number, step in enumerate(steps):
            tasks.create_task(step, name=f"step {number}")
