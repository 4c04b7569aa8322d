"""A kernel's channels at the edge: the handshake, and links for as long as the client stays."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Final

import msgspec
import structlog
from aiohttp import hdrs, web
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from relay import limits
from relay.auth.credentials import TOKEN_PROTOCOL, without_token
from relay.bridge.control import Attach, Position
from relay.bridge.ws_codec import choose
from relay.config import EdgeConfig
from relay.edge.authn.revalidation import AuthorizedStream
from relay.edge.caller import Caller
from relay.edge.http.context import AuthorizedRequest
from relay.edge.upstream.client import UpstreamClient
from relay.edge.upstream.link import Link
from relay.edge.websocket.pipe import Pipe
from relay.errors import AgentError, BadRequest, Forbidden, NotFound, RelayError
from relay.http import NoResponse, transport_of
from relay.metrics import EdgeMetrics
from relay.model import Identity

log = structlog.get_logger(__name__)

_SESSION_ID: Final = 512
"""Characters of a session id that are looked at; clients send UUIDs."""
_PAUSE: Final = 0.05
"""Seconds between the loss of a link and the next: an agent that dies at once isn't hurried."""
_RESTARTING: Final = (1012, "the relay is restarting")


class ChannelsHandler:
    """Opens kernels' channels for clients that have been let in.

    ``follow`` is entered for each WebSocket while it is open.
    """

    def __init__(
        self,
        config: EdgeConfig,
        upstream: UpstreamClient,
        metrics: EdgeMetrics,
        follow: Callable[[Identity, Pipe], AbstractContextManager[None]],
    ) -> None:
        self._config = config
        self._upstream = upstream
        self._metrics = metrics
        self._follow = follow
        self._pipes: set[Pipe] = set()

    async def handle(
        self,
        context: AuthorizedRequest,
        stream: AuthorizedStream,
        opened: Callable[[], Awaitable[None]],
    ) -> web.StreamResponse:
        """Serve one WebSocket from its handshake to its end, or until ``stream`` is revoked.

        ``opened`` is called once the kernel is reached, and may refuse yet. Raises `RelayError`
        before the upgrade only.
        """
        accepted, attach = _attach(context)
        caller = stream.caller
        cluster, kernel_id = context.cluster, context.parameters.kernel_id
        link = await self._open(cluster, kernel_id, attach, caller)
        try:
            if stream.revoked is not None:
                raise stream.revoked
            await opened()
            client = transport_of(context.request)
        except (RelayError, ConnectionError):
            link.close()
            raise
        pipe = Pipe(
            client,
            self._config.limits,
            self._config.websocket,
            self._metrics.traffic(cluster),
            any_text=attach.gateway,
        )
        connection = context.request.protocol
        early = _Early()
        # aiohttp hands it what came after the request's head; it takes any such object.
        connection.set_parser(early)  # type: ignore[arg-type]
        client.write(accepted)
        client.set_protocol(pipe)
        self._pipes.add(pipe)
        try:
            self._use(pipe, link)
            stream.subscribe(lambda why: pipe.close(why.close_code, why.message), pipe.detach_link)
            if stream.caller != caller:
                pipe.detach_link()
            if early.data:
                pipe.data_received(bytes(early.data))
            websockets = self._metrics.websockets.labels(cluster)
            with websockets.track_inprogress(), self._follow(stream.identity, pipe):
                await self._stay(pipe, cluster, kernel_id, attach, stream, caller)
        finally:
            self._pipes.discard(pipe)
            pipe.abort()
            connection.connection_lost(None)
        return NoResponse(status=HTTPStatus.SWITCHING_PROTOCOLS)

    async def _open(self, cluster: str, kernel_id: str, attach: Attach, caller: Caller) -> Link:
        """Open the first link. The client waits for its upgrade while an agent comes back.

        A refusal would make JupyterLab give up on the kernel.
        """
        try:
            return await self._upstream.open_link(
                cluster, kernel_id, attach, caller, retry_for=self._config.upstream.websocket_hold
            )
        except AgentError:
            limits.record("upstream.websocket_hold")
            raise

    async def _stay(
        self,
        pipe: Pipe,
        cluster: str,
        kernel_id: str,
        attach: Attach,
        stream: AuthorizedStream,
        caller: Caller,
    ) -> None:
        """Give the pipe a new link whenever it loses one, until the client is gone.

        ``caller`` is the one for which the current link was opened.
        """
        while not pipe.finished.is_set():
            await pipe.unlinked.wait()
            if pipe.finished.is_set():
                return
            # The agent checks the rights, since only it knows whose the kernel is.
            changed, caller = stream.caller != caller, stream.caller
            if not changed:
                log.info("link_lost", cluster=cluster, kernel_id=kernel_id)
                self._metrics.links_lost.labels(cluster).inc()
                await asyncio.sleep(_PAUSE)
            again = msgspec.structs.replace(attach, position=pipe.position)
            try:
                link = await self._upstream.open_link(
                    cluster, kernel_id, again, caller, retry_for=self._config.upstream.reattach
                )
            except NotFound as error:
                # JupyterLab then asks for the kernel, gets 404 and shows it as dead.
                pipe.close(Forbidden.close_code if changed else 1011, error.message)
                await pipe.finished.wait()
            except RelayError as error:
                limits.record("upstream.reattach")
                pipe.close(error.close_code, error.message)
                await pipe.finished.wait()
            else:
                if stream.caller != caller:
                    # Changed once more.
                    link.close()
                    continue
                log.info("link_restored", cluster=cluster, kernel_id=kernel_id)
                self._use(pipe, link)

    def _use(self, pipe: Pipe, link: Link) -> None:
        pipe.bind(link)
        link.keep_watch(self._config.upstream.link_ping_interval)

    def drain(self) -> None:
        """Send all clients away; they come back to another worker, or to the next."""
        for pipe in list(self._pipes):
            # Not 1001: JupyterLab never reconnects after it.
            pipe.close(*_RESTARTING)


class _Early:
    """Collects what a client sent before its upgrade was answered."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing to do: the connection's end is noticed elsewhere."""


def _attach(context: AuthorizedRequest) -> tuple[bytes, Attach]:
    """Return the bytes of the 101, and what the kernel's holder is told. Raises `BadRequest`."""
    accepted, subprotocol = _handshake(context.request)
    session_id = next(iter(context.target.values("session_id")), "")
    last_seq = next(iter(context.target.values("last_seq")), None)
    if len(session_id) > _SESSION_ID:
        msg = f"The session_id is over {_SESSION_ID} characters."
        raise BadRequest(msg)
    return accepted, Attach(
        link=secrets.token_hex(16),
        principal=str(context.caller.principal),
        session_id=session_id,
        subprotocol=subprotocol,
        gateway=not subprotocol and _is_gateway(context.request),
        resumes=last_seq is not None,
        last_seq=_position(last_seq),
        request_id=context.request_id,
    )


def _is_gateway(request: web.BaseRequest) -> bool:
    """Whether a client is Tornado's own WebSocket client, which Jupyter Server uses.

    Node's says nothing of itself, and takes everything.
    """
    return request.headers.get(hdrs.USER_AGENT, "").startswith("Tornado/")


def _position(text: str | None) -> Position | None:
    """What a client says of how far it has come. Raises `BadRequest`."""
    if not text:
        return None
    try:
        return Position.parse(text)
    except ValueError as error:
        raise BadRequest(f"last_seq: {error}.") from None


def _handshake(request: web.BaseRequest) -> tuple[bytes, str]:
    """The bytes of the 101 and the chosen subprotocol. Raises `BadRequest`."""
    if request.body_exists:
        # Where it ends and the frames begin, others on the way may see differently.
        msg = "A WebSocket's handshake has no body."
        raise BadRequest(msg)
    chosen = ""

    def select(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        nonlocal chosen
        chosen = choose(offered).value
        with_token = len(without_token(offered)) < len(offered)
        if not chosen and with_token and TOKEN_PROTOCOL in offered:
            # For browsers something of theirs must be chosen; never what holds the token.
            return Subprotocol(TOKEN_PROTOCOL)
        return Subprotocol(chosen) if chosen else None

    # Extensions are not offered: the frames that agents make are not compressed.
    protocol = ServerProtocol(extensions=None, select_subprotocol=select)
    version = f"HTTP/{request.version.major}.{request.version.minor}"
    response: Response = protocol.accept(
        # Not the path, in which a token may be: nothing hangs on it.
        Request("/", Headers(request.headers.items()), request.method, version)
    )
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        msg = "This is a kernel's channels: open it as a WebSocket (RFC 6455)."
        raise BadRequest(msg)
    return response.serialize(), chosen
