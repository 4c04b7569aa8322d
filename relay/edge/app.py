"""The edge's one entry: every request of both ports, judged in one order.

Parse the target → health and probes → who is it → what is asked → may they → REST or channels.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web

from relay.auth import credentials
from relay.auth.chain import Chain
from relay.auth.policy import NO_CLUSTER, Action, Policy
from relay.edge.channels import Channels
from relay.edge.door import Door, agree
from relay.edge.rest import Rest
from relay.edge.upstream import Bearer, Upstream
from relay.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    RelayError,
    Unauthorized,
)
from relay.http import REQUEST_ID, SERVER_NAME, error_response
from relay.metrics import EdgeMetrics
from relay.model import Identity
from relay.routing.clusters import is_vscode_probe
from relay.routing.paths import Target, parse_target
from relay.routing.routes import Kind, allowed_methods, match

log = structlog.get_logger(__name__)

_VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})
_HEALTH: Final = frozenset({("healthz",), ("readyz",)})


class _Asked:
    """What a request turned out to ask for, as far as it came: for the metrics."""

    def __init__(self) -> None:
        self.cluster = ""
        self.kind = ""


class App:
    """Lets in, or not, and hands on. ``ready`` tells whether new clients are welcome."""

    def __init__(
        self,
        *,
        chain: Chain,
        policy: Policy,
        door: Door,
        upstream: Upstream,
        rest: Rest,
        channels: Channels,
        metrics: EdgeMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._chain = chain
        self._policy = policy
        self._door = door
        self._upstream = upstream
        self._rest = rest
        self._channels = channels
        self._metrics = metrics
        self._clock = clock
        self.ready = True

    async def handle_https(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request on the HTTPS port: REST, and channels for who knows one URL."""
        return await self._handle(request, channels_only=False)

    async def handle_wss(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request on the WSS port: channels only."""
        return await self._handle(request, channels_only=True)

    async def _handle(self, request: web.BaseRequest, *, channels_only: bool) -> web.StreamResponse:
        request_id = uuid.uuid4().hex
        asked = _Asked()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                response = await self._serve(
                    request, request_id, asked, channels_only=channels_only
                )
            except RelayError as error:
                level = log.warning if error.http_status >= 500 else log.info  # noqa: PLR2004
                address = self._door.address(request)
                level("refused", status=error.http_status, problem=error.message, address=address)
                response = error_response(error, request_id)
                if isinstance(error, BadRequest) or not request.content.is_eof():
                    # What follows on this connection may be the rest of it: answer no more.
                    response.force_close()
                if isinstance(error, MethodNotAllowed):
                    segments = parse_target(request.raw_path).segments
                    response.headers[hdrs.ALLOW] = _allowed(segments[1:])
                if isinstance(error, Unauthorized):
                    self._metrics.refused_logins.inc()
        self._metrics.answered(asked.cluster, asked.kind, response.status)
        if not response.prepared:
            response.headers[REQUEST_ID] = request_id
            response.headers[hdrs.SERVER] = SERVER_NAME
        return response

    async def _serve(
        self, request: web.BaseRequest, request_id: str, asked: _Asked, *, channels_only: bool
    ) -> web.StreamResponse:
        if request.version not in _VERSIONS:
            # The parser lets 0.9, without any version, and 2.0 pass.
            msg = "Only HTTP/1.1 is spoken here."
            raise BadRequest(msg)
        target = parse_target(request.raw_path)
        if target.segments in _HEALTH:
            ready = self.ready or target.segments == ("healthz",)
            return web.Response(status=200 if ready else 503)
        if is_vscode_probe(target):
            return web.Response(status=404)
        identity = await self._who(request, target)
        cluster, *rest = target.segments
        self._upstream.require(cluster)
        if not self._policy.rights(identity, cluster):
            raise NotFound(NO_CLUSTER)
        asked.cluster = cluster
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={hdrs.ALLOW: _allowed(tuple(rest))})
        route = match(request.method, tuple(rest))
        asked.kind = route.kind.value
        actions = frozenset(map(Action, route.actions))
        rights = self._policy.authorise(identity, cluster, actions)
        besides = frozenset(map(Action, route.besides))
        await self._door.admit(identity.principal, cluster)
        bearer = Bearer(identity.principal, rights.among(actions | besides | {Action.ADMIN}))
        log.info(
            "request",
            method=request.method,
            cluster=cluster,
            kind=route.kind,
            kernel_id=route.kernel_id,
            principal=str(identity.principal),
            address=self._door.address(request),
        )
        if route.kind is Kind.CHANNELS:
            session_id = target.values("session_id")
            last_seq = target.values("last_seq")
            with await self._door.socket(identity.principal, cluster):
                return await self._channels.handle(
                    request,
                    cluster=cluster,
                    kernel_id=route.kernel_id or "",
                    bearer=bearer,
                    session_id=session_id[0] if session_id else "",
                    last_seq=last_seq[0] if last_seq else None,
                    request_id=request_id,
                )
        if channels_only:
            msg = "This port serves kernel channels only."
            raise NotFound(msg)
        return await self._rest.handle(
            request,
            cluster=cluster,
            target=target,
            route=route,
            bearer=bearer,
            request_id=request_id,
        )

    async def _who(self, request: web.BaseRequest, target: Target) -> Identity:
        # The header alone is no WebSocket: anybody can send it along with a REST request.
        upgrade = request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        channels = target.segments[-1] == "channels"
        certified = self._door.certified(request)
        if certified is not None:
            certified = self._chain.known_as(certified)
        async with self._door.counting_failures(request):
            credential = credentials.from_request(
                request.headers.getall(hdrs.AUTHORIZATION, []),
                target.values("token"),
                websocket=upgrade and channels,
            )
            if credential is not None:
                identity = await self._chain.authenticate(credential, self._clock())
                return agree(certified, identity)
        return certified or await self._chain.authenticate(None, self._clock())


def _allowed(segments: tuple[str, ...]) -> str:
    """The ``Allow`` of a path below a cluster. Raises `NotFound`."""
    return ", ".join((*allowed_methods(segments), "OPTIONS"))
