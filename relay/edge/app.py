"""The edge's one entry: every request of both ports, judged in one order.

Check head and target → which page asks → health and probes → who is it → what is asked → may they
→ REST or channels.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import hdrs, web

from relay.auth import credentials
from relay.auth.chain import Chain
from relay.auth.origin import Origins, Page
from relay.auth.policy import NO_CLUSTER, Action, Policy
from relay.edge.channels import Channels
from relay.edge.rest import Rest
from relay.edge.upstream import Bearer, Upstream
from relay.errors import (
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    NotReady,
    RelayError,
    Unauthorized,
)
from relay.http import ANSWER_HEADERS, REQUEST_ID, error_response
from relay.metrics import EdgeMetrics
from relay.model import Identity
from relay.routing.clusters import is_vscode_probe
from relay.routing.heads import check_head
from relay.routing.paths import Target, parse_target
from relay.routing.routes import Kind, allowed_methods, match

log = structlog.get_logger(__name__)

_HEALTH: Final = frozenset({("healthz",), ("readyz",)})
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing, so that a page learns and does nothing by them."""
_PREFLIGHT: Final = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, HEAD, POST, PUT, PATCH, DELETE",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type",
    hdrs.ACCESS_CONTROL_MAX_AGE: "600",
}
_EXPOSED: Final = f"{hdrs.LOCATION}, {hdrs.RETRY_AFTER}, {REQUEST_ID}"


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
        upstream: Upstream,
        rest: Rest,
        channels: Channels,
        metrics: EdgeMetrics,
        origins: Origins | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._chain = chain
        self._policy = policy
        self._upstream = upstream
        self._rest = rest
        self._channels = channels
        self._metrics = metrics
        self._origins = origins or Origins()
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
        self._metrics.answered(asked.cluster, asked.kind, response.status)
        if not response.prepared:
            response.headers[REQUEST_ID] = request_id
        return response

    async def _serve(
        self, request: web.BaseRequest, request_id: str, asked: _Asked, *, channels_only: bool
    ) -> web.StreamResponse:
        host = check_head(request.version, request.raw_headers)
        target = parse_target(request.raw_path)
        page = self._judge_page(request, host)
        if page is Page.LISTED and _is_preflight(request):
            # It shows no credential, whoever asks, so it is told nothing that hangs on one.
            return web.Response(status=204, headers=_PREFLIGHT)
        if target.segments in _HEALTH:
            if not self.ready and target.segments != ("healthz",):
                msg = "This edge takes no new clients."
                raise NotReady(msg)
            return web.Response(status=200)
        if is_vscode_probe(target):
            msg = "no such resource"
            raise NotFound(msg)
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
        bearer = Bearer(identity.principal, rights.among(actions | besides | {Action.ADMIN}))
        log.info(
            "request",
            method=request.method,
            cluster=cluster,
            kind=route.kind,
            kernel_id=route.kernel_id,
            principal=str(identity.principal),
        )
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

    def _judge_page(self, request: web.BaseRequest, host: str) -> Page:
        """Raises `Forbidden` for a page that may not do such a thing, whoever its user is.

        Where a browser shows a certificate by itself, the page it does so for has asked nobody.
        """
        origins = request.headers.getall(hdrs.ORIGIN, [])
        page = self._origins.judge(origins, host)
        # What an answer's headers are hangs on the origin, as caches must know.
        headers: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN} if self._origins.listed else {}
        if page is Page.LISTED:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origins[0]
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        request[ANSWER_HEADERS] = headers
        changes = request.method not in _READING or hdrs.UPGRADE in request.headers
        if page is Page.FOREIGN and changes:
            log.info("page_refused", origin=origins[0])
            msg = "Pages of this origin may not use the relay (origins)."
            raise Forbidden(msg)
        return page

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


def _is_preflight(request: web.BaseRequest) -> bool:
    """Whether a browser asks if it may send a page's request (Fetch standard, CORS-preflight)."""
    return request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


def _allowed(segments: tuple[str, ...]) -> str:
    """The ``Allow`` of a path below a cluster. Raises `NotFound`."""
    return ", ".join((*allowed_methods(segments), "OPTIONS"))
