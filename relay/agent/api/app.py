"""The agent's one entry: a ticket, a route, and then REST or channels."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from aiohttp import web

from relay.agent.api.access import KernelAccess
from relay.agent.api.rest import Rest
from relay.agent.channels.transcoder import Transcoder
from relay.agent.holders.registry import HolderRegistry
from relay.agent.holders.stats import failing
from relay.auth.policy import Action
from relay.auth.tickets import Ticket, TicketVerifier
from relay.config import AgentConfig
from relay.errors import BadRequest, RelayError, Unauthorized
from relay.http import TakenOver, error_response, json_response, transport_of
from relay.routing.paths import parse_target
from relay.routing.routes import STARTING, Kind, Route, match
from relay.streams import adopt

log = structlog.get_logger(__name__)

UPGRADE = "relay-records"
_READ_AHEAD = 512 * 1024
_SCHEME = "Bearer "
_READY = "/readyz"
_HEALTH = frozenset({"/healthz", _READY})


class App:
    """Judges each request by its ticket alone; nothing else in it says who is asking."""

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
        self._rest = rest
        self._max_record = max_record
        self._clock = clock
        self._links: set[Transcoder] = set()

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
                level = log.warning if error.http_status >= 500 else log.info  # noqa: PLR2004
                level("refused", status=error.http_status, problem=error.message)
                return error_response(error, ticket.request_id)

    def _health(self, path: str) -> web.Response:
        """Say, to anybody, whether all is well; no more than that of anybody's kernel."""
        problems = failing(self._holders.ready)
        if path != _READY or not problems:
            return json_response({"ready": True})
        reason = f"{len(problems)} journal(s) cannot be written: {min(problems.values())}"
        return json_response({"ready": False, "reason": reason}, status=503)

    def _verify(self, request: web.BaseRequest) -> Ticket:
        values = request.headers.getall("Authorization", [])
        if len(values) != 1 or not values[0].startswith(_SCHEME):
            msg = "A ticket is required."
            raise Unauthorized(msg)
        return self._verifier.verify(values[0].removeprefix(_SCHEME), self._clock())

    async def _serve(self, request: web.BaseRequest, ticket: Ticket) -> web.StreamResponse:
        target = parse_target(request.raw_path)
        route = match(request.method, target.segments)
        # What may start a kernel names none in its path: the ticket brings the new one's id.
        kernel_id = ticket.kernel if route.kind in STARTING else route.kernel_id
        ticket.require(_actions(route), kernel_id)
        log.info("request", method=request.method, kind=route.kind, kernel_id=ticket.kernel)
        if route.kind is Kind.CHANNELS:
            return await self._channels(request, route, ticket)
        return await self._rest.handle(request, target, route, ticket)

    async def _channels(
        self, request: web.BaseRequest, route: Route, ticket: Ticket
    ) -> web.StreamResponse:
        if request.headers.get("Upgrade") != UPGRADE:
            msg = "Only an edge opens a kernel's channels here."
            raise BadRequest(msg)
        line, admission = await self._kernels.admit(route.kernel_id or "", ticket)
        transport = transport_of(request)
        connection = request.protocol
        streams = adopt(transport, _READ_AHEAD)
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
        return TakenOver()


def _actions(route: Route) -> frozenset[Action]:
    return frozenset(map(Action, route.actions))
