"""What can be asked for, and by whom."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.policy import Action
from relay.errors import MethodNotAllowed, NotFound
from relay.routing.clusters import RESERVED
from relay.routing.paths import Target, parse_target
from relay.routing.routes import ROUTES
from relay.routing.table import (
    MatchedRoute,
    PathParameters,
    Retry,
    RouteTable,
    Scope,
    TimeoutClass,
)

ID = "b7b0a5f2-1d5c-4a5e-9a4b-0c8f7d3e2a11"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]


def split(path: str) -> tuple[str, ...]:
    return tuple(path[1:].split("/"))


def match(method: str, segments: tuple[str, ...]) -> MatchedRoute:
    return ROUTES.match(Scope.CLUSTER, method, segments)


def allowed_methods(segments: tuple[str, ...]) -> tuple[str, ...]:
    return ROUTES.allowed_methods(Scope.CLUSTER, segments)


class Wanted(NamedTuple):
    """What a request has to be understood as."""

    name: str
    actions: frozenset[str]
    optional_actions: frozenset[str]
    parameters: PathParameters


def takes(name: str, *actions: str, besides: tuple[str, ...] = (), **named: Any) -> Wanted:
    return Wanted(name, frozenset(actions), frozenset(besides), PathParameters(**named))


def understood(found: MatchedRoute) -> Wanted:
    route = found.route
    return Wanted(route.name, route.actions, route.optional_actions, found.parameters)


SEEN = ("view", "use")
REQUESTS = {
    ("GET", "/api"): takes("version", "list"),
    ("GET", "/api/status"): takes("status", "list"),
    ("GET", "/api/me"): takes("me", "list", besides=("start", "use", "view", "interrupt", "stop")),
    ("GET", "/api/sessions"): takes("sessions", "list", besides=SEEN),
    ("POST", "/api/sessions"): takes("new-session", "start", besides=SEEN),
    ("GET", f"/api/sessions/{ID}"): takes("session", "view", "use", session_id=ID),
    ("PATCH", f"/api/sessions/{ID}"): takes(
        "change-session", "start", besides=(*SEEN, "stop"), session_id=ID
    ),
    ("DELETE", f"/api/sessions/{ID}"): takes("end-session", "stop", besides=SEEN, session_id=ID),
    ("GET", "/api/kernels"): takes("kernels", "list", besides=SEEN),
    ("POST", "/api/kernels"): takes("start", "start"),
    ("GET", f"/api/kernels/{ID}"): takes("kernel", "view", "use", kernel_id=ID),
    ("DELETE", f"/api/kernels/{ID}"): takes("stop", "stop", besides=SEEN, kernel_id=ID),
    ("POST", f"/api/kernels/{ID}/interrupt"): takes(
        "interrupt", "interrupt", besides=SEEN, kernel_id=ID
    ),
    ("POST", f"/api/kernels/{ID}/restart"): takes("restart", "stop", besides=SEEN, kernel_id=ID),
    ("GET", f"/api/kernels/{ID}/channels"): takes("channels", "view", "use", kernel_id=ID),
    ("GET", f"/api/kernels/{ID}/messages"): takes("messages", "view", "use", kernel_id=ID),
    ("GET", f"/api/kernels/{ID}/grants"): takes("grants", "use", besides=("view",), kernel_id=ID),
    ("PUT", f"/api/kernels/{ID}/grants/token:bob"): takes(
        "grant", "use", besides=("view",), kernel_id=ID, user="token:bob"
    ),
    ("DELETE", f"/api/kernels/{ID}/grants/token:bob"): takes(
        "revoke", "use", besides=("view",), kernel_id=ID, user="token:bob"
    ),
    ("GET", "/api/kernelspecs"): takes("kernelspecs", "list", besides=("start",)),
    ("GET", "/api/kernelspecs/python3"): takes(
        "kernelspec", "list", besides=("start",), kernelspec="python3"
    ),
    ("GET", "/kernelspecs/python3/logo-64x64.png"): takes(
        "resource", "list", besides=("start",), kernelspec="python3", file=("logo-64x64.png",)
    ),
    ("GET", "/kernelspecs/ir/a/b c/d.js"): takes(
        "resource", "list", besides=("start",), kernelspec="ir", file=("a", "b c", "d.js")
    ),
}
HEADLESS = {f"/api/kernels/{ID}/channels"}  # a WebSocket handshake is a GET


@pytest.mark.parametrize(("request_line", "wanted"), REQUESTS.items())
def test_every_route(request_line: tuple[str, str], wanted: Wanted) -> None:
    method, path = request_line
    assert understood(match(method, split(path))) == wanted
    if method == "GET" and path not in HEADLESS:
        assert understood(match("HEAD", split(path))) == wanted


def test_every_route_is_reachable_and_takes_an_action() -> None:
    routes = ROUTES.of(Scope.CLUSTER)
    assert {wanted.name for wanted in REQUESTS.values()} == {route.name for route in routes}
    for route in routes:
        assert route.actions
        assert route.actions | route.optional_actions <= set(Action)
        # What it takes needs no second mention, and admin is asked of nobody.
        assert not route.actions & route.optional_actions
        assert Action.ADMIN not in route.actions | route.optional_actions


def test_who_may_only_list_or_view_changes_nothing() -> None:
    looks = [route for route in ROUTES.of(Scope.CLUSTER) if route.actions & {"list", "view"}]
    assert {route.method for route in looks} == {"GET"}
    for route in looks:
        assert not route.audit or route.upgrades


def test_no_two_routes_take_one_request() -> None:
    alone = {route.name: RouteTable([route]) for route in ROUTES.of(Scope.CLUSTER)}
    for (method, path), wanted in REQUESTS.items():
        names = []
        for name, table in alone.items():
            with contextlib.suppress(NotFound, MethodNotAllowed):
                table.match(Scope.CLUSTER, method, split(path))
                names.append(name)
        assert names == [wanted.name]


@pytest.mark.parametrize("user", ["bob", "corp:al ice", "token:b\u00f6b", "...", "grants"])
def test_to_whom_a_kernel_is_granted_is_not_judged_here(user: str) -> None:
    _, named = match("PUT", ("api", "kernels", ID, "grants", user))
    assert (named.kernel_id, named.user) == (ID, user)


@pytest.mark.parametrize("path", dict.fromkeys(path for _, path in REQUESTS))
@pytest.mark.parametrize("method", METHODS)
def test_every_other_method(method: str, path: str) -> None:
    allowed = {m for m, p in REQUESTS if p == path}
    if "GET" in allowed and path not in HEADLESS:
        allowed.add("HEAD")
    assert set(allowed_methods(split(path))) == allowed
    if method in allowed:
        match(method, split(path))
    else:
        with pytest.raises(MethodNotAllowed):
            match(method, split(path))


@pytest.mark.parametrize("method", ["", "get", "Get", "GET ", " GET", "GE", "POST\n", "\0"])
def test_methods_are_compared_exactly(method: str) -> None:
    with pytest.raises(MethodNotAllowed):
        match(method, ("api", "kernels"))


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/",
        "/API",
        "/Api",
        "/ap",
        "/apix",
        "/api/kernels/",
        "/api/Kernels",
        "/api/kernel",
        "/api/kernelsx",
        "/api/contents/x",
        "/api/terminals",
        "/api/api",
        "/api/kernels/x",
        "/api/kernels/..",
        f"/api/kernels/{ID}/",
        f"/api/kernels/{ID}/Channels",
        f"/api/kernels/{ID}/stop",
        f"/api/kernels/{ID}/restart/",
        f"/api/kernels/{ID}/channels/x",
        f"/api/kernels/{ID}/interrupt/restart",
        f"/api/kernels/{ID}/Grants",
        f"/api/kernels/{ID}/grant",
        f"/api/kernels/{ID}/grants/",
        f"/api/kernels/{ID}/grants/token:bob/",
        f"/api/kernels/{ID}/grants/token:bob/x",
        f"/api/kernels/{ID}/grants//token:bob",
        f"/api/kernels/{ID}/Grants/token:bob",
        f"/api/kernels/{ID}/messages/token:bob",
        "/api/kernels/x/grants",
        "/api/kernels/x/grants/token:bob",
        "/api/kernels/grants/token:bob",
        f"/api/sessions/{ID}/grants",
        f"/api/sessions/{ID}/grants/token:bob",
        f"/api/kernels/{ID}/{ID}",
        f"/api/kernels/{ID[:-13]}",
        f"/api/kernels/{ID}-x",
        f"/api/kernels/{ID}\n",
        f"/api/kernels/ {ID}",
        f"/api/kernels//{ID}",
        f"/kernels/{ID}",
        "/api/kernelspecs/",
        "/api/kernelspecs/..",
        "/api/kernelspecs/.",
        "/api/kernelspecs/a b",
        "/api/kernelspecs/python3/",
        "/api/kernelspecs/python3/x",
        "/api/kernelspecs/pyth\u00f6n",
        "/api/kernelspecs/python3\n",
        "/kernelspecs",
        "/kernelspecs/python3",
        "/kernelspecs/python3/",
        "/kernelspecs/python3/a//b",
        "/kernelspecs/python3/a/",
        "/kernelspecs/../x",
        "/kernelspecs/python3/..",
        "/kernelspecs/python3/../../etc/passwd",
        "/kernelspecs/python3/./kernel.json",
        "/tree",
        "/login",
        "/hub/api",
        "/alpha/api",
    ],
)
def test_no_such_path(method: str, path: str) -> None:
    with pytest.raises(NotFound):
        match(method, split(path))
    with pytest.raises(NotFound):
        allowed_methods(split(path))


def test_no_path_at_all() -> None:
    with pytest.raises(NotFound):
        match("GET", ())


@pytest.mark.parametrize("file", ["a/b", "../x", "a\\b", "..\\x", "a\0", "/etc/passwd", "", ".."])
def test_a_resource_segment_that_was_decoded_too_often(file: str) -> None:
    with pytest.raises(NotFound):
        match("GET", ("kernelspecs", "python3", "js", file))


WORDS = st.sampled_from(
    ["api", "kernels", "kernelspecs", ID, "channels", "restart", "grants", "python3", ""]
)


@given(st.sampled_from(METHODS), st.lists(WORDS | st.text(max_size=8), max_size=6))
def test_nothing_but_the_table_matches(method: str, words: list[str]) -> None:
    try:
        route, named = match(method, tuple(words))
    except (NotFound, MethodNotAllowed):
        return
    assert route.actions
    assert route.actions | route.optional_actions <= set(Action)
    assert not named.kernel_id or named.kernel_id == words[2]
    assert (not named.kernel_id) == (words[:2] != ["api", "kernels"] or len(words) == 2)
    assert not named.kernelspec or named.kernelspec in words
    assert (not named.user) == (route.name not in {"grant", "revoke"})
    assert not named.user or [named.user] == words[4:]
    assert (route.name == "resource") == bool(named.file)


# What the edge answers itself


def is_probe(target: Target) -> bool:
    found = {method: ROUTES.find(Scope.EDGE, method, target.segments) for method in (*METHODS, "X")}
    names = {each.route.name if each else "" for each in found.values()}
    # Whatever the method is: a client that has shown nothing yet learns nothing by it.
    assert len(names) == 1
    return names.pop().startswith("vscode-")


@pytest.mark.parametrize("raw", ["/alpha/tree?", "/alpha/tree", "/nowhere/login?", "/b/hub/api"])
def test_probes_of_vscode(raw: str) -> None:
    assert is_probe(parse_target(raw))


@pytest.mark.parametrize(
    "raw",
    [
        "/",
        "/alpha",
        "/alpha/",
        "/tree",
        "/login",
        "/hub/api",
        "/alpha/tree/",
        "/alpha/tree/x",
        "/alpha/Tree",
        "/alpha/treex",
        "/alpha/login/",
        "/alpha/login/api",
        "/alpha/hub",
        "/alpha/hub/",
        "/alpha/hub/api/",
        "/alpha/hub/api/user",
        "/alpha/hub/login",
        "/alpha/api",
        "/alpha/api/kernels",
        "/alpha/api/tree",
        "/alpha/beta/tree",
        "/alpha/api?/tree",
        "/alpha/api?tree",
        "/?/alpha/tree",
        "/api/tree",
        "/hub/tree",
        "/t/login",
        "/Alpha/tree",
        "/http/tree",
        "/metrics/login",
    ],
)
def test_everything_else_is_no_probe(raw: str) -> None:
    assert not is_probe(parse_target(raw))


@pytest.mark.parametrize("segments", [("", "tree"), ("alpha/tree",), ("alpha", "hub/api")])
def test_segments_that_only_look_like_a_probe(segments: tuple[str, ...]) -> None:
    assert not is_probe(Target(segments, "/alpha/tree", ""))


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_at_the_root_alone(path: str) -> None:
    found = ROUTES.find(Scope.ROOT, "GET", split(path))
    assert found is not None
    assert found.route.name == path[1:]
    for other in (f"{path}/", f"/alpha{path}", f"{path}/x", path.upper()):
        assert ROUTES.find(Scope.ROOT, "GET", split(other)) is None
    assert ROUTES.find(Scope.EDGE, "GET", split(path)) is None


def test_no_cluster_hides_a_route_of_the_edge() -> None:
    for route in ROUTES.of(Scope.ROOT, Scope.ALL_CLUSTERS):
        assert route.pattern.partition("/")[0] in RESERVED, route


# How routes are forwarded


def test_what_changes_something_is_repeated_only_where_that_does_no_harm() -> None:
    by_retry: dict[Retry, set[str]] = {}
    for route in ROUTES.of(Scope.CLUSTER):
        if route.method != "GET":
            by_retry.setdefault(route.retry, set()).add(route.name)
    assert by_retry == {
        Retry.ONCE: {"interrupt", "restart"},
        Retry.IDEMPOTENT: {"stop", "end-session", "grant", "revoke"},
        Retry.START: {"start", "new-session", "change-session"},
    }


def test_what_only_reads_is_repeated() -> None:
    for route in ROUTES.of(Scope.CLUSTER):
        if route.method == "GET" and not route.upgrades:
            assert route.retry is Retry.IDEMPOTENT, route


def test_which_routes_start_or_end_kernels() -> None:
    slow = {route.name for route in ROUTES.routes if route.timeout is TimeoutClass.START}
    assert slow == {"start", "new-session", "change-session", "stop", "end-session", "restart"}


def test_agents_are_told_of_no_other_parameters() -> None:
    assert {route.name: route.query for route in ROUTES.routes if route.query} == {
        "kernelspecs": ("user",),
        "me": ("permissions",),
        "messages": ("since", "limit", "follow"),
    }


def test_which_answers_are_special() -> None:
    assert [route.name for route in ROUTES.routes if route.upgrades] == ["channels"]
    assert [route.name for route in ROUTES.routes if route.streams] == ["messages"]
    assert [route.name for route in ROUTES.routes if route.links] == ["kernelspecs", "kernelspec"]
