"""Which agent is tried, how often, and what that costs the client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import aiohttp
import pytest

from relay.config import ClusterSettings
from relay.edge.upstream.call import CallTimeouts
from relay.edge.upstream.cluster import RETRY_PAUSE, Cluster
from relay.errors import AgentError, AgentTimeout, AgentUnavailable, NotFound
from relay.metrics import EdgeMetrics
from relay.routing.table import Retry
from tests.virtualtime import elapse, virtual

ONE, TWO = "http://one:1", "http://two:2"
HOLD = CallTimeouts(None, retry_for=10.0, retry_for_once_sent=10.0)


def refused() -> Exception:
    """No connection: the agent has seen nothing."""
    return aiohttp.ClientConnectorError(
        aiohttp.client_reqrep.ConnectionKey("h", 1, False, True, None, None, None), OSError("no")
    )


UNSENT = [refused, lambda: aiohttp.ConnectionTimeoutError("connecting took too long")]
SENT = [aiohttp.ServerDisconnectedError, ConnectionResetError, aiohttp.ClientPayloadError]


class Agents:
    """Two agents, each of which answers or fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: dict[str, Callable[[], Exception]] = {}
        self.metrics = EdgeMetrics.local()
        self.cluster = Cluster("alpha", ClusterSettings(agents=[ONE, TWO]), self.metrics)

    async def attempt(self, url: str) -> str:
        self.asked.append(url)
        await elapse(0.01)
        failure = self.failing.get(url)
        if failure is not None:
            raise failure()
        return url

    async def ask(self, retry: Retry = Retry.IDEMPOTENT, timeouts: CallTimeouts = HOLD) -> str:
        return await self.cluster.attempt(self.attempt, retry, timeouts)


@virtual
async def test_the_agent_that_answered_is_asked_again() -> None:
    agents = Agents()
    agents.failing[ONE] = refused
    assert await agents.ask() == TWO
    assert agents.asked == [ONE, TWO]
    agents.failing.clear()
    assert await agents.ask() == TWO
    assert agents.asked == [ONE, TWO, TWO]
    assert agents.metrics.agent_failures.labels("alpha")._value.get() == 1


@pytest.mark.parametrize("retry", Retry)
@pytest.mark.parametrize("failure", UNSENT)
@virtual
async def test_what_no_agent_has_seen_is_always_tried_again(
    retry: Retry, failure: Callable[[], Exception]
) -> None:
    agents = Agents()
    agents.failing[ONE] = failure
    assert await agents.ask(retry) == TWO


@pytest.mark.parametrize(
    ("retry", "repeated"),
    [(Retry.ONCE, False), (Retry.IDEMPOTENT, True), (Retry.START, True)],
)
@pytest.mark.parametrize("failure", SENT)
@virtual
async def test_what_an_agent_may_have_begun(
    retry: Retry, repeated: bool, failure: Callable[[], Exception]
) -> None:
    agents = Agents()
    agents.failing[ONE] = failure
    if repeated:
        assert await agents.ask(retry) == TWO
    else:
        with pytest.raises(AgentUnavailable, match="'alpha'"):
            await agents.ask(retry)
        assert agents.asked == [ONE]


@virtual
async def test_one_that_is_late_is_not_asked_for_ever() -> None:
    agents = Agents()
    agents.failing = {ONE: TimeoutError, TWO: TimeoutError}
    with pytest.raises(AgentTimeout) as caught:
        await agents.ask()
    assert agents.asked == [ONE, TWO]
    assert caught.value.retry_after == 2
    with pytest.raises(AgentTimeout):
        await agents.ask(Retry.ONCE)


@virtual
async def test_a_request_waits_for_agents_to_come_back() -> None:
    agents = Agents()
    loop = asyncio.get_running_loop()
    agents.failing = {ONE: refused, TWO: refused}
    loop.call_later(5.0, agents.failing.pop, TWO)
    assert await agents.ask() == TWO
    assert 5.0 <= loop.time() <= 5.0 + RETRY_PAUSE + 0.1


@virtual
async def test_a_request_that_waits_is_counted_while_it_does() -> None:
    agents = Agents()
    agents.failing = {ONE: refused, TWO: refused}
    held = agents.metrics.held_requests.labels("alpha")._value
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(agents.ask())
        await asyncio.sleep(1)
        assert held.get() == 1
        agents.failing.clear()
    assert held.get() == 0


@virtual
async def test_nobody_waits_longer_than_the_outage_may_last() -> None:
    agents = Agents()
    loop = asyncio.get_running_loop()
    agents.failing = {ONE: refused, TWO: refused}
    began = loop.time()
    with pytest.raises(AgentUnavailable):
        await agents.ask()
    assert 10.0 <= loop.time() - began <= 10.2
    # The outage lasts: the next one does not wait at all.
    before = loop.time()
    with pytest.raises(AgentUnavailable):
        await agents.ask()
    assert loop.time() - before < 0.1


@virtual
async def test_what_an_agent_had_in_its_hands_is_waited_for_longer() -> None:
    agents = Agents()
    loop = asyncio.get_running_loop()
    failures = itertools.chain([ConnectionResetError()], iter(refused, None))
    agents.failing = {ONE: lambda: next(failures), TWO: refused}
    began = loop.time()
    with pytest.raises(AgentUnavailable):
        await agents.ask(Retry.START, CallTimeouts(None, retry_for=1.0, retry_for_once_sent=30.0))
    assert 30.0 <= loop.time() - began <= 30.2


@virtual
async def test_other_errors_are_not_the_agents() -> None:
    agents = Agents()
    agents.failing[ONE] = lambda: NotFound("no such kernel")
    with pytest.raises(NotFound):
        await agents.ask()
    assert agents.asked == [ONE]
    assert agents.metrics.agent_failures.labels("alpha")._value.get() == 0


@pytest.mark.parametrize(
    ("failure", "error"),
    [(TimeoutError(), AgentTimeout), (ConnectionResetError(), AgentUnavailable)],
)
def test_errors_of_the_library_become_our_own(failure: Exception, error: type[AgentError]) -> None:
    assert type(Agents().cluster.error(failure)) is error
