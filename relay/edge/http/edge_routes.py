"""The routes that the edge answers itself, without credentials."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from aiohttp import web

from relay.edge.http.audit import AuditTrail
from relay.edge.http.context import EarlyResponse
from relay.errors import NotFound, NotReady
from relay.routing.routes import ROUTES
from relay.routing.table import Scope


class EdgeRoutes:
    """Health, and what VS Code probes for. ``ready`` tells whether new clients are welcome."""

    def __init__(self, audit: AuditTrail) -> None:
        self._audit = audit
        self.ready = True
        self.handlers: Mapping[str, Callable[[], Awaitable[web.Response]]] = {
            "healthz": self._healthz,
            "readyz": self._readyz,
            "vscode-tree": self._no_such_resource,
            "vscode-login": self._no_such_resource,
            "vscode-hub": self._no_such_resource,
        }
        """By the name of their route."""

    async def answer(self, scope: Scope, method: str, segments: tuple[str, ...]) -> None:
        """Answer the request by raising, where it is for a route of the edge.

        Raises:
            EarlyResponse: it has the response.
            RelayError: the response is an error.
        """
        found = ROUTES.find(scope, method, segments)
        if found is not None:
            raise EarlyResponse(await self.handlers[found.route.name]())

    async def _healthz(self) -> web.Response:
        return web.Response(status=HTTPStatus.OK)

    async def _readyz(self) -> web.Response:
        if not (self.ready and await self._audit.works()):
            raise NotReady("This edge takes no new clients.")
        return web.Response(status=HTTPStatus.OK)

    async def _no_such_resource(self) -> web.Response:
        raise NotFound("no such resource")
