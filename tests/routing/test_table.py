from __future__ import annotations

import pytest

from relay.errors import MethodNotAllowed, NotFound
from relay.routing.table import ANY_METHOD, PathParameters, Retry, Route, RouteTable, Scope

ID = "b7b0a5f2-1d5c-4a5e-9a4b-0c8f7d3e2a11"
SHOW = Route(name="show", method="GET", pattern="things/{kernel_id}")
DROP = Route(name="drop", method="DELETE", pattern="things/{kernel_id}", retry=Retry.START)
JOIN = Route(name="join", method="GET", pattern="things/{kernel_id}/join", upgrades=True)
FILE = Route(name="file", method="GET", pattern="files/{kernelspec}/{file}")
ALL = Route(name="all", scope=Scope.ALL_CLUSTERS, method="GET", pattern="things/{kernel_id}")
PING = Route(name="ping", scope=Scope.ROOT, method=ANY_METHOD, pattern="ping")
TABLE = RouteTable([SHOW, DROP, JOIN, FILE, ALL, PING])


def test_a_route_is_found_by_scope_method_and_path() -> None:
    segments = ("things", ID)
    named = PathParameters(kernel_id=ID)
    assert TABLE.match(Scope.CLUSTER, "GET", segments) == (SHOW, named)
    assert TABLE.match(Scope.CLUSTER, "DELETE", segments) == (DROP, named)
    assert TABLE.match(Scope.ALL_CLUSTERS, "GET", segments) == (ALL, named)
    assert TABLE.find(Scope.EDGE, "GET", segments) is None
    with pytest.raises(NotFound):
        TABLE.match(Scope.ROOT, "GET", segments)


def test_head_goes_with_get_but_not_with_an_upgrade() -> None:
    assert TABLE.match(Scope.CLUSTER, "HEAD", ("things", ID)).route is SHOW
    with pytest.raises(MethodNotAllowed, match=r"takes GET$"):
        TABLE.match(Scope.CLUSTER, "HEAD", ("things", ID, "join"))
    assert TABLE.allowed_methods(Scope.CLUSTER, ("things", ID)) == ("GET", "HEAD", "DELETE")
    assert TABLE.allowed_methods(Scope.CLUSTER, ("things", ID, "join")) == ("GET",)


@pytest.mark.parametrize("method", ["GET", "POST", "BREW", ""])
def test_some_routes_take_any_method(method: str) -> None:
    assert TABLE.match(Scope.ROOT, method, ("ping",)).route is PING


def test_another_method_is_told_from_another_path() -> None:
    with pytest.raises(MethodNotAllowed, match="GET, HEAD, DELETE"):
        TABLE.find(Scope.CLUSTER, "POST", ("things", ID))
    assert TABLE.find(Scope.CLUSTER, "POST", ("things", "x")) is None
    with pytest.raises(NotFound):
        TABLE.allowed_methods(Scope.CLUSTER, ("things", "x"))


@pytest.mark.parametrize(
    ("segments", "file"),
    [
        (("files", "ir", "a"), ("a",)),
        (("files", "ir", "a", "b c"), ("a", "b c")),
        (("files", "ir"), None),
        (("files", "ir", ""), None),
        (("files", "ir", "a", ".."), None),
        (("files", "..", "a"), None),
        (("files",), None),
        ((), None),
    ],
)
def test_a_file_is_the_rest_of_the_path(
    segments: tuple[str, ...], file: tuple[str, ...] | None
) -> None:
    found = TABLE.find(Scope.CLUSTER, "GET", segments)
    assert (None if found is None else found.parameters.file) == file


def test_routes_by_scope() -> None:
    assert TABLE.of(Scope.ROOT, Scope.ALL_CLUSTERS) == (ALL, PING)
    assert TABLE.of(Scope.EDGE) == ()


def test_the_edge_chooses_the_id_of_what_is_started() -> None:
    assert [route.name for route in TABLE.routes if route.starts_kernel] == ["drop"]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (Route(name="show", method="GET", pattern="others"), "one name"),
        (Route(name="other", method="GET", pattern="things/{kernel_id}"), "two routes take GET"),
        (Route(name="other", method="HEAD", pattern="things/{kernel_id}"), "two routes take HEAD"),
        (Route(name="other", method="GET", pattern="things/{id}"), "unknown placeholder"),
    ],
)
def test_a_table_that_is_ambiguous_is_none(second: Route, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RouteTable([SHOW, second])
