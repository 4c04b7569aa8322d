"""The agent's REST API: what Jupyter's clients ask of a server, with the statuses they expect.

Each resource has a class whose ``handlers`` are registered under the names of their routes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from aiohttp import hdrs, web

from relay import __version__
from relay.agent.api.access import KernelAccess
from relay.agent.api.kernelspecs import KernelSpecs
from relay.agent.api.messages import JournalMessages
from relay.agent.api.sessions import JupyterSessions, NewSession, SessionChange
from relay.agent.api.start_request import KernelStarts, StartBody
from relay.agent.holders.client import HolderClient
from relay.auth.ownership import REVEALING, Grant, parse_grantee
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket
from relay.bridge.control import GrantChange
from relay.config import AgentConfig, KernelSettings
from relay.errors import BadRequest
from relay.http import json_response, read_body
from relay.model import jupyter_time
from relay.routing.paths import Target
from relay.routing.table import PathParameters, Route

Body = TypeVar("Body", bound=msgspec.Struct)

_PERMISSIONS: Final[dict[str, dict[str, frozenset[Action]]]] = {
    "kernels": {
        "read": REVEALING,
        "write": frozenset({Action.START, Action.STOP, Action.INTERRUPT}),
        "execute": frozenset({Action.USE}),
    },
    "kernelspecs": {"read": frozenset({Action.START})},
    "sessions": {"read": REVEALING, "write": frozenset({Action.START, Action.STOP})},
}
"""Jupyter's names for resources and what may be done with them, with the actions of ours, any one
of which that takes."""
_GRANT_TIMEOUT: Final = 5.0
"""Seconds that a holder has to note a grant."""


class AgentRequest(NamedTuple):
    """A request whose ticket is good for its route."""

    request: web.BaseRequest
    target: Target
    route: Route
    parameters: PathParameters
    ticket: Ticket

    @property
    def actions(self) -> frozenset[Action]:
        """The actions any one of which the route takes."""
        return frozenset(map(Action, self.route.actions))

    @property
    def kernel_id(self) -> str:
        """The kernel that the path names."""
        return self.parameters.kernel_id

    @property
    def session_id(self) -> str:
        """The Jupyter session that the path names."""
        return self.parameters.session_id


Handler = Callable[[AgentRequest], Awaitable[web.StreamResponse]]
"""Answers requests of one route. Raises `RelayError`."""


class GrantBody(msgspec.Struct, frozen=True):
    """The body of ``PUT …/grants/<user>``."""

    action: Grant


class Rest:
    """The handlers of all routes but channels, by route name."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        kernels: KernelAccess,
        kernelspecs: KernelSpecs,
        starts: KernelStarts,
        sessions: JupyterSessions,
        past: JournalMessages,
    ) -> None:
        self.handlers: Mapping[str, Handler] = {
            **ServerHandlers(kernels).handlers,
            **KernelHandlers(config, kernels, starts, past).handlers,
            **GrantHandlers(config.body_bytes, kernels).handlers,
            **KernelspecHandlers(kernelspecs).handlers,
            **SessionHandlers(config.body_bytes, sessions).handlers,
        }


class ServerHandlers:
    """The agent itself, and its caller."""

    def __init__(self, kernels: KernelAccess) -> None:
        self._kernels = kernels
        self._started = time.time()
        self.handlers: Mapping[str, Handler] = {
            "version": self._version,
            "status": self._status,
            "me": self._me,
        }

    async def _version(self, _: AgentRequest) -> web.Response:
        return json_response({"version": __version__})

    async def _status(self, asked: AgentRequest) -> web.Response:
        # The caller's own kernels: an admin's status is no sum over everybody's.
        models = [client.model for client in await self._kernels.own(asked.ticket)]
        active = [model.last_activity for model in models]
        return json_response(
            {
                "started": jupyter_time(self._started),
                "last_activity": max([jupyter_time(self._started), *active]),
                "kernels": len(models),
                "connections": sum(model.connections for model in models),
            }
        )

    async def _me(self, asked: AgentRequest) -> web.Response:
        name = asked.ticket.principal.subject
        identity = {
            "username": str(asked.ticket.principal),
            "name": name,
            "display_name": name,
            "initials": name[:2].upper(),
            "avatar_url": None,
            "color": None,
        }
        permissions = _permissions(asked.target.values("permissions"), asked.ticket.rights)
        return json_response({"identity": identity, "permissions": permissions})


class KernelHandlers:
    """Kernels: list, start, show, interrupt, restart, stop, and read what they have sent."""

    def __init__(
        self,
        config: AgentConfig,
        kernels: KernelAccess,
        starts: KernelStarts,
        past: JournalMessages,
    ) -> None:
        self._settings: KernelSettings = config.kernels
        self._body_bytes = config.body_bytes
        self._kernels = kernels
        self._starts = starts
        self._past = past
        self.handlers: Mapping[str, Handler] = {
            "kernels": self._list,
            "start": self._start,
            "kernel": self._show,
            "stop": self._stop,
            "interrupt": self._interrupt,
            "restart": self._restart,
            "messages": self._messages,
        }

    async def _kernel(self, asked: AgentRequest) -> HolderClient:
        """Return the kernel that the path names. Raises `NotFound` and `Forbidden`."""
        return await self._kernels.get(asked.kernel_id, asked.ticket, asked.actions)

    async def _list(self, asked: AgentRequest) -> web.Response:
        return json_response([client.model for client in await self._kernels.all(asked.ticket)])

    async def _start(self, asked: AgentRequest) -> web.Response:
        body = await _decode_body(asked, self._body_bytes, StartBody)
        client = await self._starts.start(body, asked.ticket)
        return _created(client.model, f"/api/kernels/{client.kernel_folder.kernel_id}")

    async def _show(self, asked: AgentRequest) -> web.Response:
        return json_response((await self._kernel(asked)).model)

    async def _stop(self, asked: AgentRequest) -> web.Response:
        await self._kernels.stop(asked.kernel_id, asked.ticket)
        return _no_content()

    async def _interrupt(self, asked: AgentRequest) -> web.Response:
        client = await self._kernel(asked)
        limit = self._settings.shutdown_timeout
        await client.call("interrupt", asked.ticket.request_id, limit)
        return _no_content()

    async def _restart(self, asked: AgentRequest) -> web.Response:
        client = await self._kernel(asked)
        limit = self._settings.launch_timeout + 2 * self._settings.shutdown_timeout
        await client.call("restart", asked.ticket.request_id, limit)
        return json_response(client.model)

    async def _messages(self, asked: AgentRequest) -> web.StreamResponse:
        client, admission = await self._kernels.admit(asked.kernel_id, asked.ticket)
        request_id = asked.ticket.request_id
        return await self._past.answer(
            asked.request, asked.target, client.socket, admission, request_id
        )


class GrantHandlers:
    """Grants: whom a kernel's owner lets use or view it."""

    def __init__(self, body_bytes: int, kernels: KernelAccess) -> None:
        self._body_bytes = body_bytes
        self._kernels = kernels
        self.handlers: Mapping[str, Handler] = {
            "grants": self._list,
            "grant": self._grant,
            "revoke": self._revoke,
        }

    async def _list(self, asked: AgentRequest) -> web.Response:
        _, kernel = await self._kernels.administrable(asked.kernel_id, asked.ticket)
        return json_response([_grant_model(*each) for each in sorted(kernel.grants.items())])

    async def _grant(self, asked: AgentRequest) -> web.Response:
        client, kernel = await self._kernels.administrable(asked.kernel_id, asked.ticket)
        user = _grantee(asked)
        if user == kernel.owner:
            raise BadRequest("The kernel is this user's own.")
        grant = (await _decode_body(asked, self._body_bytes, GrantBody)).action
        await _change_grant(asked, client, GrantChange(principal=user, action=grant))
        return json_response(_grant_model(user, grant))

    async def _revoke(self, asked: AgentRequest) -> web.Response:
        client, _ = await self._kernels.administrable(asked.kernel_id, asked.ticket)
        await _change_grant(asked, client, GrantChange(principal=_grantee(asked), action=None))
        return _no_content()


class KernelspecHandlers:
    """Kernelspecs and the files beside them."""

    def __init__(self, kernelspecs: KernelSpecs) -> None:
        self._kernelspecs = kernelspecs
        self.handlers: Mapping[str, Handler] = {
            "kernelspecs": self._list,
            "kernelspec": self._show,
            "resource": self._resource,
        }

    async def _list(self, asked: AgentRequest) -> web.Response:
        rights = asked.ticket.rights
        # The gateway client asks for one spec of a user as /api/kernelspecs?user=U/name.
        for value in asked.target.values("user"):
            _, separator, name = value.partition("/")
            if separator:
                return json_response(await self._kernelspecs.get(name, rights))
        return json_response(await self._kernelspecs.all(rights))

    async def _show(self, asked: AgentRequest) -> web.Response:
        name = asked.parameters.kernelspec
        return json_response(await self._kernelspecs.get(name, asked.ticket.rights))

    async def _resource(self, asked: AgentRequest) -> web.StreamResponse:
        name, file = asked.parameters.kernelspec, asked.parameters.file
        path = await self._kernelspecs.resource(name, file, asked.ticket.rights)
        return web.FileResponse(path)


class SessionHandlers:
    """Jupyter's sessions: documents and their kernels."""

    def __init__(self, body_bytes: int, sessions: JupyterSessions) -> None:
        self._body_bytes = body_bytes
        self._sessions = sessions
        self.handlers: Mapping[str, Handler] = {
            "sessions": self._list,
            "new-session": self._create,
            "session": self._show,
            "change-session": self._change,
            "end-session": self._end,
        }

    async def _list(self, asked: AgentRequest) -> web.Response:
        return json_response(await self._sessions.all(asked.ticket))

    async def _create(self, asked: AgentRequest) -> web.Response:
        body = await _decode_body(asked, self._body_bytes, NewSession)
        model = await self._sessions.create(body, asked.ticket)
        return _created(model, f"/api/sessions/{model['id']}")

    async def _show(self, asked: AgentRequest) -> web.Response:
        return json_response(await self._sessions.get(asked.session_id, asked.ticket))

    async def _change(self, asked: AgentRequest) -> web.Response:
        body = await _decode_body(asked, self._body_bytes, SessionChange)
        return json_response(await self._sessions.change(asked.session_id, body, asked.ticket))

    async def _end(self, asked: AgentRequest) -> web.Response:
        await self._sessions.delete(asked.session_id, asked.ticket)
        return _no_content()


async def _decode_body(asked: AgentRequest, limit: int, struct_type: type[Body]) -> Body:
    """Return the request's body. Raises `BadRequest`, `TooLarge` and `UnsupportedMedia`."""
    data = await read_body(asked.request, limit, "body_bytes")
    try:
        return msgspec.json.decode(data.strip() or b"{}", type=struct_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error) if isinstance(error, msgspec.ValidationError) else "not JSON"
        raise BadRequest(f"The request body is wrong: {problem}.") from error


async def _change_grant(asked: AgentRequest, client: HolderClient, grant: GrantChange) -> None:
    await client.call("grant", asked.ticket.request_id, _GRANT_TIMEOUT, grant=grant)


def _grantee(asked: AgentRequest) -> str:
    """Return the user whom the path names, as ``authenticator:subject``. Raises `BadRequest`."""
    try:
        return str(parse_grantee(asked.parameters.user, asked.ticket.principal.authenticator))
    except ValueError as error:
        raise BadRequest(f"The user is malformed: {error}.") from None


def _grant_model(user: str, grant: Grant) -> dict[str, str]:
    return {"user": user, "action": grant.value}


def _no_content() -> web.Response:
    return web.Response(status=HTTPStatus.NO_CONTENT)


def _created(model: object, location: str) -> web.Response:
    response = json_response(model, status=HTTPStatus.CREATED)
    response.headers[hdrs.LOCATION] = location
    return response


def _permissions(asked: tuple[str, ...], rights: Rights) -> dict[str, Any]:
    """Return the granted ones of the permissions asked for, ``{resource: [action]}`` in JSON.

    Raises `BadRequest`.
    """
    if not asked or not asked[0]:
        return {"updatable_fields": []}
    try:
        wanted = msgspec.json.decode(asked[0], type=dict[str, list[str]])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest("permissions is a JSON object of lists of actions.") from error
    granted: dict[str, Any] = {
        resource: [action for action in actions if _is_granted(resource, action, rights)]
        for resource, actions in wanted.items()
    }
    return granted | {"updatable_fields": []}


def _is_granted(resource: str, action: str, rights: Rights) -> bool:
    takes = _PERMISSIONS.get(resource, {}).get(action, frozenset())
    return bool(rights.restricted_to(takes))
