"""REST at the edge: what was authorised goes to an agent, its answer comes back."""

from __future__ import annotations

import uuid
from typing import Final
from urllib.parse import urlencode

import aiohttp
import msgspec
import structlog
from aiohttp import HttpVersion11, hdrs, web

from relay import limits
from relay.config import EdgeConfig
from relay.edge.authn.revalidation import AuthorizedStream
from relay.edge.upstream.client import Caller, Upstream, UpstreamCall
from relay.errors import AgentTimeout, AgentUnavailable, BadRequest
from relay.http import REQUEST_ID, TakenOver, read_body, transport_of
from relay.metrics import EdgeMetrics
from relay.routing.paths import Target
from relay.routing.routes import STARTING, Kind, Route

log = structlog.get_logger(__name__)

_ENDING: Final = frozenset({Kind.STOP, Kind.END_SESSION})
_REPEATABLE: Final = STARTING | _ENDING | {Kind.GRANT, Kind.REVOKE}
"""A start names its kernel's id, so that a second one finds the first; an end ends once, and a
grant says how it is to be."""
_SLOW: Final = STARTING | _ENDING | {Kind.RESTART}
_PARAMETERS: Final = {
    Kind.KERNELSPECS: ("user",),
    Kind.ME: ("permissions",),
    Kind.MESSAGES: ("since", "limit", "follow"),
}
"""The query parameters that agents know."""
_LINKING: Final = frozenset({Kind.KERNELSPECS, Kind.KERNELSPEC})
"""Answers with URLs in them."""
_PASSED: Final = (
    hdrs.CONTENT_TYPE,
    hdrs.ETAG,
    hdrs.LAST_MODIFIED,
    hdrs.CACHE_CONTROL,
    hdrs.RETRY_AFTER,
)
"""Response headers that an agent may set. Everything else is rebuilt or left out."""
_WHOLE: Final = 1024 * 1024
"""Bytes of an answer up to which it is read whole before its first byte goes to the client."""
_PIECE: Final = 64 * 1024
"""Bytes of a longer one that are passed on at once."""


class Forwarder:
    """Forwards requests to agents, and their answers to clients."""

    def __init__(self, config: EdgeConfig, upstream: Upstream, metrics: EdgeMetrics) -> None:
        self._config = config
        self._upstream = upstream
        self._metrics = metrics
        self._following: set[aiohttp.ClientResponse] = set()

    def drain(self) -> None:
        """Break off the answers that would go on for ever; their clients ask for the rest."""
        for answer in list(self._following):
            _break_off(answer, "the edge is stopping")

    async def handle(
        self,
        request: web.BaseRequest,
        *,
        cluster: str,
        target: Target,
        route: Route,
        bearer: Caller,
        prefix: str,
        visit: AuthorizedStream | None,
        request_id: str,
    ) -> web.StreamResponse:
        """Answer one request; one that goes on for no longer than ``visit`` does.

        ``prefix`` stands before the path in the client's URLs. Raises `RelayError`.
        """
        settings = self._config.upstream
        body = await read_body(request, self._config.limits.body_bytes, "limits.body_bytes")
        slow = route.kind in _SLOW
        timeout: float | None = settings.start_timeout if slow else settings.request_timeout
        silence, query = None, _query(target, route)
        if route.kind is Kind.MESSAGES:
            _require_chunks(request)
            # As long as it takes the client to read it.
            timeout, silence = None, timeout
        follows = route.kind is Kind.MESSAGES and "true" in target.values("follow")
        if follows:
            beat = settings.link_ping_interval
            silence, query = 2 * beat, [*query, ("heartbeat", f"{beat:f}")]
        call = UpstreamCall(
            method=request.method,
            path=target.path[len(cluster) + 1 :],
            query=urlencode(query),
            body=body,
            bearer=bearer,
            # The edge chooses the id, so that it can ask again when an agent dies meanwhile.
            kernel_id=str(uuid.uuid4()) if route.kind in STARTING else route.kernel_id,
            request_id=request_id,
            repeatable=request.method in {"GET", "HEAD"} or route.kind in _REPEATABLE,
            timeout=timeout,
            silence=silence,
            hold=settings.websocket_hold if route.kind in STARTING else settings.hold,
            # A kernel may be starting by now: its client is not sent away.
            hold_once_sent=settings.reattach if route.kind in STARTING else settings.hold,
        )
        try:
            answer = await self._upstream.call(cluster, call)
        except AgentTimeout:
            limits.record(f"upstream.{'start' if slow else 'request'}_timeout")
            raise
        except AgentUnavailable:
            limits.record(f"upstream.{'websocket_hold' if route.kind in STARTING else 'hold'}")
            raise
        if follows:
            self._following.add(answer)
        if visit is not None:
            # Its client asks for the rest, and is judged anew.
            visit.attend(
                lambda why: _break_off(answer, why.message),
                lambda: _break_off(answer, "rights have changed"),
            )
        try:
            if prefix and route.kind in _LINKING:
                return await _prefixed(answer, cluster, prefix)
            return await self._pass_on(request, answer, cluster, prefix, request_id)
        finally:
            self._following.discard(answer)
            answer.release()

    async def _pass_on(
        self,
        request: web.BaseRequest,
        answer: aiohttp.ClientResponse,
        cluster: str,
        prefix: str,
        request_id: str,
    ) -> web.StreamResponse:
        headers: dict[str, str] = {
            name: answer.headers[name] for name in _PASSED if name in answer.headers
        }
        location = answer.headers.get(hdrs.LOCATION)
        if location is not None:
            headers[hdrs.LOCATION] = f"{prefix}/{cluster}{location}"
        stream = answer.headers.get(hdrs.TRANSFER_ENCODING, "").lower() == "chunked"
        if request.method == "HEAD" or not (stream or (answer.content_length or 0) > _WHOLE):
            body = await _read_whole(answer, cluster)
            return web.Response(status=answer.status, headers=headers, body=body)
        headers[REQUEST_ID] = request_id
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = answer.content_length
        # A client that does not read holds no more than this of our memory.
        transport_of(request).set_write_buffer_limits(_PIECE)
        await response.prepare(request)
        while chunk := await _read_on(answer, cluster):
            await response.write(chunk)
        if chunk is None:
            self._metrics.broken_answers.labels(cluster).inc()
            # Without its end (RFC 9112 §6.3, §7.1), so that nobody takes it for whole.
            return TakenOver()
        await response.write_eof()
        return response


async def _prefixed(answer: aiohttp.ClientResponse, cluster: str, prefix: str) -> web.Response:
    """Kernelspecs whose resources are found under ``prefix``, which agents know nothing of."""
    body = await _read_whole(answer, cluster)
    if answer.status == 200 and body:  # noqa: PLR2004 - OK; HEAD has no body
        found = msgspec.json.decode(body)
        for model in found.get("kernelspecs", {"": found}).values():
            resources = model["resources"]
            model["resources"] = {name: f"{prefix}{url}" for name, url in resources.items()}
        body = msgspec.json.encode(found)
    headers = {hdrs.CONTENT_TYPE: answer.headers.get(hdrs.CONTENT_TYPE, "")}
    return web.Response(status=answer.status, headers=headers, body=body)


def _break_off(answer: aiohttp.ClientResponse, why: str) -> None:
    # Closing the answer would leave whoever waits for more of it waiting.
    answer.content.set_exception(aiohttp.ClientConnectionError(why))


async def _read_whole(answer: aiohttp.ClientResponse, cluster: str) -> bytes:
    try:
        return await answer.read()
    except (aiohttp.ClientError, ConnectionError) as error:
        msg = f"The cluster {cluster!r} broke off its answer."
        raise AgentUnavailable(msg, retry_after=1) from error


async def _read_on(answer: aiohttp.ClientResponse, cluster: str) -> bytes | None:
    """The answer's next bytes, none at its end; None where it broke off, or fell silent."""
    try:
        return await answer.content.read(_PIECE)
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        log.warning("answer_broken_off", cluster=cluster, problem=str(error))
        return None


def _require_chunks(request: web.BaseRequest) -> None:
    if request.version < HttpVersion11:
        raise BadRequest("Only with HTTP/1.1 can you tell whether this answer is whole.")


def _query(target: Target, route: Route) -> list[tuple[str, str]]:
    """The parameters that an agent knows. Never the whole query, which may hold a token."""
    names = _PARAMETERS.get(route.kind, ())
    return [(name, value) for name in names for value in target.values(name)]
