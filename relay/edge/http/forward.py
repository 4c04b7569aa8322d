"""REST at the edge: an authorised request goes to an agent, its response comes back."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

import msgspec
from aiohttp import HttpVersion11, hdrs, web

from relay import limits
from relay.config import EdgeConfig
from relay.edge.authn.revalidation import AuthorizedStream
from relay.edge.http.context import AuthorizedRequest
from relay.edge.upstream.call import CallTimeouts, UpstreamCall
from relay.edge.upstream.client import UpstreamClient
from relay.edge.upstream.response import CHUNK_BYTES, UpstreamResponse
from relay.errors import AgentError, AgentTimeout, AgentUnavailable, BadRequest
from relay.http import REQUEST_ID, NoResponse, read_body, transport_of
from relay.metrics import EdgeMetrics
from relay.routing.table import TimeoutClass

_WHOLE_BYTES: Final = 1024 * 1024
"""Bytes of a body up to which it is read whole before its first byte goes to the client."""


class Forwarder:
    """Forwards requests to agents, and their responses to clients."""

    def __init__(self, config: EdgeConfig, upstream: UpstreamClient, metrics: EdgeMetrics) -> None:
        self._settings = config.upstream
        self._body_bytes = config.limits.body_bytes
        self._upstream = upstream
        self._metrics = metrics
        self._following: set[UpstreamResponse] = set()

    def drain(self) -> None:
        """Break off the streams that would last for ever; their clients ask for the rest."""
        for response in list(self._following):
            response.break_off("the edge is stopping")

    async def handle(
        self, context: AuthorizedRequest, stream: AuthorizedStream | None = None
    ) -> web.StreamResponse:
        """Answer one request; ``stream`` tells when a response that streams has to end.

        Raises `RelayError`.
        """
        call = await self._call(context)
        try:
            async with await self._ask(context, call) as response:
                with self._tracked(context, response, stream):
                    if context.prefix and context.route.links:
                        return await _with_links(response, context.prefix)
                    return await self._pass_on(context, response)
        except AgentTimeout:
            limits.record(f"upstream.{context.route.timeout.value}_timeout")
            raise

    async def _ask(self, context: AuthorizedRequest, call: UpstreamCall) -> UpstreamResponse:
        try:
            return await self._upstream.call(context.cluster, call)
        except AgentUnavailable:
            held = "websocket_hold" if context.route.starts_kernel else "hold"
            limits.record(f"upstream.{held}")
            raise

    async def _call(self, context: AuthorizedRequest) -> UpstreamCall:
        request, route = context.request, context.route
        body = await read_body(request, self._body_bytes, "limits.body_bytes")
        if route.streams and request.version < HttpVersion11:
            raise BadRequest("Only with HTTP/1.1 can you tell whether this answer is whole.")
        # The edge chooses a new kernel's id, so that it can ask again when an agent dies meanwhile.
        kernel_id = str(uuid.uuid4()) if route.starts_kernel else context.parameters.kernel_id
        return UpstreamCall(
            method=request.method,
            path=context.target.path,
            query=urlencode(self._query(context)),
            body=body,
            caller=context.caller,
            kernel_id=kernel_id or None,
            request_id=context.request_id,
            retry=route.retry,
            timeouts=self._timeouts(context),
        )

    def _timeouts(self, context: AuthorizedRequest) -> CallTimeouts:
        settings, route = self._settings, context.route
        total: float | None = settings.request_timeout
        read: float | None = None
        if route.timeout is TimeoutClass.START:
            total = settings.start_timeout
        if route.streams:
            # As long as it takes the client to read it.
            total, read = None, settings.request_timeout
        if _follows(context):
            read = 2 * settings.link_ping_interval
        return CallTimeouts(
            total,
            read,
            retry_for=settings.websocket_hold if route.starts_kernel else settings.hold,
            # A kernel may be starting by now: its client is not sent away.
            retry_for_once_sent=settings.reattach if route.starts_kernel else settings.hold,
        )

    def _query(self, context: AuthorizedRequest) -> list[tuple[str, str]]:
        """Return the parameters that agents know. Never the whole query: a token may be in it."""
        known = [
            (name, value) for name in context.route.query for value in context.target.values(name)
        ]
        if _follows(context):
            known.append(("heartbeat", f"{self._settings.link_ping_interval:f}"))
        return known

    @contextlib.contextmanager
    def _tracked(
        self,
        context: AuthorizedRequest,
        response: UpstreamResponse,
        stream: AuthorizedStream | None,
    ) -> Iterator[None]:
        """Break the response off when the edge stops, and when its caller's rights change."""
        if _follows(context):
            self._following.add(response)
        if stream is not None:
            # The client asks for the rest, and is authorised anew.
            stream.subscribe(
                lambda error: response.break_off(error.message),
                lambda: response.break_off("rights have changed"),
            )
        try:
            yield
        finally:
            self._following.discard(response)

    async def _pass_on(
        self, context: AuthorizedRequest, response: UpstreamResponse
    ) -> web.StreamResponse:
        headers = dict(response.headers)
        if hdrs.LOCATION in headers:
            headers[hdrs.LOCATION] = f"{context.prefix}/{context.cluster}{headers[hdrs.LOCATION]}"
        is_long = response.is_chunked or (response.length or 0) > _WHOLE_BYTES
        if context.request.method == hdrs.METH_HEAD or not is_long:
            body = await response.read()
            return web.Response(status=response.status, headers=headers, body=body)
        headers[REQUEST_ID] = context.request_id
        passed_on = web.StreamResponse(status=response.status, headers=headers)
        passed_on.content_length = response.length
        return await self._pass_on_chunks(context, response, passed_on)

    async def _pass_on_chunks(
        self,
        context: AuthorizedRequest,
        response: UpstreamResponse,
        passed_on: web.StreamResponse,
    ) -> web.StreamResponse:
        # A client that does not read holds no more than this of our memory.
        transport_of(context.request).set_write_buffer_limits(CHUNK_BYTES)
        await passed_on.prepare(context.request)
        try:
            async with contextlib.aclosing(response.chunks()) as chunks:
                async for chunk in chunks:
                    await passed_on.write(chunk)
        except AgentError:
            self._metrics.broken_answers.labels(context.cluster).inc()
            # Without its end (RFC 9112 §6.3, §7.1), so that nobody takes it for whole.
            return NoResponse()
        await passed_on.write_eof()
        return passed_on


async def _with_links(response: UpstreamResponse, prefix: str) -> web.Response:
    """Return kernelspecs whose resources are found below ``prefix``, which agents do not know."""
    body = await response.read()
    if response.status == HTTPStatus.OK and body:  # the answer to a HEAD has none
        found = msgspec.json.decode(body)
        for model in found.get("kernelspecs", {"": found}).values():
            resources = model["resources"]
            model["resources"] = {name: f"{prefix}{url}" for name, url in resources.items()}
        body = msgspec.json.encode(found)
    headers = {hdrs.CONTENT_TYPE: response.headers.get(hdrs.CONTENT_TYPE, "")}
    return web.Response(status=response.status, headers=headers, body=body)


def _follows(context: AuthorizedRequest) -> bool:
    """Whether the stream goes on with what comes: heartbeats tell that it is alive."""
    return context.route.streams and "true" in context.target.values("follow")
