"""Limits on how often: requests, WebSockets and failed logins, counted over all workers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import NoReturn

import structlog

from relay import limits
from relay.edge.ipc.client import ParentClient, Permit, Refused
from relay.edge.ipc.protocol import Refusal
from relay.edge.ipc.quotas import CountFailedLogin, CountRequest, WebSocketPermit
from relay.edge.listener import proxy_headers
from relay.errors import RateLimited, TooMany, Unauthorized
from relay.model import Principal

log = structlog.get_logger(__name__)


class RateLimits:
    """Has the parent count, and turns its refusals into errors for the client."""

    def __init__(self, parent: ParentClient) -> None:
        self._parent = parent

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
                await self._parent.call(CountFailedLogin(proxy_headers.counted(address)))
            except Refused as refused:
                _too_often(refused.refusal, "Too many wrong credentials from this address")
            raise

    async def count_request(self, principal: Principal, cluster: str) -> None:
        """Count a request. Raises `RateLimited`."""
        try:
            await self._parent.call(CountRequest(str(principal), cluster))
        except Refused as refused:
            _too_often(refused.refusal, "Too many requests")

    async def open_socket(self, principal: Principal, cluster: str) -> Permit[None]:
        """Count a WebSocket, until its permit is released. Raises `TooMany`."""
        try:
            return await self._parent.acquire(WebSocketPermit(str(principal), cluster))
        except Refused as refused:
            setting = refused.code
            limits.record(setting)
            log.info("websocket_limit_reached", setting=setting)
            raise TooMany(f"Too many open WebSockets ({setting}).") from None


def _too_often(refusal: Refusal, text: str) -> NoReturn:
    limits.record(refusal.code)
    log.info("rate_limit_reached", setting=refusal.code)
    raise RateLimited(f"{text} ({refusal.code}).", retry_after=refusal.retry_after) from None
