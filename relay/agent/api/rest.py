"""The agent's REST API: what Jupyter's clients ask of a server, with the statuses they expect."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
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
from relay.auth.ownership import SEEING, Grant, grantee
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket
from relay.bridge.records import GrantChange
from relay.config import AgentConfig
from relay.errors import BadRequest
from relay.http import json_response, read_body
from relay.model import jupyter_time
from relay.routing.paths import Target
from relay.routing.routes import Kind, Route

Body = TypeVar("Body", bound=msgspec.Struct)

_RESOURCES: Final[dict[str, dict[str, frozenset[Action]]]] = {
    "kernels": {
        "read": SEEING,
        "write": frozenset({Action.START, Action.STOP, Action.INTERRUPT}),
        "execute": frozenset({Action.USE}),
    },
    "kernelspecs": {"read": frozenset({Action.START})},
    "sessions": {"read": SEEING, "write": frozenset({Action.START, Action.STOP})},
}
"""What Jupyter calls the things that this API has, what may be done with them, and which of our
actions, any one of them, that takes."""


_GRANT_TIMEOUT: Final = 5.0
"""Seconds that a holder has to note a grant."""


class GrantBody(msgspec.Struct, frozen=True):
    """The body of ``PUT …/grants/<user>``."""

    action: Grant


class _Asked(NamedTuple):
    request: web.BaseRequest
    target: Target
    route: Route
    ticket: Ticket

    @property
    def kernel_id(self) -> str:
        return self.route.kernel_id or ""

    @property
    def session_id(self) -> str:
        return self.route.session_id or ""


class Rest:
    """Performs what the edge has authorised."""

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
        self._config = config
        self._kernels = kernels
        self._kernelspecs = kernelspecs
        self._starts = starts
        self._sessions = sessions
        self._past = past
        self._started = time.time()
        self._answers: dict[Kind, Callable[[_Asked], Awaitable[web.StreamResponse]]] = {
            Kind.VERSION: self._version,
            Kind.STATUS: self._status,
            Kind.ME: self._me,
            Kind.KERNELS: self._list,
            Kind.START: self._start,
            Kind.KERNEL: self._show,
            Kind.STOP: self._stop,
            Kind.MESSAGES: self._messages,
            Kind.GRANTS: self._grants,
            Kind.GRANT: self._grant,
            Kind.REVOKE: self._revoke,
            Kind.INTERRUPT: self._interrupt,
            Kind.RESTART: self._restart,
            Kind.KERNELSPECS: self._list_kernelspecs,
            Kind.KERNELSPEC: self._show_kernelspec,
            Kind.RESOURCE: self._resource,
            Kind.SESSIONS: self._list_sessions,
            Kind.NEW_SESSION: self._new_session,
            Kind.SESSION: self._show_session,
            Kind.CHANGE_SESSION: self._change_session,
            Kind.END_SESSION: self._end_session,
        }

    async def handle(
        self, request: web.BaseRequest, target: Target, route: Route, ticket: Ticket
    ) -> web.StreamResponse:
        """Answer one request. Raises `RelayError`."""
        return await self._answers[route.kind](_Asked(request, target, route, ticket))

    async def _version(self, _: _Asked) -> web.Response:
        return json_response({"version": __version__})

    async def _list(self, asked: _Asked) -> web.Response:
        return json_response([line.model for line in await self._kernels.all(asked.ticket)])

    async def _kernel(self, asked: _Asked) -> HolderClient:
        """The kernel that the path names. Raises `NotFound` and `Forbidden`."""
        actions = frozenset(map(Action, asked.route.actions))
        return await self._kernels.get(asked.kernel_id, asked.ticket, actions)

    async def _show(self, asked: _Asked) -> web.Response:
        return json_response((await self._kernel(asked)).model)

    async def _messages(self, asked: _Asked) -> web.StreamResponse:
        line, admission = await self._kernels.admit(asked.kernel_id, asked.ticket)
        request_id = asked.ticket.request_id
        return await self._past.answer(
            asked.request, asked.target, line.socket, admission, request_id
        )

    async def _grants(self, asked: _Asked) -> web.Response:
        _, kernel = await self._kernels.in_charge(asked.kernel_id, asked.ticket)
        return json_response([_grant_model(*each) for each in sorted(kernel.grants.items())])

    async def _grant(self, asked: _Asked) -> web.Response:
        line, kernel = await self._kernels.in_charge(asked.kernel_id, asked.ticket)
        user = _grantee(asked)
        if user == kernel.owner:
            raise BadRequest("The kernel is this user's own.")
        grant = (await self._body(asked, GrantBody)).action
        await self._change_grant(asked, line, GrantChange(principal=user, action=grant))
        return json_response(_grant_model(user, grant))

    async def _revoke(self, asked: _Asked) -> web.Response:
        line, _ = await self._kernels.in_charge(asked.kernel_id, asked.ticket)
        await self._change_grant(asked, line, GrantChange(principal=_grantee(asked), action=None))
        return web.Response(status=204)

    async def _change_grant(self, asked: _Asked, line: HolderClient, grant: GrantChange) -> None:
        await line.call("grant", asked.ticket.request_id, _GRANT_TIMEOUT, grant=grant)

    async def _stop(self, asked: _Asked) -> web.Response:
        await self._kernels.stop(asked.kernel_id, asked.ticket)
        return web.Response(status=204)

    async def _start(self, asked: _Asked) -> web.Response:
        line = await self._starts.start(await self._body(asked, StartBody), asked.ticket)
        return _created(line.model, f"/api/kernels/{line.kernel_folder.kernel_id}")

    async def _interrupt(self, asked: _Asked) -> web.Response:
        line = await self._kernel(asked)
        limit = self._config.kernels.shutdown_timeout
        await line.call("interrupt", asked.ticket.request_id, limit)
        return web.Response(status=204)

    async def _restart(self, asked: _Asked) -> web.Response:
        line = await self._kernel(asked)
        settings = self._config.kernels
        limit = settings.launch_timeout + 2 * settings.shutdown_timeout
        await line.call("restart", asked.ticket.request_id, limit)
        return json_response(line.model)

    async def _list_kernelspecs(self, asked: _Asked) -> web.Response:
        rights = asked.ticket.rights
        # The gateway client asks for one spec of a user as /api/kernelspecs?user=U/name.
        for value in asked.target.values("user"):
            _, separator, name = value.partition("/")
            if separator:
                return json_response(await self._kernelspecs.get(name, rights))
        return json_response(await self._kernelspecs.all(rights))

    async def _show_kernelspec(self, asked: _Asked) -> web.Response:
        name = asked.route.name or ""
        return json_response(await self._kernelspecs.get(name, asked.ticket.rights))

    async def _resource(self, asked: _Asked) -> web.StreamResponse:
        name, file = asked.route.name or "", asked.route.file
        path = await self._kernelspecs.resource(name, file, asked.ticket.rights)
        return web.FileResponse(path)

    async def _status(self, asked: _Asked) -> web.Response:
        # One's own, not all that one may see: an admin's status is no sum over everybody.
        models = [line.model for line in await self._kernels.own(asked.ticket)]
        active = [model.last_activity for model in models]
        return json_response(
            {
                "started": jupyter_time(self._started),
                "last_activity": max([jupyter_time(self._started), *active]),
                "kernels": len(models),
                "connections": sum(model.connections for model in models),
            }
        )

    async def _me(self, asked: _Asked) -> web.Response:
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

    async def _list_sessions(self, asked: _Asked) -> web.Response:
        return json_response(await self._sessions.all(asked.ticket))

    async def _new_session(self, asked: _Asked) -> web.Response:
        model = await self._sessions.create(await self._body(asked, NewSession), asked.ticket)
        return _created(model, f"/api/sessions/{model['id']}")

    async def _show_session(self, asked: _Asked) -> web.Response:
        return json_response(await self._sessions.get(asked.session_id, asked.ticket))

    async def _change_session(self, asked: _Asked) -> web.Response:
        body = await self._body(asked, SessionChange)
        return json_response(await self._sessions.change(asked.session_id, body, asked.ticket))

    async def _end_session(self, asked: _Asked) -> web.Response:
        await self._sessions.delete(asked.session_id, asked.ticket)
        return web.Response(status=204)

    async def _body(self, asked: _Asked, struct_type: type[Body]) -> Body:
        data = await read_body(asked.request, self._config.body_bytes, "body_bytes")
        try:
            return msgspec.json.decode(data.strip() or b"{}", type=struct_type)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = str(error) if isinstance(error, msgspec.ValidationError) else "not JSON"
            raise BadRequest(f"The request body is wrong: {problem}.") from error


def _grantee(asked: _Asked) -> str:
    """Whom the path names, as ``authenticator:subject``. Raises `BadRequest`."""
    try:
        return str(grantee(asked.route.user or "", asked.ticket.principal.authenticator))
    except ValueError as error:
        raise BadRequest(f"The user is malformed: {error}.") from None


def _grant_model(user: str, grant: Grant) -> dict[str, str]:
    return {"user": user, "action": grant.value}


def _created(model: object, location: str) -> web.Response:
    response = json_response(model, status=201)
    response.headers[hdrs.LOCATION] = location
    return response


def _permissions(asked: tuple[str, ...], rights: Rights) -> dict[str, Any]:
    """Of the permissions asked for, as ``{resource: [action]}`` in JSON, those that there are."""
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
    takes = _RESOURCES.get(resource, {}).get(action, frozenset())
    return bool(rights.among(takes))
