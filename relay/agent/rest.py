"""The agent's REST API: kernels and kernelspecs, with the statuses that clients expect."""

from __future__ import annotations

import fnmatch
import os
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from aiohttp import hdrs, web

from relay import __version__
from relay.agent.holders import Holders, StartRequest
from relay.agent.kernelspecs import KernelSpecs
from relay.auth.tickets import Ticket
from relay.config import AgentConfig, KernelEnvironment
from relay.errors import BadRequest
from relay.http import json_response, read_body
from relay.routing.paths import Target
from relay.routing.routes import Kind, Route, is_kernelspec_name

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CLIENTS: Final = "KERNEL_"
_USER: Final = "KERNEL_USERNAME"
_LAUNCH_TIMEOUT: Final = "KERNEL_LAUNCH_TIMEOUT"


class _StartBody(msgspec.Struct, frozen=True):
    """What ``POST /api/kernels`` takes; fields of other servers are ignored."""

    name: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    env: dict[str, Any] | None = None


class _Asked(NamedTuple):
    request: web.BaseRequest
    target: Target
    route: Route
    ticket: Ticket

    @property
    def kernel_id(self) -> str:
        return self.route.kernel_id or ""


class Rest:
    """Performs what the edge has authorised."""

    def __init__(self, config: AgentConfig, holders: Holders, kernelspecs: KernelSpecs) -> None:
        self._config = config
        self._holders = holders
        self._kernelspecs = kernelspecs
        self._answers: dict[Kind, Callable[[_Asked], Awaitable[web.StreamResponse]]] = {
            Kind.VERSION: self._version,
            Kind.KERNELS: self._list,
            Kind.START: self._start,
            Kind.KERNEL: self._show,
            Kind.STOP: self._stop,
            Kind.INTERRUPT: self._interrupt,
            Kind.RESTART: self._restart,
            Kind.KERNELSPECS: self._list_kernelspecs,
            Kind.KERNELSPEC: self._show_kernelspec,
            Kind.RESOURCE: self._resource,
        }

    async def handle(
        self, request: web.BaseRequest, target: Target, route: Route, ticket: Ticket
    ) -> web.StreamResponse:
        """Answer one request. Raises `RelayError`."""
        return await self._answers[route.kind](_Asked(request, target, route, ticket))

    async def _version(self, _: _Asked) -> web.Response:
        return json_response({"version": __version__})

    async def _list(self, _: _Asked) -> web.Response:
        return json_response([line.model for line in await self._holders.all()])

    async def _show(self, asked: _Asked) -> web.Response:
        line = await self._holders.get(asked.kernel_id)
        return json_response(line.model)

    async def _stop(self, asked: _Asked) -> web.Response:
        await self._holders.stop(asked.kernel_id, asked.ticket.request_id)
        return web.Response(status=204)

    async def _start(self, asked: _Asked) -> web.Response:
        ticket = asked.ticket
        body = await self._body(asked.request, _StartBody)
        name = body.name or await self._kernelspecs.default()
        if not is_kernelspec_name(name):
            msg = "The kernelspec's name is malformed."
            raise BadRequest(msg)
        # Raises NotFound before anything is started.
        await self._kernelspecs.get(name)
        settings = self._config.environment
        client_env = client_environment(body.env or {}, settings)
        client_env[_USER] = ticket.principal.subject
        line = await self._holders.start(
            StartRequest(
                kernel_id=ticket.kernel or str(uuid.uuid4()),
                name=name,
                owner=ticket.principal,
                environment=inherited_environment(settings) | client_env,
                launch_timeout=self._launch_timeout(client_env),
                request_id=ticket.request_id,
            )
        )
        response = json_response(line.model, status=201)
        response.headers[hdrs.LOCATION] = f"/api/kernels/{line.place.kernel_id}"
        return response

    def _launch_timeout(self, client_env: dict[str, str]) -> float:
        """Seconds: ours, or the client's where it gives up earlier than we would."""
        limit = self._config.kernels.launch_timeout
        try:
            asked = float(client_env[_LAUNCH_TIMEOUT])
        except (KeyError, ValueError):
            return limit
        return min(asked, limit) if asked > 0 else limit

    async def _interrupt(self, asked: _Asked) -> web.Response:
        line = await self._holders.get(asked.kernel_id)
        limit = self._config.kernels.shutdown_timeout
        await line.call("interrupt", asked.ticket.request_id, limit)
        return web.Response(status=204)

    async def _restart(self, asked: _Asked) -> web.Response:
        line = await self._holders.get(asked.kernel_id)
        settings = self._config.kernels
        limit = settings.launch_timeout + 2 * settings.shutdown_timeout
        await line.call("restart", asked.ticket.request_id, limit)
        return json_response(line.model)

    async def _list_kernelspecs(self, asked: _Asked) -> web.Response:
        # The gateway client asks for one spec of a user as /api/kernelspecs?user=U/name.
        for value in asked.target.values("user"):
            _, separator, name = value.partition("/")
            if separator:
                return json_response(await self._kernelspecs.get(name))
        return json_response(await self._kernelspecs.all())

    async def _show_kernelspec(self, asked: _Asked) -> web.Response:
        return json_response(await self._kernelspecs.get(asked.route.name or ""))

    async def _resource(self, asked: _Asked) -> web.StreamResponse:
        route = asked.route
        return web.FileResponse(await self._kernelspecs.resource(route.name or "", route.file))

    async def _body(self, request: web.BaseRequest, struct_type: type[_StartBody]) -> _StartBody:
        data = await read_body(request, self._config.body_bytes, "body_bytes")
        if not data.strip():
            return struct_type()
        try:
            return msgspec.json.decode(data, type=struct_type)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = str(error) if isinstance(error, msgspec.ValidationError) else "not JSON"
            msg = f"The request body is wrong: {problem}."
            raise BadRequest(msg) from error


def client_environment(asked: dict[str, Any], settings: KernelEnvironment) -> dict[str, str]:
    """What a client may set of a kernel's environment; other names are left out, as elsewhere.

    Raises `BadRequest` for a value that is no text, too long or has control characters.
    """
    passed = {}
    for name, value in asked.items():
        if not _NAME.fullmatch(name):
            msg = "A name in env is malformed."
            raise BadRequest(msg)
        if not name.startswith(_CLIENTS) and name not in settings.allowed:
            continue
        if not isinstance(value, str):
            msg = f"env: the value of {name} is not a string."
            raise BadRequest(msg)
        if len(value.encode(errors="surrogatepass")) > settings.value_bytes:
            msg = (
                f"env: the value of {name} is over {settings.value_bytes} bytes "
                "(environment.value_bytes)."
            )
            raise BadRequest(msg)
        if any(ord(character) < 32 or ord(character) == 127 for character in value):  # noqa: PLR2004
            msg = f"env: the value of {name} has control characters."
            raise BadRequest(msg)
        passed[name] = value
    return passed


def inherited_environment(settings: KernelEnvironment) -> dict[str, str]:
    """What a kernel gets of the agent's own environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.inherit)
    }
