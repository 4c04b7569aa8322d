"""The edge's one entry: every request of both ports, judged in one order.

Parse the target → health and probes → who is it → what is asked → may they → REST or channels.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web

from relay.auth import credentials
from relay.auth.chain import Chain
from relay.auth.policy import NO_CLUSTER, Action, Policy
from relay.edge.audit import Asked, Audit
from relay.edge.channels import Channels
from relay.edge.rest import Rest
from relay.edge.upstream import Bearer, Upstream
from relay.errors import BadRequest, MethodNotAllowed, NotFound, RelayError, Unauthorized
from relay.http import REQUEST_ID, SERVER_NAME, error_response
from relay.metrics import EdgeMetrics
from relay.model import Identity
from relay.routing.clusters import is_vscode_probe
from relay.routing.paths import Target, parse_target
from relay.routing.routes import Kind, allowed_methods, match

log = structlog.get_logger(__name__)

_VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})
_HEALTH: Final = frozenset({("healthz",), ("readyz",)})


class App:
    """Lets in, or not, and hands on. ``ready`` tells whether new clients are welcome."""

    def __init__(
        self,
        *,
        chain: Chain,
        policy: Policy,
        upstream: Upstream,
        rest: Rest,
        channels: Channels,
        metrics: EdgeMetrics,
        audit: Audit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._chain = chain
        self._policy = policy
        self._upstream = upstream
        self._rest = rest
        self._channels = channels
        self._metrics = metrics
        self._audit = audit
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
        asked = Asked(request, request_id)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                response = await self._serve(
                    request, request_id, asked, channels_only=channels_only
                )
            except RelayError as error:
                asked.reason = error.message
                level = log.warning if error.http_status >= 500 else log.info  # noqa: PLR2004
                level("refused", status=error.http_status, problem=error.message)
                response = error_response(error, request_id)
                if isinstance(error, BadRequest):
                    # What follows on this connection may be the rest of it: answer no more.
                    response.force_close()
                if isinstance(error, MethodNotAllowed):
                    segments = parse_target(request.raw_path).segments
                    response.headers[hdrs.ALLOW] = _allowed(segments[1:])
                if isinstance(error, Unauthorized):
                    self._metrics.refused_logins.inc()
            except Exception:
                # Whatever it was, the request may have had its effect.
                await self._audit.answered(asked, 500, None)
                raise
            await self._audit.answered(asked, response.status, response)
        self._metrics.answered(asked.cluster, asked.kind, response.status)
        if not response.prepared:
            response.headers[REQUEST_ID] = request_id
            response.headers[hdrs.SERVER] = SERVER_NAME
        return response

    async def _serve(
        self, request: web.BaseRequest, request_id: str, asked: Asked, *, channels_only: bool
    ) -> web.StreamResponse:
        if request.version not in _VERSIONS:
            # The parser lets 0.9, without any version, and 2.0 pass.
            msg = "Only HTTP/1.1 is spoken here."
            raise BadRequest(msg)
        target = parse_target(request.raw_path)
        if target.segments in _HEALTH:
            ready = target.segments == ("healthz",) or (self.ready and await self._audit.works())
            return web.Response(status=200 if ready else 503)
        if is_vscode_probe(target):
            return web.Response(status=404)
        identity = asked.identity = await self._who(request, target)
        cluster, *rest = target.segments
        self._upstream.require(cluster)
        asked.wanted = cluster
        if not self._policy.rights(identity, cluster):
            raise NotFound(NO_CLUSTER)
        asked.cluster = cluster
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={hdrs.ALLOW: _allowed(tuple(rest))})
        route = asked.route = match(request.method, tuple(rest))
        actions = frozenset(map(Action, route.actions))
        rights = self._policy.authorise(identity, cluster, actions)
        besides = frozenset(map(Action, route.besides))
        bearer = Bearer(identity.principal, rights.among(actions | besides | {Action.ADMIN}))
        log.info(
            "request",
            method=request.method,
            cluster=cluster,
            kind=route.kind,
            kernel_id=route.kernel_id,
            principal=str(identity.principal),
        )
        await self._audit.require(route)
        if route.kind is Kind.CHANNELS:
            session_id = target.values("session_id")
            last_seq = target.values("last_seq")
            return await self._channels.handle(
                request,
                cluster=cluster,
                kernel_id=route.kernel_id or "",
                bearer=bearer,
                session_id=session_id[0] if session_id else "",
                last_seq=last_seq[0] if last_seq else None,
                request_id=request_id,
                opened=partial(self._audit.opened, asked),
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
        credential = credentials.from_request(
            request.headers.getall(hdrs.AUTHORIZATION, []),
            target.values("token"),
            websocket=upgrade and channels,
        )
        return await self._chain.authenticate(credential, self._clock())


def _allowed(segments: tuple[str, ...]) -> str:
    """The ``Allow`` of a path below a cluster. Raises `NotFound`."""
    return ", ".join((*allowed_methods(segments), "OPTIONS"))
