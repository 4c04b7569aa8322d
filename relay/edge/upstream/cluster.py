"""One cluster's agents: which of them is tried next, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import aiohttp
import structlog

from relay.config import ClusterSettings, UpstreamTls
from relay.edge.upstream.call import CallTimeouts
from relay.errors import AgentError, AgentTimeout, AgentUnavailable
from relay.metrics import EdgeMetrics
from relay.routing.health import ClusterAgents
from relay.routing.table import Retry

log = structlog.get_logger(__name__)

T = TypeVar("T")

FAILURES: Final = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""What aiohttp raises when an agent cannot be reached, breaks off or is late."""
RETRY_AFTER: Final = 2
"""Seconds after which a client may try again, when a cluster is down."""
RETRY_PAUSE: Final = 0.05
"""Seconds between two rounds of attempts while a request is held."""
_UNSENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Those of `FAILURES` after which no agent has seen the request."""


class Cluster:
    """Tries a cluster's agents one after the other, and remembers which of them answer."""

    def __init__(self, name: str, settings: ClusterSettings, metrics: EdgeMetrics) -> None:
        self.name = name
        self.tls: ssl.SSLContext | bool = _tls_context(settings.tls) if settings.tls else True
        self._agents = ClusterAgents(settings.agents)
        self._metrics = metrics

    async def attempt(
        self, attempt: Callable[[str], Awaitable[T]], retry: Retry, timeouts: CallTimeouts
    ) -> T:
        """Call ``attempt`` with one agent's URL after the other until it returns.

        A request that is to be sent once is tried again only while no agent has seen it.

        Raises:
            AgentUnavailable: no agent answered in the time that ``timeouts`` gives.
            AgentTimeout: an agent took the request and did not answer in time.
        """
        loop = asyncio.get_running_loop()
        retry_for, waits = timeouts.retry_for, False
        with contextlib.ExitStack() as held:
            while True:
                late = False
                for url in self._agents.candidates(loop.time()):
                    try:
                        answer = await attempt(url)
                    except FAILURES as error:
                        self._failed(url, error)
                        if isinstance(error, _UNSENT):
                            continue
                        if retry is Retry.ONCE:
                            raise self.error(error) from error
                        late = late or isinstance(error, TimeoutError)
                        retry_for = max(retry_for, timeouts.retry_for_once_sent)
                    else:
                        self._succeeded(url)
                        return answer
                if late:
                    raise self.timeout()
                if loop.time() >= self._agents.hold_deadline(loop.time(), retry_for):
                    raise self.unavailable()
                if not waits:
                    waits = True
                    held.enter_context(
                        self._metrics.held_requests.labels(self.name).track_inprogress()
                    )
                await asyncio.sleep(RETRY_PAUSE)

    def error(self, failure: Exception) -> AgentError:
        """Return one of `FAILURES` as an error of the relay's."""
        return self.timeout() if isinstance(failure, TimeoutError) else self.unavailable()

    def unavailable(self) -> AgentUnavailable:
        """Return the error for a cluster none of whose agents answers."""
        msg = f"The cluster {self.name!r} is not available just now."
        return AgentUnavailable(msg, retry_after=RETRY_AFTER)

    def timeout(self) -> AgentTimeout:
        """Return the error for an agent that took a request and did not answer in time."""
        msg = f"The cluster {self.name!r} did not answer in time."
        return AgentTimeout(msg, retry_after=RETRY_AFTER)

    def _failed(self, url: str, problem: Exception) -> None:
        """Note a failure; the log has the first of a row."""
        if not self._agents.is_down(url):
            log.warning("agent_down", cluster=self.name, agent=url, problem=str(problem))
        self._agents.failed(url, asyncio.get_running_loop().time())
        self._metrics.agent_failures.labels(self.name).inc()

    def _succeeded(self, url: str) -> None:
        """Note an answer; the log has the first after a failure."""
        if self._agents.is_down(url):
            log.info("agent_up", cluster=self.name, agent=url)
        self._agents.succeeded(url, asyncio.get_running_loop().time())


def _tls_context(settings: UpstreamTls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate and settings.key:
        context.load_cert_chain(settings.certificate, settings.key)
    return context
