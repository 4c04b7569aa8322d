"""The way to the agents: the only place where the edge opens connections to them.

A caller names a cluster; which agent answers, over which connection and after how many attempts is
decided here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Final, Self

import aiohttp
import msgspec
import structlog
from aiohttp import hdrs
from yarl import URL

from relay.auth.policy import NO_CLUSTER
from relay.auth.tickets import Ticket, TicketSigner
from relay.bridge.control import Attach
from relay.config import EdgeConfig
from relay.edge.caller import Caller
from relay.edge.upstream.call import CallTimeouts, UpstreamCall
from relay.edge.upstream.cluster import FAILURES, RETRY_AFTER, RETRY_PAUSE, Cluster
from relay.edge.upstream.link import Link
from relay.edge.upstream.response import UpstreamResponse
from relay.errors import AgentUnavailable, BadRequest, Forbidden, NotFound, RelayError
from relay.metrics import EdgeMetrics
from relay.routing.table import Retry

log = structlog.get_logger(__name__)

_UPGRADE: Final = "relay-records"
_ERROR_BYTES: Final = 4096
"""Bytes of an agent's error that are read."""


class _ErrorBody(msgspec.Struct):
    """The part of an agent's error that is for the client."""

    message: str = ""


class _HolderAway(AgentUnavailable):
    """An agent answers, and cannot give the kernel's channels just now.

    The holder is being replaced, or something of another version is.
    """


class UpstreamClient:
    """Sends requests to clusters' agents, each with a ticket."""

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
        self._wall_clock = wall_clock
        self._clusters = {
            name: Cluster(name, settings, metrics) for name, settings in config.clusters.items()
        }
        self._exits = AsyncExitStack()
        self._pooled: aiohttp.ClientSession
        self._fresh: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        # A kept connection may turn out to be dead only after the request has gone out on it:
        # what must not be sent twice gets a connection of its own.
        self._pooled = await self._exits.enter_async_context(_session(force_close=False))
        self._fresh = await self._exits.enter_async_context(_session(force_close=True))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    def require(self, cluster: str) -> None:
        """Raise `NotFound` for a cluster that is not configured."""
        if cluster not in self._clusters:
            # In the words of the policy, so that callers cannot tell which clusters exist.
            raise NotFound(NO_CLUSTER)

    async def call(self, name: str, call: UpstreamCall) -> UpstreamResponse:
        """Send a request to a cluster, to several of its agents if need be.

        Raises:
            AgentUnavailable: no agent answered, or one broke off with a request that is sent once.
            AgentTimeout: an agent took the request and did not answer in time.
        """
        cluster = self._clusters[name]
        session = self._fresh if call.retry is Retry.ONCE else self._pooled
        query = f"?{call.query}" if call.query else ""

        async def attempt(agent: str) -> UpstreamResponse:
            response = await session.request(
                call.method,
                _url(f"{agent}{call.path}{query}"),
                data=call.body or None,
                headers=self._headers(name, call.caller, call.kernel_id, call.request_id),
                ssl=cluster.tls,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=call.timeouts.total,
                    sock_connect=self._settings.connect_timeout,
                    sock_read=call.timeouts.read,
                ),
            )
            _check_trust(response, cluster)
            return UpstreamResponse(name, response)

        return await cluster.attempt(attempt, call.retry, call.timeouts)

    async def open_link(
        self, name: str, kernel_id: str, attach: Attach, caller: Caller, *, retry_for: float
    ) -> Link:
        """Attach a client to a kernel's channels; try for ``retry_for`` seconds.

        Raises:
            NotFound: the caller may not know of the kernel, or there is none.
            Forbidden: the caller may not open its channels.
            BadRequest: an agent refused the request for another reason.
            AgentUnavailable: no agent answered, or the kernel's holder did not.
            AgentTimeout: an agent took the request and did not answer in time.
        """
        cluster = self._clusters[name]
        timeouts = CallTimeouts(None, retry_for=retry_for, retry_for_once_sent=retry_for)

        async def attempt(agent: str) -> Link:
            return await self._attach(cluster, agent, kernel_id, attach, caller)

        loop = asyncio.get_running_loop()
        deadline = loop.time() + retry_for
        while True:
            try:
                return await cluster.attempt(attempt, Retry.IDEMPOTENT, timeouts)
            except _HolderAway:
                if loop.time() >= deadline:
                    raise
            await asyncio.sleep(RETRY_PAUSE)

    async def _attach(
        self, cluster: Cluster, agent: str, kernel_id: str, attach: Attach, caller: Caller
    ) -> Link:
        headers = self._headers(cluster.name, caller, kernel_id, attach.request_id)
        response = await self._fresh.get(
            _url(f"{agent}/api/kernels/{kernel_id}/channels"),
            headers={**headers, hdrs.CONNECTION: "Upgrade", hdrs.UPGRADE: _UPGRADE},
            ssl=cluster.tls,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                # The total would go on counting while the link is open.
                total=None,
                sock_connect=self._settings.connect_timeout,
                sock_read=self._settings.request_timeout,
            ),
        )
        _check_trust(response, cluster)
        if response.status != HTTPStatus.SWITCHING_PROTOCOLS:
            raise await _refusal(response)
        link = Link(response)
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                await link.attach(attach)
        except AgentUnavailable as error:
            link.close()
            raise _HolderAway(error.message, retry_after=RETRY_AFTER) from error
        except BaseException:
            link.close()
            raise
        return link

    def _headers(
        self, cluster: str, caller: Caller, kernel_id: str | None, request_id: str
    ) -> Mapping[str, str]:
        ticket = Ticket(
            principal=caller.principal,
            cluster=cluster,
            kernel=kernel_id,
            rights=caller.rights,
            max_kernels=caller.max_kernels,
            request_id=request_id,
        )
        signed = self._signer.sign(ticket, self._wall_clock(), self._lifetime)
        return {hdrs.AUTHORIZATION: f"Bearer {signed}", hdrs.CONTENT_TYPE: "application/json"}


def _session(*, force_close: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=force_close),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT_ENCODING, hdrs.ACCEPT),
    )


def _url(text: str) -> URL:
    # What was checked is what is forwarded: nothing is decoded and encoded again.
    return URL(text, encoded=True)


def _check_trust(response: aiohttp.ClientResponse, cluster: Cluster) -> None:
    """Raise `AgentUnavailable` where an agent refused the ticket: it does not know our key."""
    if response.status == HTTPStatus.UNAUTHORIZED:
        log.error("ticket_refused", cluster=cluster.name)
        response.close()
        # No fault of the client's.
        raise cluster.unavailable()


async def _refusal(response: aiohttp.ClientResponse) -> RelayError:
    """Return an agent's answer that is no upgrade as an error of the relay's."""
    if response.status == HTTPStatus.NOT_FOUND:
        return NotFound(await _message(response) or "There is no such kernel.")
    if response.status == HTTPStatus.FORBIDDEN:
        return Forbidden(await _message(response) or "You may not open this kernel's channels.")
    if response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        response.close()
        return BadRequest("The kernel's channels cannot be opened.")
    message = await _message(response) or "The kernel is not available just now."
    return _HolderAway(message, retry_after=RETRY_AFTER)


async def _message(response: aiohttp.ClientResponse) -> str:
    """Return an agent's message for the client; "" where there is none."""
    try:
        body = await response.content.read(_ERROR_BYTES)
        return msgspec.json.decode(body, type=_ErrorBody).message
    except (*FAILURES, msgspec.MsgspecError):
        return ""
    finally:
        response.close()
