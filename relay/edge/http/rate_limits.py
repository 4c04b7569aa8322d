"""Limits on how often: requests, WebSockets and failed logins, counted over all workers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import NoReturn

import structlog

from relay import limits
from relay.edge.council import Council, Lease, Refused
from relay.edge.listener import proxy_headers
from relay.edge.quotas import FailedLogin, Refusal, Request, Socket
from relay.errors import RateLimited, TooMany, Unauthorized
from relay.model import Principal

log = structlog.get_logger(__name__)


class RateLimits:
    """Has the parent count, and turns its refusals into errors for the client."""

    def __init__(self, council: Council) -> None:
        self._council = council

    @contextlib.asynccontextmanager
    async def counting_failed_logins(self, address: str) -> AsyncIterator[None]:
        """Count an `Unauthorized` that the block raises for ``address``.

        A right credential is never refused: it has been checked by then.

        Raises:
            RateLimited: in place of `Unauthorized`, after too many.
        """
        try:
            yield
        except Unauthorized:
            try:
                await self._council.count(FailedLogin(proxy_headers.counted(address)))
            except Refused as refused:
                _too_often(refused.refusal, "Too many wrong credentials from this address")
            raise

    async def count_request(self, principal: Principal, cluster: str) -> None:
        """Count a request. Raises `RateLimited`."""
        try:
            await self._council.count(Request(str(principal), cluster))
        except Refused as refused:
            _too_often(refused.refusal, "Too many requests")

    async def open_socket(self, principal: Principal, cluster: str) -> Lease:
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
