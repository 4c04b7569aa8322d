from __future__ import annotations

import pytest

from relay.auth.audit import AuditNote
from relay.config import AuditSettings
from relay.edge.http.audit import AuditTrail
from relay.edge.http.context import EarlyResponse
from relay.edge.http.edge_routes import EdgeRoutes
from relay.errors import NotFound, NotReady
from relay.routing.routes import ROUTES
from relay.routing.table import Scope


def edge_routes(*, log_works: bool = True) -> EdgeRoutes:
    async def write(_: AuditNote | None) -> bool:
        return log_works

    return EdgeRoutes(AuditTrail(AuditSettings(file="a"), write))


def test_every_route_of_the_edge_has_one_handler() -> None:
    names = [route.name for route in ROUTES.of(Scope.ROOT, Scope.EDGE)]
    assert sorted(names) == sorted(edge_routes().handlers)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_an_edge_that_lives_says_so_whatever_else_is_wrong(method: str) -> None:
    routes = edge_routes(log_works=False)
    routes.ready = False
    with pytest.raises(EarlyResponse) as caught:
        await routes.answer(Scope.ROOT, method, ("healthz",))
    assert caught.value.response.status == 200


async def test_an_edge_is_ready_while_it_takes_clients_and_can_log() -> None:
    with pytest.raises(EarlyResponse) as caught:
        await edge_routes().answer(Scope.ROOT, "GET", ("readyz",))
    assert caught.value.response.status == 200
    with pytest.raises(NotReady):
        await edge_routes(log_works=False).answer(Scope.ROOT, "GET", ("readyz",))
    stopping = edge_routes()
    stopping.ready = False
    with pytest.raises(NotReady):
        await stopping.answer(Scope.ROOT, "GET", ("readyz",))


async def test_probes_find_nothing() -> None:
    for segments in (("alpha", "tree"), ("absent", "login"), ("alpha", "hub", "api")):
        with pytest.raises(NotFound):
            await edge_routes().answer(Scope.EDGE, "GET", segments)


async def test_other_requests_go_on() -> None:
    for segments in (("alpha", "api"), ("",), ("healthz", "x")):
        await edge_routes().answer(Scope.ROOT, "GET", segments)
        await edge_routes().answer(Scope.EDGE, "GET", segments)
