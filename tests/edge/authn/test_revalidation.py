from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any, Self

import msgspec
import pytest

from relay.auth.credentials import PresentedCredentials
from relay.auth.policy import Action, Rights
from relay.edge.authn.revalidation import INTERVAL, AuthorizedStream, Reauthorizer
from relay.edge.caller import Caller
from relay.errors import AgentUnavailable, Forbidden, NotFound, RelayError, Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal
from tests.virtualtime import elapse, settle, virtual

EPOCH = 1_800_000_000.0
ADA = Identity(principal=Principal("token", "ada"), via="token", credential="id1")
ALL = Caller(ADA.principal, Rights({Action.USE: None}))
LESS = Caller(ADA.principal, Rights({Action.USE: frozenset({"ir"})}))


class World:
    """An authenticator, a policy and a clock, all of which change."""

    def __init__(self) -> None:
        self.identities: dict[PresentedCredentials, Identity | Exception] = {}
        self.asked: list[PresentedCredentials] = []
        self.granted: Caller | RelayError = ALL
        self.seconds = 0.0
        self.metrics = EdgeMetrics.local()
        self.reauthorizer = Reauthorizer(self._identify, self.metrics, self.now)

    def now(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    async def _identify(self, shown: PresentedCredentials, now: float) -> Identity:
        assert now == self.now()
        self.asked.append(shown)
        known = self.identities.get(shown, Unauthorized("nobody"))
        await elapse(self.seconds)
        if isinstance(known, Exception):
            raise known
        return known

    def authorize(self, _: Identity) -> Caller:
        if isinstance(self.granted, RelayError):
            raise self.granted
        return self.granted

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.reauthorizer.run())
            try:
                yield
            finally:
                task.cancel()


class Client:
    """One open thing, and what became of it."""

    def __init__(self, world: World, text: str = "T", **known: Any) -> None:
        self.world = world
        self.shown = PresentedCredentials(text)
        self.identity = msgspec.structs.replace(ADA, **known)
        world.identities.setdefault(self.shown, self.identity)
        self.stream = AuthorizedStream(self.identity, world.authorize, ALL, {"cluster": "alpha"})
        self.ended: list[tuple[int, float]] = []
        self.changes = 0
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self.world.reauthorizer.watch(self.shown, self.stream))
        self.stream.subscribe(self._end, self._change)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _end(self, why: RelayError) -> None:
        self.ended.append((why.close_code, self.world.now() - EPOCH))

    def _change(self) -> None:
        self.changes += 1

    def becomes(self, known: Identity | Exception) -> None:
        self.world.identities[self.shown] = known


@virtual
async def test_nobody_is_asked_about_again_without_a_reason() -> None:
    world = World()
    async with world.running():
        with Client(world) as client:
            await asyncio.sleep(10_000)
            assert client.ended == []
            assert client.changes == 0
    # Once: what changed while it was let in did not reach it.
    assert world.asked == [client.shown]


@virtual
async def test_what_is_revoked_ends_at_the_change() -> None:
    world = World()
    async with world.running():
        with Client(world) as client, Client(world, "other") as other:
            await asyncio.sleep(100)
            client.becomes(Unauthorized("nobody"))
            world.reauthorizer.reauthorize_all()
            await settle()
            assert client.ended == [(4401, 100.0)]
            await asyncio.sleep(100)
            assert other.ended == []
            assert len(client.ended) == 1
    assert world.metrics.sent_away.labels("unauthorized")._value.get() == 1


@virtual
async def test_what_expires_ends_then() -> None:
    world = World()
    async with world.running():
        with Client(world, expires=EPOCH + 60.5) as client:
            await asyncio.sleep(60.4)
            assert client.ended == []
            client.becomes(Unauthorized("nobody"))
            await asyncio.sleep(0.1 + INTERVAL)
            ((code, when),) = client.ended
            assert (code, 60.5 <= when <= 60.5 + INTERVAL) == (4401, True)
            assert client.stream.revoked is not None
            assert "expired" in client.stream.revoked.message


@virtual
async def test_who_wants_to_be_asked_again_is() -> None:
    world = World()
    async with world.running():
        with Client(world, recheck=60.0) as client:
            await asyncio.sleep(200)
            assert 4 <= len(world.asked) <= 5
            client.becomes(Unauthorized("nobody"))
            await asyncio.sleep(61 + INTERVAL)
            assert [code for code, _ in client.ended] == [4401]


@virtual
async def test_who_cannot_tell_ends_nothing_but_what_has_expired() -> None:
    world = World()
    async with world.running():
        with (
            Client(world, recheck=60.0) as client,
            Client(world, "short", recheck=60.0, expires=EPOCH + 300) as short,
        ):
            await asyncio.sleep(10)
            for each in (client, short):
                each.becomes(AgentUnavailable("the hub is away"))
            await asyncio.sleep(200)
            assert client.ended == short.ended == []
            await asyncio.sleep(200)
            assert client.ended == []
            assert [code for code, _ in short.ended] == [4401]
            client.becomes(client.identity)
            await asyncio.sleep(10)
            client.becomes(Unauthorized("nobody"))
            await asyncio.sleep(70)
            assert [code for code, _ in client.ended] == [4401]


@pytest.mark.parametrize("refused", [Forbidden("no use"), NotFound("no such cluster")])
@virtual
async def test_what_the_policy_covers_no_more(refused: RelayError) -> None:
    world = World()
    async with world.running():
        with Client(world) as client:
            await asyncio.sleep(10)
            world.granted = refused
            world.reauthorizer.reauthorize_all()
            await settle()
            assert client.ended == [(4403, 10.0)]
            # What it was that is forbidden is not said.
            assert client.stream.revoked is not None
            assert client.stream.revoked.message == "no longer allowed"


@virtual
async def test_other_rights_are_passed_on() -> None:
    world = World()
    async with world.running():
        with Client(world) as client:
            await asyncio.sleep(10)
            world.granted = LESS
            world.reauthorizer.reauthorize_all()
            await settle()
            assert client.ended == []
            assert client.changes == 1
            assert client.stream.caller == LESS
            world.reauthorizer.reauthorize_all()
            await settle()
            assert client.changes == 1


@virtual
async def test_a_credential_that_is_somebody_elses_now() -> None:
    world = World()
    async with world.running():
        with Client(world) as client:
            await asyncio.sleep(10)
            eve = Principal("token", "eve")
            client.becomes(msgspec.structs.replace(ADA, principal=eve))
            world.reauthorizer.reauthorize_all()
            await settle()
            assert [code for code, _ in client.ended] == [4401]


@virtual
async def test_all_that_one_credential_has_opened_is_asked_about_once() -> None:
    world = World()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(world)) for _ in range(50)]
        async with world.running():
            await asyncio.sleep(5)
            assert len(world.asked) == 1
            clients[0].becomes(Unauthorized("nobody"))
            world.reauthorizer.reauthorize_all()
            await settle()
            assert all(len(client.ended) == 1 for client in clients)
            assert len(world.asked) == 2


@virtual
async def test_what_changes_during_an_answer_is_seen_too() -> None:
    world = World()
    world.seconds = 3.0
    async with world.running():
        with Client(world) as client:
            await asyncio.sleep(1)
            # The answer that is on its way is good, and out of date.
            client.becomes(Unauthorized("nobody"))
            world.reauthorizer.reauthorize_all()
            await asyncio.sleep(3)
            assert client.ended == []
            await asyncio.sleep(3 + INTERVAL)
            assert [code for code, _ in client.ended] == [4401]


@virtual
async def test_a_slow_authenticator_keeps_nobody_waiting() -> None:
    world = World()
    async with world.running():
        with Client(world, "slow"):
            world.seconds = 1000.0
            await asyncio.sleep(INTERVAL)
            world.seconds = 0.0
            with Client(world) as client:
                await asyncio.sleep(INTERVAL)
                client.becomes(Unauthorized("nobody"))
                world.reauthorizer.reauthorize_all()
                await settle()
                assert len(client.ended) == 1


@virtual
async def test_what_ended_before_anybody_attended_ends_at_once() -> None:
    world = World()
    async with world.running():
        stream = AuthorizedStream(ADA, world.authorize, ALL, {})
        with world.reauthorizer.watch(PresentedCredentials("unknown"), stream):
            await asyncio.sleep(INTERVAL)
            assert stream.revoked is not None
            told: list[RelayError] = []
            stream.subscribe(told.append, lambda: None)
            assert told == [stream.revoked]


@virtual
async def test_what_is_closed_is_forgotten() -> None:
    world = World()
    with Client(world) as first:
        with Client(world):
            pass
        async with world.running():
            await asyncio.sleep(1)
            assert len(world.asked) == 1
            assert len(world.reauthorizer._credentials) == 1
    assert not world.reauthorizer._credentials
    async with world.running():
        world.reauthorizer.reauthorize_all()
        await asyncio.sleep(5)
    assert world.asked == [first.shown]
    assert first.identity.expires == math.inf
