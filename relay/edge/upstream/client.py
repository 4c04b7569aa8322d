"""The way to the agents: the only place where the edge opens connections.

Whoever calls here names a cluster; which agent answers, over which connection, how often it was
tried and how long it was waited for is nobody else's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final, NamedTuple, Self, TypeVar

import aiohttp
import msgspec
import structlog
from aiohttp import hdrs
from yarl import URL

from relay.auth.policy import NO_CLUSTER, Rights
from relay.auth.tickets import Ticket, TicketSigner
from relay.bridge.records import Attach
from relay.config import ClusterSettings, EdgeConfig, UpstreamTls
from relay.edge.upstream.link import Link
from relay.errors import (
    AgentError,
    AgentTimeout,
    AgentUnavailable,
    BadRequest,
    Forbidden,
    NotFound,
    RelayError,
)
from relay.metrics import EdgeMetrics
from relay.model import Principal
from relay.routing.health import ClusterAgents

log = structlog.get_logger(__name__)

T = TypeVar("T")

_PAUSE: Final = 0.05
"""Seconds between two rounds of tries while a request is held."""
_RETRY_AFTER: Final = 2
_UPGRADE: Final = "relay-records"
_ANSWER_BYTES: Final = 4096
"""Of an agent's refusal that are read."""

# What may have happened at the agent when these are raised: nothing …
_UNSENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
# … and anything.
_FAILURES: Final = (aiohttp.ClientError, ConnectionError, TimeoutError)


class _Answer(msgspec.Struct):
    """The part of an agent's error that is for the client."""

    message: str = ""


class Caller(NamedTuple):
    """In whose name an agent is asked for something."""

    principal: Principal
    rights: Rights
    """What of all that the request may take is granted."""
    max_kernels: int | None = None
    """How many kernels it may have on the cluster; ``None``: as many as the cluster takes."""


class UpstreamCall(msgspec.Struct, frozen=True, kw_only=True):
    """One REST request for an agent.

    ``repeatable`` says that it may be sent again when an agent breaks off. In seconds:
    ``timeout`` for an answer, ``hold`` for an agent to come back, ``hold_once_sent`` for that
    where one broke off, having begun perhaps. An answer without a ``timeout`` may take as long as
    it likes, but is never silent for longer than ``silence``.
    """

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    bearer: Caller
    kernel_id: str | None
    request_id: str
    repeatable: bool
    timeout: float | None
    silence: float | None = None
    hold: float
    hold_once_sent: float


class _KernelAway(AgentUnavailable):
    """An agent is there, and cannot give the kernel's channels just now.

    The holder is being replaced, or something of another version is.
    """


class _Cluster:
    def __init__(self, name: str, settings: ClusterSettings) -> None:
        self.name = name
        self.agents = ClusterAgents(settings.agents)
        self.tls: ssl.SSLContext | bool = _tls(settings.tls) if settings.tls else True

    def failed(self, url: str, now: float, problem: Exception) -> None:
        """Note a failure; the log has the first of a row."""
        if not self.agents.is_down(url):
            log.warning("agent_down", cluster=self.name, agent=url, problem=str(problem))
        self.agents.failed(url, now)

    def succeeded(self, url: str, now: float) -> None:
        """Note an answer; the log has the first after a failure."""
        if self.agents.is_down(url):
            log.info("agent_up", cluster=self.name, agent=url)
        self.agents.succeeded(url, now)


class Upstream:
    """Opens connections to agents and signs a ticket for each request."""

    def __init__(
        self,
        config: EdgeConfig,
        signer: TicketSigner,
        *,
        metrics: EdgeMetrics,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = config.upstream
        self._lifetime = config.ticket_lifetime
        self._signer = signer
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._clusters = {
            name: _Cluster(name, settings) for name, settings in config.clusters.items()
        }
        self._exits = AsyncExitStack()
        self._pooled: aiohttp.ClientSession
        self._fresh: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        # A kept connection may turn out to be dead only after the request has gone out on it:
        # what must not be sent twice gets a connection of its own.
        self._pooled = await self._exits.enter_async_context(self._session(force_close=False))
        self._fresh = await self._exits.enter_async_context(self._session(force_close=True))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    def _session(self, *, force_close: bool) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=force_close),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT_ENCODING, hdrs.ACCEPT),
        )

    def require(self, cluster: str) -> None:
        """Raises `NotFound` for a cluster that is not configured."""
        if cluster not in self._clusters:
            # In the words of the policy: nobody learns which clusters exist but are not theirs.
            raise NotFound(NO_CLUSTER)

    async def call(self, cluster: str, call: UpstreamCall) -> aiohttp.ClientResponse:
        """Send a request, to several agents if need be; the caller closes the response.

        Raises `AgentUnavailable` and `AgentTimeout`.
        """
        session = self._pooled if call.repeatable else self._fresh

        async def attempt(place: _Cluster, url: str) -> aiohttp.ClientResponse:
            query = f"?{call.query}" if call.query else ""
            response = await session.request(
                call.method,
                _url(f"{url}{call.path}{query}"),
                data=call.body or None,
                headers=self._headers(cluster, call.bearer, call.kernel_id, call.request_id),
                ssl=place.tls,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=call.timeout,
                    sock_connect=self._settings.connect_timeout,
                    sock_read=call.silence,
                ),
            )
            _check_trust(response, cluster)
            return response

        return await self._try(cluster, attempt, call.hold, call.hold_once_sent, call.repeatable)

    async def open_link(
        self,
        cluster: str,
        kernel_id: str,
        attach: Attach,
        bearer: Caller,
        *,
        hold: float,
    ) -> Link:
        """Attach a client to a kernel's channels.

        Raises `NotFound`, `AgentUnavailable` and `AgentTimeout`.
        """

        async def attempt(place: _Cluster, url: str) -> Link:
            headers = self._headers(cluster, bearer, kernel_id, attach.request_id)
            response = await self._fresh.get(
                _url(f"{url}/api/kernels/{kernel_id}/channels"),
                headers={**headers, hdrs.CONNECTION: "Upgrade", hdrs.UPGRADE: _UPGRADE},
                ssl=place.tls,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    # The total would go on counting while the link is open.
                    total=None,
                    sock_connect=self._settings.connect_timeout,
                    sock_read=self._settings.request_timeout,
                ),
            )
            _check_trust(response, cluster)
            if response.status != 101:  # noqa: PLR2004 - Switching Protocols
                raise await _refusal(response)
            link = Link(response)
            try:
                async with asyncio.timeout(self._settings.request_timeout):
                    await link.attach(attach)
            except AgentUnavailable as error:
                link.close()
                raise _KernelAway(error.message, retry_after=_RETRY_AFTER) from error
            except BaseException:
                link.close()
                raise
            return link

        loop = asyncio.get_running_loop()
        deadline = loop.time() + hold
        while True:
            try:
                return await self._try(cluster, attempt, hold, hold, repeatable=True)
            except _KernelAway:
                if loop.time() >= deadline:
                    raise
            await asyncio.sleep(_PAUSE)

    async def _try(
        self,
        cluster: str,
        attempt: Callable[[_Cluster, str], Awaitable[T]],
        hold: float,
        hold_once_sent: float,
        repeatable: bool,
    ) -> T:
        with contextlib.ExitStack() as held:
            return await self._try_on(cluster, attempt, hold, hold_once_sent, repeatable, held)

    async def _try_on(
        self,
        cluster: str,
        attempt: Callable[[_Cluster, str], Awaitable[T]],
        hold: float,
        hold_once_sent: float,
        repeatable: bool,
        held: contextlib.ExitStack,
    ) -> T:
        place = self._clusters[cluster]
        loop = asyncio.get_running_loop()
        waits = False
        while True:
            late = False
            for url in place.agents.candidates(loop.time()):
                try:
                    result = await attempt(place, url)
                except _FAILURES as error:
                    place.failed(url, loop.time(), error)
                    self._metrics.agent_failures.labels(cluster).inc()
                    sent = not isinstance(error, _UNSENT)
                    if sent and not repeatable:
                        raise _as_ours(cluster, error) from error
                    late = late or (sent and isinstance(error, TimeoutError))
                    hold = max(hold, hold_once_sent) if sent else hold
                else:
                    place.succeeded(url, loop.time())
                    return result
            if late:
                raise _late(cluster)
            if loop.time() >= place.agents.hold_deadline(loop.time(), hold):
                raise _unavailable(cluster)
            if not waits:
                waits = True
                held.enter_context(self._metrics.held.labels(cluster).track_inprogress())
            await asyncio.sleep(_PAUSE)

    def _headers(
        self, cluster: str, bearer: Caller, kernel_id: str | None, request_id: str
    ) -> Mapping[str, str]:
        ticket = Ticket(
            principal=bearer.principal,
            cluster=cluster,
            kernel=kernel_id,
            rights=bearer.rights,
            max_kernels=bearer.max_kernels,
            request_id=request_id,
        )
        signed = self._signer.sign(ticket, self._wall_clock(), self._lifetime)
        return {hdrs.AUTHORIZATION: f"Bearer {signed}", hdrs.CONTENT_TYPE: "application/json"}


def _url(text: str) -> URL:
    # What was checked is what is forwarded: nothing is decoded and encoded again.
    return URL(text, encoded=True)


def _unavailable(cluster: str) -> AgentUnavailable:
    msg = f"The cluster {cluster!r} is not available just now."
    return AgentUnavailable(msg, retry_after=_RETRY_AFTER)


def _late(cluster: str) -> AgentTimeout:
    return AgentTimeout(
        f"The cluster {cluster!r} did not answer in time.", retry_after=_RETRY_AFTER
    )


def _as_ours(cluster: str, error: Exception) -> AgentError:
    return _late(cluster) if isinstance(error, TimeoutError) else _unavailable(cluster)


def _check_trust(response: aiohttp.ClientResponse, cluster: str) -> None:
    """An agent that refuses the ticket does not know our key: nothing the client could mend."""
    if response.status == 401:  # noqa: PLR2004 - Unauthorized
        log.error("ticket_refused", cluster=cluster)
        response.close()
        raise _unavailable(cluster)


async def _refusal(response: aiohttp.ClientResponse) -> RelayError:
    """What an agent answers instead of an upgrade, as an error of ours."""
    if response.status == NotFound.http_status:
        return NotFound(await _message(response) or "There is no such kernel.")
    if response.status == Forbidden.http_status:
        return Forbidden(await _message(response) or "You may not open this kernel's channels.")
    if response.status < 500:  # noqa: PLR2004 - the client's fault
        response.close()
        return BadRequest("The kernel's channels cannot be opened.")
    message = await _message(response) or "The kernel is not available just now."
    return _KernelAway(message, retry_after=_RETRY_AFTER)


async def _message(response: aiohttp.ClientResponse) -> str:
    """An agent's words for the client; "" where there are none."""
    try:
        body = await response.content.read(_ANSWER_BYTES)
        return msgspec.json.decode(body, type=_Answer).message
    except (*_FAILURES, msgspec.MsgspecError):
        return ""
    finally:
        response.close()


def _tls(settings: UpstreamTls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate and settings.key:
        context.load_cert_chain(settings.certificate, settings.key)
    return context
