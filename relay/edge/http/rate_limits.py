"""What the edge's judgement of each request takes from the door: who comes, and how often.

The acceptor knows connections, this knows requests: whose they are, whether a wrong credential may
still be answered as one, and what a principal has left of its quotas.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import NoReturn

import structlog
from aiohttp import web

from relay import limits
from relay.config import ProxySettings
from relay.edge.council import Council, Lease, Refused
from relay.edge.listener import proxy_headers
from relay.edge.listener.acceptor import visitor_of
from relay.edge.listener.proxy_headers import Networks
from relay.edge.quotas import FailedLogin, Refusal, Request, Socket
from relay.errors import RateLimited, TooMany, Unauthorized
from relay.model import Identity, Principal

log = structlog.get_logger(__name__)


class AdmissionControl:
    """Asks the council, and says what it says as a client is to hear it."""

    def __init__(
        self,
        council: Council,
        settings: ProxySettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._council = council
        self._header = settings.header
        self._trusted = Networks(settings.forwarded)
        self._clock = clock

    def address(self, request: web.BaseRequest) -> str:
        """Where a request comes from."""
        peer = visitor_of(request).address
        values = request.headers.getall(self._header, [])
        return proxy_headers.client_of(peer, self._header, values, self._trusted)

    def certified(self, request: web.BaseRequest) -> Identity | None:
        """Who the connection's certificate says it is, if it has one.

        Raises `Unauthorized` for one that says nobody, or that has expired since.
        """
        visitor = visitor_of(request)
        if not visitor.certificate_required:
            return None
        if visitor.identity is None:
            raise Unauthorized("the certificate is nobody's")
        if visitor.identity.expires <= self._clock():
            raise Unauthorized("the certificate has expired")
        return visitor.identity

    @contextlib.asynccontextmanager
    async def counting_failures(self, request: web.BaseRequest) -> AsyncIterator[None]:
        """Note what is `Unauthorized` in here; after too many, raise `RateLimited` in its place.

        Nobody is kept from showing a right credential: it has been looked at already.
        """
        try:
            yield
        except Unauthorized:
            address = proxy_headers.counted(self.address(request))
            try:
                await self._council.count(FailedLogin(address))
            except Refused as refused:
                _too_often(refused.refusal, "Too many wrong credentials from this address")
            raise

    async def admit(self, principal: Principal, cluster: str) -> None:
        """Count a request. Raises `RateLimited`."""
        try:
            await self._council.count(Request(str(principal), cluster))
        except Refused as refused:
            _too_often(refused.refusal, "Too many requests")

    async def socket(self, principal: Principal, cluster: str) -> Lease:
        """Count a WebSocket, until its lease is freed. Raises `TooMany`."""
        try:
            return await self._council.hold(Socket(str(principal), cluster))
        except Refused as refused:
            setting = refused.refusal.setting
            limits.record(setting)
            log.info("too_many_sockets", setting=setting)
            raise TooMany(f"Too many open WebSockets ({setting}).") from None


def _too_often(refusal: Refusal, text: str) -> NoReturn:
    limits.record(refusal.setting)
    log.info("too_often", setting=refusal.setting)
    raise RateLimited(f"{text} ({refusal.setting}).", retry_after=refusal.retry_after) from None
