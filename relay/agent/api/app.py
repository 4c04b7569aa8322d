"""The agent's one entry: it verifies the ticket, finds the route, and calls the route's handler."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

import structlog
from aiohttp import web

from relay.agent.api.access import KernelAccess
from relay.agent.api.rest import AgentRequest, Handler, Rest
from relay.agent.channels.transcoder import Transcoder
from relay.agent.holders.registry import HolderRegistry
from relay.agent.holders.stats import failing
from relay.auth.tickets import Ticket, TicketVerifier
from relay.config import AgentConfig
from relay.errors import BadRequest, RelayError, Unauthorized
from relay.http import NoResponse, error_response, json_response, transport_of
from relay.routing.paths import parse_target
from relay.routing.routes import ROUTES
from relay.routing.table import Scope
from relay.streams import streams_over

log = structlog.get_logger(__name__)

UPGRADE = "relay-records"
_READ_AHEAD = 512 * 1024
_SCHEME = "Bearer "
_READY = "/readyz"
_HEALTH = frozenset({"/healthz", _READY})


class App:
    """Answers edges' requests. The caller is who the ticket says; nothing else in one counts."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        verifier: TicketVerifier,
        holders: HolderRegistry,
        kernels: KernelAccess,
        rest: Rest,
        max_record: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._verifier = verifier
        self._holders = holders
        self._kernels = kernels
        self._max_record = max_record
        self._clock = clock
        self._links: set[Transcoder] = set()
        self.handlers: Mapping[str, Handler] = {**rest.handlers, "channels": self._channels}
        """The handlers of all routes, by route name."""

    def end_links(self) -> None:
        """Hang up on all edges; their clients notice nothing."""
        for channels in list(self._links):
            channels.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.path in _HEALTH:
            return self._health(request.path)
        try:
            ticket = self._verify(request)
        except RelayError as error:
            log.warning("ticket_refused", problem=error.message)
            return error_response(error, "")
        with structlog.contextvars.bound_contextvars(request_id=ticket.request_id):
            try:
                return await self._serve(request, ticket)
            except RelayError as error:
                is_ours = error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR
                level = log.warning if is_ours else log.info
                level("refused", status=error.http_status, problem=error.message)
                return error_response(error, ticket.request_id)

    def _health(self, path: str) -> web.Response:
        """Say, to anybody, whether all is well; no more than that of anybody's kernel."""
        problems = failing(self._holders.ready)
        if path != _READY or not problems:
            return json_response({"ready": True})
        reason = f"{len(problems)} journal(s) cannot be written: {min(problems.values())}"
        return json_response(
            {"ready": False, "reason": reason}, status=HTTPStatus.SERVICE_UNAVAILABLE
        )

    def _verify(self, request: web.BaseRequest) -> Ticket:
        values = request.headers.getall("Authorization", [])
        if len(values) != 1 or not values[0].startswith(_SCHEME):
            msg = "A ticket is required."
            raise Unauthorized(msg)
        return self._verifier.verify(values[0].removeprefix(_SCHEME), self._clock())

    async def _serve(self, request: web.BaseRequest, ticket: Ticket) -> web.StreamResponse:
        target = parse_target(request.raw_path)
        route, parameters = ROUTES.match(Scope.CLUSTER, request.method, target.segments)
        asked = AgentRequest(request, target, route, parameters, ticket)
        # A start names no kernel in its path: the ticket brings the new one's id.
        kernel_id = ticket.kernel if route.starts_kernel else parameters.kernel_id or None
        ticket.require(asked.actions, kernel_id)
        log.info("request", method=request.method, kind=route.name, kernel_id=ticket.kernel)
        return await self.handlers[route.name](asked)

    async def _channels(self, asked: AgentRequest) -> web.StreamResponse:
        request = asked.request
        if request.headers.get("Upgrade") != UPGRADE:
            msg = "Only an edge opens a kernel's channels here."
            raise BadRequest(msg)
        line, admission = await self._kernels.admit(asked.kernel_id, asked.ticket)
        transport = transport_of(request)
        connection = request.protocol
        streams = streams_over(transport, _READ_AHEAD)
        transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Connection: Upgrade\r\nUpgrade: " + UPGRADE.encode() + b"\r\n\r\n"
        )
        channels = Transcoder(
            streams,
            message_bytes=self._config.kernels.message_bytes,
            gateway_bytes=self._config.kernels.gateway_message_bytes,
            max_record=self._max_record,
            is_busy=lambda: line.status.execution_state == "busy",
        )
        self._links.add(channels)
        try:
            await channels.run(line.socket, admission)
        finally:
            self._links.discard(channels)
            connection.connection_lost(None)
        return NoResponse()
