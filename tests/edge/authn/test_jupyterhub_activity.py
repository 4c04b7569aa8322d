from __future__ import annotations

import asyncio

from relay.edge.authn.jupyterhub_activity import ActivityReport, ActivityReporter, HubServer
from tests.virtualtime import virtual

ALICE = HubServer("alice", "")
BOB = HubServer("bob", "gpu")
WALL = 1_800_000_000.0
INTERVAL = 60.0


class Socket:
    def __init__(self) -> None:
        self.last_activity = 0.0


class Hub:
    """Takes reports, and answers as it was told."""

    def __init__(self) -> None:
        self.reports: list[tuple[HubServer, float, bool]] = []
        self.answers: list[ActivityReport] = []
        self.activity = ActivityReporter(self._take, INTERVAL, lambda: WALL)

    async def _take(
        self, place: HubServer, last_activity: float, *, server: bool
    ) -> ActivityReport:
        self.reports.append((place, last_activity, server))
        return self.answers.pop(0) if self.answers else ActivityReport.TAKEN

    async def round(self) -> list[tuple[HubServer, float, bool]]:
        self.reports.clear()
        await self.activity.round()
        return list(self.reports)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_what_was_seen_is_reported_once_with_its_time() -> None:
    hub, socket = Hub(), Socket()
    with hub.activity.watch(ALICE, socket):
        socket.last_activity = now() - 20
        ((place, moment, server),) = await hub.round()
        assert (place, server) == (ALICE, True)
        assert abs(moment - (WALL - 20)) < 1
        assert await hub.round() == []
        socket.last_activity = now()
        assert len(await hub.round()) == 1


async def test_many_websockets_of_one_place_make_one_report() -> None:
    hub, sockets = Hub(), [Socket() for _ in range(3)]
    sockets[1].last_activity = now()
    with (
        hub.activity.watch(ALICE, sockets[0]),
        hub.activity.watch(ALICE, sockets[1]),
        hub.activity.watch(BOB, sockets[2]),
    ):
        sockets[2].last_activity = now()
        assert [place for place, _, _ in await hub.round()] == [ALICE, BOB]


async def test_the_last_thing_on_a_closed_websocket_is_reported_too() -> None:
    hub, socket = Hub(), Socket()
    with hub.activity.watch(ALICE, socket):
        assert len(await hub.round()) == 1
        socket.last_activity = now()
    assert len(await hub.round()) == 1
    assert await hub.round() == []


async def test_nothing_is_kept_of_those_who_left() -> None:
    hub, socket = Hub(), Socket()
    for _ in range(3):
        with hub.activity.watch(ALICE, socket):
            socket.last_activity = now()
            await hub.round()
    await hub.round()
    kept = vars(hub.activity)
    assert [kept[name] for name in ("_open", "_closed", "_reported", "_homeless")] == [
        {},
        {},
        {},
        set(),
    ]


async def test_a_round_ends_where_the_hub_does_not_answer_and_begins_anew() -> None:
    hub, one, other = Hub(), Socket(), Socket()
    one.last_activity = other.last_activity = now()
    with hub.activity.watch(ALICE, one), hub.activity.watch(BOB, other):
        hub.answers = [ActivityReport.FAILED]
        assert [place for place, _, _ in await hub.round()] == [ALICE]
        assert [place for place, _, _ in await hub.round()] == [ALICE, BOB]


async def test_whoever_has_no_such_server_is_active_all_the_same() -> None:
    hub, socket = Hub(), Socket()
    socket.last_activity = now()
    with hub.activity.watch(ALICE, socket):
        hub.answers = [ActivityReport.NOBODY]
        assert [server for _, _, server in await hub.round()] == [True, False]
        socket.last_activity = now()
        # Not even that user: nothing more is tried.
        hub.answers = [ActivityReport.NOBODY]
        assert [server for _, _, server in await hub.round()] == [False]
    await hub.round()
    with hub.activity.watch(ALICE, socket):
        # There may be one now.
        socket.last_activity = now()
        assert [server for _, _, server in await hub.round()] == [True]


@virtual
async def test_a_round_comes_after_each_interval() -> None:
    hub, socket = Hub(), Socket()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(hub.activity.run())
        with hub.activity.watch(ALICE, socket):
            await asyncio.sleep(INTERVAL - 1)
            assert len(hub.reports) == 0
            for count in range(1, 4):
                socket.last_activity = now()
                await asyncio.sleep(INTERVAL)
                assert len(hub.reports) == count
        running.cancel()
