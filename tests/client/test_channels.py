from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.client import Settings, Stream
from relay.client.errors import ConnectionLost, GaveUp, KernelGone, Replaced
from relay.errors import AgentUnavailable, ClientError, Forbidden, NotFound, Unauthorized
from tests.client.fakeclient import Way, connected
from tests.client.fakekernel import EPOCH, FakeKernel, lines
from tests.virtualtime import settle, virtual


@virtual
async def test_a_cell_runs_and_its_outputs_come() -> None:
    kernel = FakeKernel()
    way = Way(kernel)
    async with connected(way) as client:
        execution = client.execute("print 3")
        outputs = [each async for each in execution]
    assert outputs == [Stream("stdout", text) for text in lines(3)]
    assert execution.reply == {"status": "ok"}
    assert way.dialled == [""]
    assert client.connections == 1
    assert way.sockets[0].closed


MESSAGES = 8
"""Of ``print 5``: busy, five lines, the reply, idle."""


@pytest.mark.parametrize("receives", range(MESSAGES + 1))
@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("sends", [0, 1])
def test_wherever_it_breaks_nothing_is_lost_or_repeated(
    receives: int, arrives: bool, sends: int
) -> None:
    @virtual
    async def test() -> None:
        kernel = FakeKernel()
        way = Way(kernel, [{"receives": receives, "sends": sends, "arrives": arrives}])
        async with connected(way) as client:
            result = await client.run("print 5")
            again = await client.run("print 1")
        assert result.stdout == "".join(lines(5))
        assert again.stdout == "0\n"
        assert (result.ok, again.ok) == (True, True)
        assert kernel.ran == ["print 5", "print 1"]
        assert client.repeated == 0

    test()


FAULTS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "receives": st.integers(0, 20) | st.none(),
                "sends": st.integers(0, 4) | st.none(),
                "arrives": st.booleans(),
                "stale": st.integers(0, 4),
            }
        ),
        st.just(AgentUnavailable("away", retry_after=2)),
    ),
    max_size=12,
)


@settings(max_examples=150)
@given(FAULTS, st.integers(1, 200))
def test_any_number_of_failures_leaves_no_trace(faults: list[Any], queue_bytes: int) -> None:
    @virtual
    async def test() -> None:
        kernel = FakeKernel()
        way = Way(kernel, faults)
        async with connected(way, settings=Settings(queue_bytes=queue_bytes)) as client:
            cells = [client.execute(code) for code in ("print 5", "ask", "print 7", "fail")]
            cells[1]._on_input = answer
            results = [await each.result() for each in cells]
        assert results[0].stdout == "".join(lines(5))
        assert results[1].stdout == "Ada"
        assert results[2].stdout == "".join(lines(7))
        assert results[3].error is not None
        assert kernel.ran == ["print 5", "ask", "print 7", "fail"]
        assert kernel.answers == ["Ada"]

    async def answer(_: object) -> str:
        return "Ada"

    test()


@virtual
async def test_what_comes_twice_is_dropped_and_counted() -> None:
    way = Way(FakeKernel(), [{"receives": 4}, {"stale": 2}])
    async with connected(way) as client:
        result = await client.run("print 5")
    assert result.stdout == "".join(lines(5))
    assert client.repeated == 2


@virtual
async def test_it_comes_back_to_where_it_stood() -> None:
    way = Way(FakeKernel(), [{"receives": 3}])
    async with connected(way, last_seq=f"{EPOCH}-0") as client:
        await client.run("print 5")
    assert way.dialled == [f"{EPOCH}-0", f"{EPOCH}-3"]


@virtual
async def test_requests_wait_for_a_relay_that_is_away() -> None:
    kernel = FakeKernel()
    way = Way(kernel, [AgentUnavailable("away")] * 20)
    loop = asyncio.get_running_loop()
    async with connected(way) as client:
        result = await client.run("print 1")
        assert result.ok
        assert 30 < loop.time() < 60
    assert kernel.ran == ["print 1"]


@virtual
async def test_a_relay_that_stays_away_is_given_up() -> None:
    way = Way(FakeKernel(), [AgentUnavailable("away")] * 1000)
    loop = asyncio.get_running_loop()
    async with connected(way, settings=Settings(give_up_after=90.0)) as client:
        with pytest.raises(GaveUp, match="90 s"):
            await client.run("print 1")
        assert loop.time() == pytest.approx(90.0)
        with pytest.raises(GaveUp):
            client.execute("print 1")


@virtual
async def test_outages_that_are_far_apart_are_not_added_up() -> None:
    kernel = FakeKernel()
    way = Way(kernel, [AgentUnavailable("away"), {}])
    async with connected(way, settings=Settings(give_up_after=10.0)) as client:
        client.messages_kept = client.messages()  # type: ignore[attr-defined]
        await asyncio.sleep(1000.0)
        way.sockets[0]._broken.set()
        kernel.changed.set()
        assert (await client.run("print 1")).ok
        assert client.connections == 2


@virtual
async def test_a_kernel_that_takes_and_drops_connections_is_given_up() -> None:
    way = Way(FakeKernel(), [{"receives": 0}] * 1000)
    async with connected(way, settings=Settings(give_up_after=60.0)) as client:
        with pytest.raises(GaveUp):
            await client.run("hold")


@pytest.mark.parametrize(
    "refusal", [Unauthorized("no"), Forbidden("no"), Replaced("other"), NotFound("no")]
)
def test_a_refusal_is_final(refusal: Any) -> None:
    @virtual
    async def test() -> None:
        way = Way(FakeKernel(), [refusal])
        async with connected(way) as client:
            with pytest.raises(type(refusal)):
                await client.run("print 1")
            with pytest.raises(type(refusal)):
                client.execute("print 1")
            with pytest.raises(type(refusal)):
                client.messages()
        assert len(way.dialled) == 1

    test()


@virtual
async def test_a_kernel_that_goes_away_is_told_after_its_last_output() -> None:
    kernel = FakeKernel()
    way = Way(kernel, [{}, NotFound("no such kernel")])
    async with connected(way) as client:
        execution = client.execute("hold")
        await settle()
        kernel.publish("stream", {"name": "stdout", "text": "last"}, kernel.running)
        await settle()
        way.sockets[0]._broken.set()
        assert await anext(execution) == Stream("stdout", "last")
        with pytest.raises(KernelGone):
            await anext(execution)


@virtual
async def test_being_sent_away_for_good_is_told() -> None:
    way = Way(FakeKernel(), [{"receives": 3, "end": Replaced("other")}])
    async with connected(way) as client:
        execution = client.execute("print 5")
        with pytest.raises(Replaced):
            await execution.result()
    assert len(way.dialled) == 1


@virtual
async def test_nothing_is_opened_before_it_is_used() -> None:
    way = Way(FakeKernel())
    async with connected(way):
        await asyncio.sleep(100.0)
    assert way.dialled == []


@virtual
async def test_a_slow_script_is_not_run_over() -> None:
    kernel = FakeKernel()
    way = Way(kernel)
    async with connected(way, settings=Settings(queue_bytes=3000)) as client:
        execution = client.execute("print 1000")
        other = client.execute("print 2")
        await asyncio.sleep(1.0)
        tracker = client._session.tracker
        assert 3000 < tracker.held_bytes < 4000
        assert way.sockets[0]._number < 30  # the rest waits where it is kept
        assert len(kernel.journal) > 1000
        result = await execution.result()
        assert result.stdout == "".join(lines(1000))
        assert (await other.result()).stdout == "0\n1\n"
        assert tracker.held_bytes == 0
    assert client.connections == 1


@virtual
async def test_a_script_that_leaves_its_loop_blocks_nothing() -> None:
    async with connected(Way(FakeKernel()), settings=Settings(queue_bytes=1000)) as client:
        async for output in client.execute("print 1000"):
            assert output == Stream("stdout", "0\n")
            break
        client.execute("print 1000")
        assert (await client.run("print 1")).stdout == "0\n"
        assert client._session.tracker.held_bytes == 0


@virtual
async def test_a_slow_script_outlives_its_connection() -> None:
    way = Way(FakeKernel(), [{"receives": 20}])
    async with connected(way, settings=Settings(queue_bytes=1000)) as client:
        texts = []
        async for output in client.execute("print 100"):
            assert isinstance(output, Stream)
            texts.append(output.text)
            await asyncio.sleep(60.0)
    assert texts == lines(100)
    assert client.connections == 2


@virtual
async def test_closing_ends_whoever_waits() -> None:
    way = Way(FakeKernel())
    async with connected(way) as client:
        execution = client.execute("hold")
        await settle()
        socket = way.sockets[0]
        await client.close()
        with pytest.raises(ClientError, match="closed"):
            await execution.result()
    assert socket.closed


def test_a_lost_connection_is_one_of_those_that_may_come_back() -> None:
    assert issubclass(ConnectionLost, AgentUnavailable)
