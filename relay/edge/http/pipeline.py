"""The edge's one entry: every request of both ports, judged in one order.

Check head and target → which page asks → health and probes → who is it → how often → what is asked
→ may they → REST or channels.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import structlog
from aiohttp import hdrs, web

from relay.auth import credentials
from relay.auth.chain import WHO
from relay.auth.credentials import PresentedCredentials
from relay.auth.origin import Origins
from relay.auth.policy import NO_CLUSTER, Action, Policy
from relay.auth.tokens import is_path_token
from relay.config import EdgeConfig
from relay.edge.authn.authenticators import Authenticators
from relay.edge.authn.revalidation import AuthorizedStream, Reauthorizer
from relay.edge.http.audit import AuditedRequest, AuditTrail
from relay.edge.http.channels import ChannelsHandler
from relay.edge.http.cors import CorsPolicy
from relay.edge.http.forward import Forwarder
from relay.edge.http.rate_limits import AdmissionControl
from relay.edge.upstream.client import Caller, Upstream
from relay.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    NotReady,
    RelayError,
    Unauthorized,
)
from relay.http import REQUEST_ID, error_response
from relay.metrics import EdgeMetrics
from relay.model import Identity
from relay.routing.clusters import is_vscode_probe
from relay.routing.heads import check_head
from relay.routing.paths import Target, parse_target
from relay.routing.routes import Kind, Route, allowed_methods, match

log = structlog.get_logger(__name__)

_HEALTH: Final = frozenset({("healthz",), ("readyz",)})
_PATH_TOKEN: Final = "t"  # noqa: S105 - what stands before one


class Dependencies(NamedTuple):
    """What a request meets on its way."""

    door: AdmissionControl
    authentication: Authenticators
    standing: Reauthorizer
    audit: AuditTrail
    upstream: Upstream
    rest: Forwarder
    channels: ChannelsHandler
    metrics: EdgeMetrics


class Pipeline:
    """Lets in, or not, and hands on. ``ready`` tells whether new clients are welcome."""

    def __init__(
        self, config: EdgeConfig, parts: Dependencies, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._base = tuple(config.base_url.split("/")[1:])
        self._policy = config.policy.policy()
        self._door = parts.door
        self._authentication = parts.authentication
        self._standing = parts.standing
        self._audit = parts.audit
        self._upstream = parts.upstream
        self._rest = parts.rest
        self._channels = parts.channels
        self._metrics = parts.metrics
        self._pages = CorsPolicy(Origins(config.origins))
        self._clock = clock
        self.ready = True

    def change_policy(self, policy: Policy) -> None:
        """Judge by this one from now on, what is open too."""
        self._policy = policy
        self._standing.judge_all()

    async def handle_https(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request on the HTTPS port: REST, and channels for who knows one URL."""
        return await self._handle(request, channels_only=False)

    async def handle_wss(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request on the WSS port: channels only."""
        return await self._handle(request, channels_only=True)

    async def _handle(self, request: web.BaseRequest, *, channels_only: bool) -> web.StreamResponse:
        request_id = uuid.uuid4().hex
        asked = AuditedRequest(request, request_id, self._door.address(request))
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                response = await self._serve(
                    request, request_id, asked, channels_only=channels_only
                )
            except RelayError as error:
                asked.reason = error.message
                level = log.warning if error.http_status >= 500 else log.info  # noqa: PLR2004
                level(
                    "refused",
                    status=error.http_status,
                    problem=error.message,
                    address=asked.address,
                )
                response = error_response(error, request_id)
                if isinstance(error, BadRequest) or not request.content.is_eof():
                    # What follows on this connection may be the rest of it: answer no more.
                    response.force_close()
                if isinstance(error, MethodNotAllowed):
                    response.headers[hdrs.ALLOW] = _allowed(asked.path)
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
        return response

    async def _serve(
        self,
        request: web.BaseRequest,
        request_id: str,
        asked: AuditedRequest,
        *,
        channels_only: bool,
    ) -> web.StreamResponse:
        host = check_head(request.version, request.raw_headers)
        target = parse_target(request.raw_path)
        if (told := self._pages.judge(request, host)) is not None:
            return told
        if target.segments in _HEALTH:
            if target.segments != ("healthz",) and not (self.ready and await self._audit.works()):
                raise NotReady("This edge takes no new clients.")
            return web.Response(status=200)
        async with self._door.counting_failures(request):
            prefix, path_token, target = self._split(target)
        if is_vscode_probe(target):
            raise NotFound("no such resource")
        shown, identity = await self._who(request, target, path_token)
        asked.identity = identity
        cluster, *rest = target.segments
        self._upstream.require(cluster)
        asked.wanted = cluster
        if not self._policy.rights(identity, cluster):
            raise NotFound(NO_CLUSTER)
        asked.cluster, asked.path = cluster, tuple(rest)
        await self._door.admit(identity.principal, cluster)
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={hdrs.ALLOW: _allowed(tuple(rest))})
        route = asked.route = match(request.method, tuple(rest))
        bearer = self._bearer(identity, cluster, route)
        about = {
            "cluster": cluster,
            "kind": route.kind.value,
            "kernel_id": route.kernel_id,
            "principal": str(identity.principal),
        }
        log.info("request", method=request.method, address=asked.address, **about)
        if channels_only and route.kind is not Kind.CHANNELS:
            msg = "This port serves kernel channels only."
            raise NotFound(msg)
        await self._audit.require(route)
        about |= {"request_id": request_id, "token_id": identity.credential}
        judge = partial(self._bearer, cluster=cluster, route=route)
        visit = self._standing.visit(shown, AuthorizedStream(identity, judge, bearer, about))
        if route.kind is Kind.CHANNELS:
            session_id = target.values("session_id")
            last_seq = target.values("last_seq")
            with await self._door.socket(identity.principal, cluster), visit as stay:
                response = await self._channels.handle(
                    request,
                    cluster=cluster,
                    kernel_id=route.kernel_id or "",
                    visit=stay,
                    session_id=session_id[0] if session_id else "",
                    last_seq=last_seq[0] if last_seq else None,
                    request_id=request_id,
                    opened=partial(self._audit.opened, asked),
                )
                asked.ended = stay.ended
                return response
        with visit if route.kind is Kind.MESSAGES else contextlib.nullcontext() as stay_or_none:
            response = await self._rest.handle(
                request,
                cluster=cluster,
                target=target,
                route=route,
                bearer=bearer,
                prefix=prefix,
                visit=stay_or_none,
                request_id=request_id,
            )
            asked.ended = stay_or_none.ended if stay_or_none is not None else None
            return response

    async def _who(
        self, request: web.BaseRequest, target: Target, path_token: str | None
    ) -> tuple[PresentedCredentials, Identity]:
        """What the request shows, and whose that is. Raises `Unauthorized` and `RateLimited`."""
        certified = self._door.certified(request)
        async with self._door.counting_failures(request):
            shown = PresentedCredentials(_credential(request, target), path_token, certified)
            if shown.credential is not None or path_token is not None:
                return shown, await self._authentication.identify(shown, self._clock())
        # Whoever shows nothing that could be guessed is not counted as guessing.
        return shown, await self._authentication.identify(shown, self._clock())

    def _bearer(self, identity: Identity, cluster: str, route: Route) -> Caller:
        """Raises `NotFound` and `Forbidden`."""
        actions = frozenset(map(Action, route.actions))
        rights = self._policy.authorise(identity, cluster, actions)
        besides = frozenset(map(Action, route.besides))
        return Caller(
            identity.principal,
            rights.among(actions | besides | {Action.ADMIN}),
            max_kernels=self._config.quotas.user_kernels,
        )

    def _split(self, target: Target) -> tuple[str, str | None, Target]:
        """What stands before the cluster, the token in it, and the rest.

        Raises `NotFound` and `Unauthorized`.
        """
        base, target = self._config.base_url, target.below(*self._base)
        if not self._authentication.path_tokens or target.segments[0] != _PATH_TOKEN:
            return base, None, target
        token = target.segments[1] if len(target.segments) > 1 else ""
        if not is_path_token(token):
            raise Unauthorized(WHO)
        return f"{base}/{_PATH_TOKEN}/{token}", token, target.below(_PATH_TOKEN, token)


def _credential(request: web.BaseRequest, target: Target) -> str | None:
    """Raises `Unauthorized`."""
    # The header alone is no WebSocket: anybody can send it along with a REST request.
    upgrade = request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
    channels = target.segments[-1] == "channels"
    return credentials.from_request(
        request.headers.getall(hdrs.AUTHORIZATION, []),
        target.values("token"),
        request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, []),
        websocket=upgrade and channels,
    )


def _allowed(segments: tuple[str, ...]) -> str:
    """The ``Allow`` of a path below a cluster. Raises `NotFound`."""
    return ", ".join((*allowed_methods(segments), "OPTIONS"))
