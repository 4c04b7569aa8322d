from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.policy import Action
from relay.errors import MethodNotAllowed, NotFound
from relay.routing.routes import (
    MAX_NAME,
    Kind,
    Route,
    allowed_methods,
    is_kernel_id,
    is_kernelspec_name,
    match,
)

ID = "b7b0a5f2-1d5c-4a5e-9a4b-0c8f7d3e2a11"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]


def split(path: str) -> tuple[str, ...]:
    return tuple(path[1:].split("/"))


def takes(kind: Kind, *actions: str, besides: tuple[str, ...] = (), **names: Any) -> Route:
    return Route(kind, frozenset(actions), frozenset(besides), **names)


SEEN = ("view", "use")
ROUTES = {
    ("GET", "/api"): takes(Kind.VERSION, "list"),
    ("GET", "/api/status"): takes(Kind.STATUS, "list"),
    ("GET", "/api/me"): takes(
        Kind.ME, "list", besides=("start", "use", "view", "interrupt", "stop")
    ),
    ("GET", "/api/sessions"): takes(Kind.SESSIONS, "list", besides=SEEN),
    ("POST", "/api/sessions"): takes(Kind.NEW_SESSION, "start", besides=SEEN),
    ("GET", f"/api/sessions/{ID}"): takes(Kind.SESSION, "view", "use", session_id=ID),
    ("PATCH", f"/api/sessions/{ID}"): takes(
        Kind.CHANGE_SESSION, "start", besides=(*SEEN, "stop"), session_id=ID
    ),
    ("DELETE", f"/api/sessions/{ID}"): takes(Kind.END_SESSION, "stop", besides=SEEN, session_id=ID),
    ("GET", "/api/kernels"): takes(Kind.KERNELS, "list", besides=SEEN),
    ("POST", "/api/kernels"): takes(Kind.START, "start"),
    ("GET", f"/api/kernels/{ID}"): takes(Kind.KERNEL, "view", "use", kernel_id=ID),
    ("DELETE", f"/api/kernels/{ID}"): takes(Kind.STOP, "stop", besides=SEEN, kernel_id=ID),
    ("POST", f"/api/kernels/{ID}/interrupt"): takes(
        Kind.INTERRUPT, "interrupt", besides=SEEN, kernel_id=ID
    ),
    ("POST", f"/api/kernels/{ID}/restart"): takes(Kind.RESTART, "stop", besides=SEEN, kernel_id=ID),
    ("GET", f"/api/kernels/{ID}/channels"): takes(Kind.CHANNELS, "view", "use", kernel_id=ID),
    ("GET", f"/api/kernels/{ID}/messages"): takes(Kind.MESSAGES, "view", "use", kernel_id=ID),
    ("GET", f"/api/kernels/{ID}/grants"): takes(
        Kind.GRANTS, "use", besides=("view",), kernel_id=ID
    ),
    ("PUT", f"/api/kernels/{ID}/grants/token:bob"): takes(
        Kind.GRANT, "use", besides=("view",), kernel_id=ID, user="token:bob"
    ),
    ("DELETE", f"/api/kernels/{ID}/grants/token:bob"): takes(
        Kind.REVOKE, "use", besides=("view",), kernel_id=ID, user="token:bob"
    ),
    ("GET", "/api/kernelspecs"): takes(Kind.KERNELSPECS, "list", besides=("start",)),
    ("GET", "/api/kernelspecs/python3"): takes(
        Kind.KERNELSPEC, "list", besides=("start",), name="python3"
    ),
    ("GET", "/kernelspecs/python3/logo-64x64.png"): takes(
        Kind.RESOURCE, "list", besides=("start",), name="python3", file=("logo-64x64.png",)
    ),
    ("GET", "/kernelspecs/ir/a/b c/d.js"): takes(
        Kind.RESOURCE, "list", besides=("start",), name="ir", file=("a", "b c", "d.js")
    ),
}
HEADLESS = {f"/api/kernels/{ID}/channels"}  # a WebSocket handshake is a GET


@pytest.mark.parametrize(("request_line", "route"), ROUTES.items())
def test_every_route(request_line: tuple[str, str], route: Route) -> None:
    method, path = request_line
    assert match(method, split(path)) == route
    if method == "GET" and path not in HEADLESS:
        assert match("HEAD", split(path)) == route


def test_every_kind_has_a_route_and_every_route_takes_an_action() -> None:
    assert {route.kind for route in ROUTES.values()} == set(Kind)
    for route in ROUTES.values():
        assert route.actions
        assert route.actions | route.besides <= set(Action)
        # What it takes needs no second mention, and admin is asked of nobody.
        assert not route.actions & route.besides
        assert Action.ADMIN not in route.actions | route.besides


def test_who_may_only_list_or_view_changes_nothing() -> None:
    looks = [route for route in ROUTES.items() if route[1].actions & {"list", "view"}]
    assert {method for (method, _), _ in looks} == {"GET"}


@pytest.mark.parametrize("user", ["bob", "corp:al ice", "token:b\u00f6b", "...", "grants"])
def test_to_whom_a_kernel_is_granted_is_not_judged_here(user: str) -> None:
    route = match("PUT", ("api", "kernels", ID, "grants", user))
    assert (route.kernel_id, route.user) == (ID, user)


@pytest.mark.parametrize("path", dict.fromkeys(path for _, path in ROUTES))
@pytest.mark.parametrize("method", METHODS)
def test_every_other_method(method: str, path: str) -> None:
    allowed = {m for m, p in ROUTES if p == path}
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


@pytest.mark.parametrize(
    "text", [ID, ID.upper(), "a-b-c-d-e", "a_1-B-c-d-e", "1-2-3-4-" + "x" * 56]
)
def test_kernel_ids(text: str) -> None:
    assert is_kernel_id(text)
    assert match("GET", ("api", "kernels", text)).kernel_id == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "----",
        "a-b-c-d",
        "a-b-c-d-",
        "-a-b-c-d",
        "a-b-c-d-e-f",
        "a--b-c-d",
        "a-b-c-d-e\n",
        "a-b-c-d-e ",
        "a-b-c-d-\u00e9",
        "a-b-c-d-\u0663",
        "a-b-c-d-\uff45",
        "a-b-c-d-.",
        "a-b-c-d-..",
        "a-b-c-d-e/f",
        "../a-b-c-d-e",
        "a.b-c-d-e-f",
        "a-b-c-d-e\0",
        "1-2-3-4-" + "x" * 57,
        ID.replace("-", ""),
        "{" + ID + "}",
    ],
)
def test_not_kernel_ids(text: str) -> None:
    assert not is_kernel_id(text)
    with pytest.raises(NotFound):
        match("GET", ("api", "kernels", text))


@pytest.mark.parametrize(
    "name", ["python3", "ir", "xeus-cpp.17", "My_Kernel", ".x", "a" * MAX_NAME]
)
def test_kernelspec_names(name: str) -> None:
    assert is_kernelspec_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "...",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "\u00e4",
        "a" * (MAX_NAME + 1),
        "a%",
    ],
)
def test_not_kernelspec_names(name: str) -> None:
    assert not is_kernelspec_name(name)


WORDS = st.sampled_from(
    ["api", "kernels", "kernelspecs", ID, "channels", "restart", "grants", "python3", ""]
)


@given(st.sampled_from(METHODS), st.lists(WORDS | st.text(max_size=8), max_size=6))
def test_nothing_but_the_table_matches(method: str, words: list[str]) -> None:
    try:
        route = match(method, tuple(words))
    except (NotFound, MethodNotAllowed):
        return
    assert route.actions
    assert route.actions | route.besides <= set(Action)
    assert route.kernel_id is None or route.kernel_id == words[2]
    assert (route.kernel_id is None) == (words[:2] != ["api", "kernels"] or len(words) == 2)
    assert route.name is None or route.name in words
    assert (route.user is None) == (route.kind not in {Kind.GRANT, Kind.REVOKE})
    assert route.user is None or [route.user] == words[4:]
    assert (route.kind is Kind.RESOURCE) == bool(route.file)
