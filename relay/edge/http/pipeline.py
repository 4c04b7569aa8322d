"""The road of every request, of both ports: receive → identify → route → authorise → handle.

The order of the checks is a security property: nothing about a cluster is told before the caller is
known, and nothing about its routes before the caller is known to have rights there.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import NamedTuple

import structlog
from aiohttp import hdrs, web

from relay.auth import credentials
from relay.auth.chain import TOKEN_REQUIRED
from relay.auth.credentials import PresentedCredentials
from relay.auth.origin import Origins
from relay.auth.policy import Policy
from relay.auth.tokens import is_path_token
from relay.config import EdgeConfig
from relay.edge.authn.authenticators import Authenticators
from relay.edge.authn.revalidation import Reauthorizer
from relay.edge.http.audit import AuditTrail
from relay.edge.http.authorization import Authorization
from relay.edge.http.channels import ChannelsHandler
from relay.edge.http.context import (
    AddressedRequest,
    AdmittedRequest,
    AuthorizedRequest,
    EarlyResponse,
    IdentifiedRequest,
    Outcome,
    ParsedRequest,
    RequestContext,
    RoutedRequest,
)
from relay.edge.http.cors import CorsPolicy
from relay.edge.http.edge_routes import EdgeRoutes
from relay.edge.http.forward import Forwarder
from relay.edge.http.rate_limits import RateLimits
from relay.edge.listener.acceptor import connection_of
from relay.edge.listener.client_address import ClientAddresses
from relay.edge.upstream.client import UpstreamClient
from relay.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    RelayError,
    Unauthorized,
)
from relay.http import REQUEST_ID, error_response
from relay.metrics import EdgeMetrics
from relay.routing.heads import check_head
from relay.routing.paths import Target, parse_target
from relay.routing.routes import ROUTES
from relay.routing.table import Scope

log = structlog.get_logger(__name__)

_PATH_TOKEN = "t"  # noqa: S105 - the segment in front of one


class Dependencies(NamedTuple):
    """What the steps of the pipeline use."""

    addresses: ClientAddresses
    rate_limits: RateLimits
    authenticators: Authenticators
    reauthorizer: Reauthorizer
    audit: AuditTrail
    upstream: UpstreamClient
    forwarder: Forwarder
    channels: ChannelsHandler
    metrics: EdgeMetrics


class Pipeline:
    """Takes each request through the steps, and turns errors into responses."""

    def __init__(
        self, config: EdgeConfig, parts: Dependencies, clock: Callable[[], float] = time.time
    ) -> None:
        self._base_url = config.base_url
        self._cors = CorsPolicy(Origins(config.origins))
        self._authorization = Authorization(config.policy.policy(), config.quotas.user_kernels)
        self._parts = parts
        self._clock = clock
        self.edge_routes = EdgeRoutes(parts.audit)

    def change_policy(self, policy: Policy) -> None:
        """Authorise by ``policy`` from now on, WebSockets and streams that are open too."""
        self._authorization.policy = policy
        self._parts.reauthorizer.reauthorize_all()

    async def handle_https(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request on the HTTPS port: REST, and channels for clients of one URL."""
        return await self._answer(request, channels_only=False)

    async def handle_wss(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request on the WSS port: channels only."""
        return await self._answer(request, channels_only=True)

    async def _answer(self, request: web.BaseRequest, *, channels_only: bool) -> web.StreamResponse:
        received = RequestContext(
            request=request,
            request_id=uuid.uuid4().hex,
            address=self._parts.addresses.of(request),
            channels_only=channels_only,
        )
        with structlog.contextvars.bound_contextvars(request_id=received.request_id):
            reached, outcome = await self._run(received)
            await self._parts.audit.answered(reached, outcome)
        response = outcome.response
        matched = reached.matched_route
        name = matched.route.name if matched is not None else ""
        self._parts.metrics.count_request(reached.admitted_cluster, name, response.status)
        if not response.prepared:
            response.headers[REQUEST_ID] = received.request_id
        return response

    async def _run(self, received: RequestContext) -> tuple[RequestContext, Outcome]:
        """Take the steps; return the stage that the request reached, and what became of it."""
        reached = received
        try:
            reached = parsed = await self._receive(received)
            reached = identified = await self._identify(parsed)
            reached = addressed = self._find_cluster(identified)
            reached = admitted = self._authorization.admit(addressed)
            reached = routed = await self._route(admitted)
            reached = authorized = await self._authorize(routed)
            return reached, await self._handle(authorized)
        except EarlyResponse as early:
            return reached, Outcome(early.response)
        except RelayError as error:
            return reached, Outcome(self._refuse(reached, error), reason=error.message)
        except Exception:
            # Whatever it was, the request may have had its effect.
            await self._parts.audit.failed(reached)
            raise

    # Receive

    async def _receive(self, context: RequestContext) -> ParsedRequest:
        """Check head, target and origin, and answer what the edge answers itself.

        Raises `EarlyResponse`, `BadRequest`, `Forbidden`, `NotFound`, `NotReady` and
        `Unauthorized`.
        """
        request = context.request
        host = check_head(request.version, request.raw_headers)
        target = parse_target(request.raw_path)
        self._cors.check(request, host)
        await self.edge_routes.answer(Scope.ROOT, request.method, target.segments)
        async with self._parts.rate_limits.counting_failed_logins(context.address):
            prefix, path_token, target = self._split(target)
        await self.edge_routes.answer(Scope.EDGE, request.method, target.segments)
        return ParsedRequest(**context.facts(), target=target, prefix=prefix, path_token=path_token)

    def _split(self, target: Target) -> tuple[str, str | None, Target]:
        """Return the prefix of the target, the path token in that, and the target below it.

        Raises `NotFound` and `Unauthorized`.
        """
        base, target = self._base_url, target.below(*self._base_url.split("/")[1:])
        if not self._parts.authenticators.path_tokens or target.segments[0] != _PATH_TOKEN:
            return base, None, target
        token = target.segments[1] if len(target.segments) > 1 else ""
        if not is_path_token(token):
            raise Unauthorized(TOKEN_REQUIRED)
        return f"{base}/{_PATH_TOKEN}/{token}", token, target.below(_PATH_TOKEN, token)

    # Identify

    async def _identify(self, context: ParsedRequest) -> IdentifiedRequest:
        """Establish the caller by certificate, path token and credential.

        Raises `Unauthorized`, `RateLimited`, and whatever an authenticator raises that fails.
        """
        request = context.request
        certificate = connection_of(request).certificate_identity(self._clock())
        async with self._parts.rate_limits.counting_failed_logins(context.address):
            credential = _credential(request, context.target)
            presented = PresentedCredentials(credential, context.path_token, certificate)
            if credential is not None or context.path_token is not None:
                return await self._identified(context, presented)
        # Without anything that could be guessed it is no attempt at a login.
        return await self._identified(context, presented)

    async def _identified(
        self, context: ParsedRequest, presented: PresentedCredentials
    ) -> IdentifiedRequest:
        identity = await self._parts.authenticators.identify(presented, self._clock())
        return IdentifiedRequest(**context.facts(), credentials=presented, identity=identity)

    # Route

    def _find_cluster(self, context: IdentifiedRequest) -> AddressedRequest:
        """Find the cluster that the path names. Raises `NotFound`."""
        cluster = context.target.segments[0]
        self._parts.upstream.require(cluster)
        facts = context.facts() | {"target": context.target.below(cluster)}
        return AddressedRequest(**facts, cluster=cluster)

    async def _route(self, context: AdmittedRequest) -> RoutedRequest:
        """Find the route. Raises `RateLimited`, `NotFound` and `MethodNotAllowed`."""
        method, segments = context.request.method, context.target.segments
        await self._parts.rate_limits.count_request(context.identity.principal, context.cluster)
        if method == hdrs.METH_OPTIONS:
            raise EarlyResponse(
                web.Response(status=HTTPStatus.NO_CONTENT, headers={hdrs.ALLOW: _allow(segments)})
            )
        matched = ROUTES.match(Scope.CLUSTER, method, segments)
        return RoutedRequest(**context.facts(), matched=matched)

    # Authorise

    async def _authorize(self, context: RoutedRequest) -> AuthorizedRequest:
        """Check that the caller may use the route, on this port, and that it can be logged.

        Raises `Forbidden`, `NotFound` and `AuditFailed`.
        """
        authorized = self._authorization.authorize(context)
        method, address = context.request.method, context.address
        log.info("request", method=method, address=address, **authorized.log_fields)
        if context.channels_only and not context.route.upgrades:
            msg = "This port serves kernel channels only."
            raise NotFound(msg)
        await self._parts.audit.require(context.route)
        return authorized

    # Handle

    async def _handle(self, context: AuthorizedRequest) -> Outcome:
        if context.route.upgrades:
            return await self._open_channels(context)
        if context.route.streams:
            return await self._stream(context)
        return Outcome(await self._parts.forwarder.handle(context))

    async def _open_channels(self, context: AuthorizedRequest) -> Outcome:
        stream = self._authorization.stream(context)
        opened = partial(self._parts.audit.channels_opened, context)
        principal = context.identity.principal
        with (
            await self._parts.rate_limits.open_socket(principal, context.cluster),
            self._parts.reauthorizer.watch(context.credentials, stream),
        ):
            response = await self._parts.channels.handle(context, stream, opened)
        return Outcome(response, revoked=stream.revoked)

    async def _stream(self, context: AuthorizedRequest) -> Outcome:
        stream = self._authorization.stream(context)
        with self._parts.reauthorizer.watch(context.credentials, stream):
            response = await self._parts.forwarder.handle(context, stream)
        return Outcome(response, revoked=stream.revoked)

    def _refuse(self, reached: RequestContext, error: RelayError) -> web.Response:
        is_ours = error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR
        level = log.warning if is_ours else log.info
        level("refused", status=error.http_status, problem=error.message, address=reached.address)
        response = error_response(error, reached.request_id)
        if isinstance(error, BadRequest) or not reached.request.content.is_eof():
            # What follows on this connection may be the rest of it: answer no more.
            response.force_close()
        if isinstance(error, MethodNotAllowed) and isinstance(reached, AdmittedRequest):
            response.headers[hdrs.ALLOW] = _allow(reached.target.segments)
        if isinstance(error, Unauthorized):
            self._parts.metrics.refused_logins.inc()
        return response


def _credential(request: web.BaseRequest, target: Target) -> str | None:
    """Return the one credential that headers, query or subprotocols show. Raises `Unauthorized`."""
    # The header alone is no WebSocket: anybody can send it along with a REST request.
    upgrade = request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
    channels = target.segments[-1] == "channels"
    return credentials.from_request(
        request.headers.getall(hdrs.AUTHORIZATION, []),
        target.values("token"),
        request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, []),
        websocket=upgrade and channels,
    )


def _allow(segments: tuple[str, ...]) -> str:
    """Return the ``Allow`` of a path below a cluster. Raises `NotFound`."""
    return ", ".join((*ROUTES.allowed_methods(Scope.CLUSTER, segments), hdrs.METH_OPTIONS))
