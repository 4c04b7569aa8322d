from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import assert_type

import pytest
import uvloop
from msgspec import Struct

from relay.edge.ipc.client import CallError, ParentClient, Permit, Refused
from relay.edge.ipc.protocol import (
    MESSAGE_BYTES,
    CallResult,
    MessageTooLarge,
    Notification,
    ParentMessage,
    Refusal,
    ServiceCall,
    encode,
)
from relay.edge.ipc.quotas import (
    ConnectionPermit,
    CountFailedLogin,
    CountRequest,
    WebSocketPermit,
)
from relay.edge.ipc.service import CallRequest
from tests.edge.ipc.demo import (
    ME,
    Break,
    Desk,
    Elsewhere,
    Keep,
    ListModels,
    Model,
    Parent,
    listening,
)
from tests.virtualtime import settle, virtual

MANY = ListModels(10_000, "x" * 390)
"""A list of 10,000 kernels, of some 400 bytes each."""


async def refused(asking: Awaitable[None] | Awaitable[Permit[None]]) -> str:
    """The code of the refusal."""
    with pytest.raises(Refused) as caught:
        await asking
    return caught.value.code


# --- calls ---


@virtual
async def test_an_answer_bears_data_of_its_requests_type(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        models = await client.call(ListModels(2, "a"))
        assert_type(models, list[Model])
        assert models == [Model(0, "a"), Model(1, "a")]
        permit = await client.acquire(Desk())
        assert_type(permit, Permit[str])
        assert permit.answer == "desk 1"


@virtual
async def test_many_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()

        async def granted(address: str) -> bool:
            try:
                await client.acquire(ConnectionPermit(address))
            except Refused:
                return False
            return True

        answers = await asyncio.gather(*(granted(address) for address in "aabaab"))
        assert answers == [True, True, True, False, False, False]


@virtual
async def test_refusals_say_when_to_come_back(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        for _ in range(2):
            await client.call(CountRequest("u", "alpha"))
        with pytest.raises(Refused) as caught:
            await client.call(CountRequest("u", "alpha"))
        assert caught.value.code == "quotas.user_requests"
        assert caught.value.refusal.retry_after == 1
        assert str(caught.value) == "the limit is reached (quotas.user_requests)"
        await client.call(CountFailedLogin("a"))
        assert await refused(client.call(CountFailedLogin("a"))) == "logins.failures"


@virtual
async def test_what_has_no_answer_says_why(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        for request, code in ((Elsewhere(), "unknown_service"), (Break(), "internal_error")):
            with pytest.raises(CallError) as caught:
                await client.call(request)
            assert not isinstance(caught.value, Refused)
            assert caught.value.code == code
            assert request.service in caught.value.message
        # The connection is none the worse.
        assert await client.call(ListModels(0)) == []


@virtual
async def test_an_answer_of_another_type_ends_the_connection(tmp_path: Path) -> None:
    """The parent does not speak the same protocol: nothing that it grants can be relied on."""
    async with listening(tmp_path) as parent:
        parent.take_desk = lambda _: 7  # type: ignore[method-assign,assignment,return-value]
        parent.server._services["demo"] = parent.demo()
        client = await parent.connect()
        with pytest.raises(ConnectionError, match="parent is gone"):
            await client.acquire(Desk())
        await settle()
        assert (parent.gone, parent.desks) == (1, -1)


@virtual
async def test_a_large_answer_keeps_no_small_call_waiting(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client, done = await parent.connect(), []

        async def large() -> list[Model]:
            models = await client.call(MANY)
            done.append("large")
            return models

        async def small() -> None:
            for _ in range(20):
                await client.call(ListModels(1))
                done.append("small")

        models, _ = await asyncio.gather(large(), small())
        assert models == [Model(n, MANY.text) for n in range(10_000)]
        # One after the other they pass, between its parts.
        assert done[:5] == ["small"] * 5


@virtual
async def test_a_large_request_keeps_no_small_call_waiting(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client, data = await parent.connect(), bytes(range(256)) * 2**14
        keeping = asyncio.gather(client.call(Keep(data)))
        await asyncio.sleep(0)
        await client.call(Keep(b"small"))
        await keeping
        assert parent.kept == [b"small", data]


def room(envelope: Callable[[Keep], Struct]) -> int:
    """Bytes of data in the longest message of this kind."""
    return MESSAGE_BYTES - (len(encode(envelope(Keep(bytes(2**17))))) - 2**17)


@virtual
async def test_a_request_at_the_limit_and_past_it(tmp_path: Path) -> None:
    in_call = room(lambda request: ServiceCall(1, "demo", request))
    in_notification = room(lambda request: Notification("demo", request))
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        await client.call(Keep(bytes(in_call)))
        client.notify(Keep(bytes(in_notification)))
        with pytest.raises(MessageTooLarge, match=f"of {MESSAGE_BYTES + 1} bytes"):
            await client.call(Keep(bytes(in_call + 1)))
        with pytest.raises(MessageTooLarge, match=f"of {MESSAGE_BYTES + 1} bytes"):
            client.notify(Keep(bytes(in_notification + 1)))
        await client.acquire(Desk(data=bytes(2**17)))  # a long one, behind those before
        assert [len(data) for data in parent.kept] == [in_call, in_notification]
        assert client._pending == {}


@virtual
async def test_an_answer_at_the_limit_and_past_it(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        fits = MESSAGE_BYTES - (len(encode(CallResult(1, "x" * 2**17))) - 2**17)
        permit = await client.acquire(Desk(fits))
        assert len(permit.answer) == fits
        with pytest.raises(CallError, match="answer_too_large"):
            await client.acquire(Desk(fits + 1))
        # What it would have granted is not granted.
        assert parent.desks == 1


@virtual
async def test_notifications_arrive_whole_and_in_order(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        lines = [bytes([65 + n % 26]) * (1 + 997 * n % 30_000) for n in range(200)]
        for line in lines:
            client.notify(Keep(line))
        await client.call(CountFailedLogin("a"))
        assert parent.kept == lines


@virtual
async def test_a_worker_can_wait_until_the_parent_has_done_it(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        await client.call(Keep(b"one"))
        assert parent.kept == [b"one"]
        parent.refusal = Refusal("a.setting", "no")
        with pytest.raises(Refused) as caught:
            await client.call(Keep(b"two"))
        assert caught.value.code == "a.setting"
        assert parent.kept == [b"one", b"two"]


# --- permits ---


def test_a_permit_is_given_back_once() -> None:
    released: list[str] = []
    with Permit("desk 1", lambda: released.append("desk 1")) as permit:
        assert permit.answer == "desk 1"
        permit.release()
        assert released == ["desk 1"]
    assert released == ["desk 1"]


@virtual
async def test_workers_share_what_there_is(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        one, other = await parent.connect(), await parent.connect()
        first = await one.acquire(ConnectionPermit("a"))
        await other.acquire(ConnectionPermit("a"))
        for each in (one, other):
            assert await refused(each.acquire(ConnectionPermit("a"))) == "connections.per_address"
        first.release()
        first.release()
        with await one.acquire(ConnectionPermit("a")):
            assert await refused(one.acquire(ConnectionPermit("a"))) == "connections.per_address"
        await one.acquire(ConnectionPermit("a"))


def test_on_the_workers_loop_too(tmp_path: Path) -> None:
    """Its transports are of types of their own."""

    async def run() -> None:
        async with listening(tmp_path) as parent:
            one, other = await parent.connect(), await parent.connect()
            permit = await one.acquire(ConnectionPermit("a"))
            await one.acquire(ConnectionPermit("a"))
            assert await refused(other.acquire(ConnectionPermit("a"))) == "connections.per_address"
            permit.release()
            await one.call(CountFailedLogin("x"))
            await other.acquire(ConnectionPermit("a"))
            models, _ = await asyncio.gather(one.call(MANY), one.call(ListModels(1)))
            assert len(models) == 10_000
            released = asyncio.Event()
            parent.released = released.set
            await one.acquire(Desk())
            one.close()
            await released.wait()
            await other.acquire(ConnectionPermit("a"))

    uvloop.run(run())


@virtual
async def test_what_a_worker_held_is_free_when_it_is_gone(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        one, other = await parent.connect(), await parent.connect()
        for _ in range(2):
            await one.acquire(ConnectionPermit("a"))
            await one.acquire(WebSocketPermit("u", "alpha"))
            await one.acquire(Desk())
        assert await refused(other.acquire(ConnectionPermit("a"))) == "connections.per_address"
        one._transport.abort()
        await settle()
        assert (len(parent.quotas), parent.desks) == (0, 0)
        await other.acquire(ConnectionPermit("a"))


@virtual
async def test_a_call_that_was_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(client.acquire(ConnectionPermit("a")))
            await asyncio.sleep(0)
            asking.cancel()
        # Answers come in order: when this one is here, that one was.
        await client.call(CountFailedLogin("b"))
        assert not client._pending
        assert await refused(client.call(CountFailedLogin("b"))) == "logins.failures"
        assert [await client.acquire(ConnectionPermit("a")) for _ in range(2)]


@virtual
async def test_nor_does_one_that_was_cancelled_as_its_answer_came(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(client.acquire(Desk()))
            take = client._on_answer

            def take_and_cancel(answer: ParentMessage) -> None:
                take(answer)
                asking.cancel()

            client._on_answer = take_and_cancel  # type: ignore[method-assign,assignment]
        assert asking.cancelled()
        await settle()
        assert parent.desks == 0


@virtual
async def test_nor_does_a_long_one_that_was_still_on_its_way(tmp_path: Path) -> None:
    """Its release must not overtake it."""
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        desks: list[int] = []
        parent.leave_desk = lambda _: desks.append(-1)  # type: ignore[method-assign]
        parent.server._services["demo"] = parent.demo()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(client.acquire(Desk(data=bytes(4_000_000))))
            await asyncio.sleep(0)
            assert client._writer.waiting > 0
            asking.cancel()
        while client._writer.waiting:  # noqa: ASYNC110 - the writer tells nobody
            await asyncio.sleep(0)
        await settle()
        assert (parent.desks, desks) == (1, [-1])


# --- the parent's end ---


@virtual
async def test_without_its_parent_a_worker_gets_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as parent:
        client = await parent.connect()
        async with asyncio.TaskGroup() as group:
            group.create_task(_gone(client, CountFailedLogin("a")))
            await asyncio.sleep(0)
            client._transport.abort()
        assert (client.gone, parent.gone) == (True, 1)
        await _gone(client, CountFailedLogin("b"))
        client.notify(Keep(b"lost"))
        await settle()
        assert parent.kept == []


async def _gone(client: ParentClient, request: CallRequest[None]) -> None:
    with pytest.raises(ConnectionError, match="parent is gone"):
        await client.call(request)


@virtual
async def test_who_listens_must_be_the_parent(tmp_path: Path) -> None:
    parent: Parent
    async with listening(tmp_path) as parent:
        with pytest.raises(ConnectionError, match="not the parent's"):
            await ParentClient.connect(parent.path, ME + 1, parent.on_gone)
        with pytest.raises(OSError, match="No such file"):
            await ParentClient.connect(parent.path.with_name("absent"), ME, parent.on_gone)
        await settle()
