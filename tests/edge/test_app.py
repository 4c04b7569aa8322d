"""What the edge lets through, and what it says of the bearer when it does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from relay.auth.chain import Chain
from relay.auth.origin import Origins
from relay.auth.policy import Action, Policy, Rights, Rule
from relay.auth.tokens import TokenStore, generate
from relay.edge.app import App
from relay.edge.upstream import Bearer, Upstream
from relay.http import ANSWER_HEADERS
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal
from tests.edge.test_parent import CONFIG

NOW = 1_800_000_000.0
TOKEN, RECORD = generate("ada", NOW)
ADA = Principal("token", "ada")
KERNEL = "/alpha/api/kernels/0a0a0a0a-0000-4000-8000-000000000000"


class Knows:
    """One token, with what else is known of its bearer."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        if TokenStore([RECORD]).authenticate(credential, now) is None:
            return None
        return Identity(**{"principal": ADA, "via": "token", **self.fields})


class Passed(NamedTuple):
    """A request that an agent would be asked."""

    cluster: str
    kind: str
    bearer: Bearer


class Desk:
    """REST and channels in one, behind the real entry."""

    def __init__(
        self, *actions: Action, identity: Any = None, origins: Sequence[str] = (), **rule: Any
    ) -> None:
        self.passed: list[Passed] = []
        metrics, signer, itself = EdgeMetrics.local(), Any, self
        fakes: dict[str, Any] = {"rest": itself, "channels": itself}
        rules = [Rule(**{"authenticator": "token", "actions": frozenset(actions), **rule})]
        self.app = App(
            chain=Chain([Knows(**(identity or {}))]),
            policy=Policy(rules),
            upstream=Upstream(CONFIG, signer, metrics=metrics),  # type: ignore[arg-type]
            metrics=metrics,
            origins=Origins(origins),
            clock=lambda: NOW,
            **fakes,
        )

    async def handle(self, _: web.BaseRequest, **asked: Any) -> web.Response:
        kind = asked["route"].kind if "route" in asked else "channels"
        self.passed.append(Passed(asked["cluster"], kind, asked["bearer"]))
        return web.Response(status=299)

    async def ask(self, method: str, path: str, token: str = TOKEN) -> int:
        request = make_mocked_request(
            method, path, headers={"Host": "relay", "Authorization": f"token {token}"}
        )
        return (await self.app.handle_https(request)).status

    async def rights(self, method: str, path: str) -> Rights:
        """What is said of the bearer of a request that is let through."""
        assert await self.ask(method, path) == 299
        passed = self.passed.pop()
        assert passed.bearer.principal == ADA
        return passed.bearer.rights


EVERY = tuple(Action)
ADMIN = Action.ADMIN


@pytest.mark.parametrize(
    ("method", "path", "shown"),
    [
        ("GET", "/alpha/api", {"list"}),
        ("GET", "/alpha/api/kernels", {"list", "view", "use"}),
        ("POST", "/alpha/api/kernels", {"start"}),
        ("GET", KERNEL, {"view", "use"}),
        ("DELETE", KERNEL, {"stop"}),
        ("POST", f"{KERNEL}/interrupt", {"interrupt"}),
        ("POST", f"{KERNEL}/restart", {"stop"}),
        ("GET", f"{KERNEL}/channels", {"view", "use"}),
        ("GET", f"{KERNEL}/grants", {"use"}),
        ("PUT", f"{KERNEL}/grants/token:bob", {"use"}),
        ("GET", "/alpha/api/kernelspecs", {"list", "start"}),
        ("POST", "/alpha/api/sessions", {"start", "use"}),
    ],
)
async def test_an_agent_hears_of_rights_that_matter_to_the_request_only(
    method: str, path: str, shown: set[str]
) -> None:
    # Whether it is somebody else's kernel, the agent knows: of an admin it always hears.
    rights = await Desk(*EVERY).rights(method, path)
    assert set(rights.kernelspecs) == {*shown, ADMIN}
    # And what is not granted is not there.
    for action in Action:
        rest = [each for each in EVERY if each is not action]
        desk = Desk(*rest)
        if await desk.ask(method, path) == 299:
            assert set(desk.passed[0].bearer.rights.kernelspecs) == {*shown, ADMIN} - {action}


@pytest.mark.parametrize(
    ("method", "path", "actions"),
    [
        ("GET", KERNEL, {"view", "use"}),
        ("GET", f"{KERNEL}/channels", {"view", "use"}),
        ("GET", f"{KERNEL}/messages", {"view", "use"}),
        ("GET", "/alpha/api/kernels", {"list"}),
        ("POST", "/alpha/api/sessions", {"start"}),
        ("PUT", f"{KERNEL}/grants/token:bob", {"use"}),
        ("DELETE", f"{KERNEL}/grants/token:bob", {"use"}),
        ("GET", "/alpha/api/kernelspecs/python3", {"list"}),
    ],
)
@pytest.mark.parametrize("action", Action)
async def test_any_of_the_actions_opens_and_no_other(
    method: str, path: str, actions: set[str], action: Action
) -> None:
    desk = Desk(action)
    assert await desk.ask(method, path) == (299 if action in actions else 403)
    assert len(desk.passed) == (action in actions)


async def test_kernelspecs_go_with_the_rights() -> None:
    only = frozenset({"ir"})
    rights = await Desk(Action.START, Action.USE, kernelspecs=only).rights(
        "POST", "/alpha/api/kernels"
    )
    assert rights == Rights({Action.START: only})


@pytest.mark.parametrize(
    ("identity", "rule"),
    [
        ({"scopes": frozenset({"read"})}, {}),
        ({}, {"scope": "read"}),
        ({}, {"group": "staff"}),
        ({"groups": frozenset({"staff"}), "via": "corp"}, {"group": "staff"}),
        ({"clusters": frozenset()}, {}),
        ({"clusters": frozenset({"beta"})}, {}),
        ({}, {"clusters": frozenset({"beta"})}),
        ({}, {"user": "bob"}),
        ({"via": "corp"}, {}),
    ],
)
async def test_whom_no_rule_is_for_sees_no_cluster(
    identity: dict[str, Any], rule: dict[str, Any]
) -> None:
    desk = Desk(*EVERY, identity=identity, **rule)
    for method, path in (("GET", "/alpha/api"), ("OPTIONS", "/alpha/api"), ("PUT", "/alpha/x")):
        assert await desk.ask(method, path) == 404
    assert not desk.passed


@pytest.mark.parametrize(
    "token", ["", "x", TOKEN[:-1], "ada"], ids=["empty", "a letter", "cut", "a name"]
)
async def test_nobody_unknown_comes_in(token: str) -> None:
    desk = Desk(*EVERY)
    assert await desk.ask("GET", "/alpha/api", token) == 401
    assert await desk.ask("GET", "/beta/api", token) == 401
    assert not desk.passed


# Pages


class Called(Desk):
    """A desk whose relay lists one origin."""

    async def call(self, method: str, path: str, *headers: tuple[str, str]) -> web.StreamResponse:
        listed = CIMultiDict([("Host", "relay"), *headers])
        return await self.app.handle_https(make_mocked_request(method, path, headers=listed))


LISTED, FOREIGN = ("Origin", "https://lab.example"), ("Origin", "https://elsewhere.example")
BEARER = ("Authorization", f"token {TOKEN}")
PREFLIGHT = ("Access-Control-Request-Method", "POST")
UPGRADE = ("Upgrade", "websocket")
CHANGING = [("POST", "/alpha/api/kernels"), ("DELETE", KERNEL), ("POST", f"{KERNEL}/restart")]


def desk() -> Called:
    return Called(*EVERY, origins=["https://lab.example"])


@pytest.mark.parametrize(
    "origin", [(), (("Origin", "https://relay"),), (LISTED,), (("Origin", "https://RELAY"),)]
)
async def test_who_may_open_channels_by_origin(origin: tuple[tuple[str, str], ...]) -> None:
    opened = await desk().call("GET", f"{KERNEL}/channels", BEARER, UPGRADE, *origin)
    assert opened.status == (403 if ("Origin", "https://RELAY") in origin else 299)


@pytest.mark.parametrize(("method", "path"), [("GET", f"{KERNEL}/channels"), *CHANGING])
@pytest.mark.parametrize(
    "origin",
    [
        (FOREIGN,),
        (("Origin", "null"),),
        (("Origin", ""),),
        (("Origin", "http://relay"),),
        (LISTED, LISTED),
        (LISTED, FOREIGN),
    ],
)
@pytest.mark.parametrize("known", [False, True])
async def test_a_foreign_page_opens_and_changes_nothing(
    method: str, path: str, origin: tuple[tuple[str, str], ...], *, known: bool
) -> None:
    headers = [*origin, *([BEARER] if known else []), *([UPGRADE] if method == "GET" else [])]
    at = desk()
    answer = await at.call(method, path, *headers)
    # The same for who has a token and who has none: pages cannot try tokens.
    assert answer.status == 403
    assert not at.passed
    assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_what_a_foreign_page_may_cause_it_cannot_read() -> None:
    at = desk()
    prepared = make_mocked_request(
        "GET", "/alpha/api", headers=CIMultiDict([("Host", "relay"), FOREIGN, BEARER])
    )
    assert (await at.app.handle_https(prepared)).status == 299
    assert prepared[ANSWER_HEADERS] == {"Vary": "Origin"}


@pytest.mark.parametrize("credential", [(), (BEARER,), (("Authorization", "token x"),)])
async def test_a_listed_page_can_read_every_answer(credential: tuple[tuple[str, str], ...]) -> None:
    for method, path in (("GET", "/alpha/api"), ("GET", "/healthz"), *CHANGING):
        headers = CIMultiDict([("Host", "relay"), LISTED, *credential])
        request = make_mocked_request(method, path, headers=headers)
        await desk().app.handle_https(request)
        assert request[ANSWER_HEADERS] == {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": "https://lab.example",
            "Access-Control-Expose-Headers": "Location, Retry-After, X-Request-Id",
        }


async def test_without_a_list_nothing_is_said_of_origins() -> None:
    request = make_mocked_request("GET", "/healthz", headers=CIMultiDict([("Host", "r"), LISTED]))
    await Desk(*EVERY).app.handle_https(request)
    assert request[ANSWER_HEADERS] == {}


@pytest.mark.parametrize(
    "path", ["/", "/alpha/api", "/absent/api", "/healthz", "/metrics", KERNEL, "/alpha/tree"]
)
async def test_a_preflight_is_answered_alike_everywhere(path: str) -> None:
    at = desk()
    answer = await at.call("OPTIONS", path, LISTED, PREFLIGHT)
    assert isinstance(answer, web.Response)
    assert (answer.status, answer.body) == (204, None)
    assert {name: value for name, value in answer.headers.items() if name.startswith("Acc")} == {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
    }
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert not at.passed


@pytest.mark.parametrize("origin", [(), (FOREIGN,), (("Origin", "https://relay"),)])
async def test_nobody_else_asks_anything_by_options(origin: tuple[tuple[str, str], ...]) -> None:
    for more in ((), (PREFLIGHT,)):
        assert (await desk().call("OPTIONS", "/alpha/api", *origin, *more)).status == 401
        answer = await desk().call("OPTIONS", "/alpha/api", BEARER, *origin, *more)
        assert (answer.status, answer.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
    assert (await desk().call("OPTIONS", "/alpha/api", LISTED)).status == 401


@pytest.mark.parametrize("site", ["cross-site", "same-origin", "none", "x"])
async def test_what_else_browsers_say_changes_nothing(site: str) -> None:
    for mode in ("no-cors", "navigate", "websocket"):
        said = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode)]
        assert (await desk().call("GET", "/alpha/api", *said)).status == 401
        assert (await desk().call("GET", "/alpha/api", BEARER, *said)).status == 299


# What answers everybody


async def test_an_edge_that_ends_says_so() -> None:
    at = desk()
    at.app.ready = False
    answer = await at.call("GET", "/readyz")
    assert isinstance(answer, web.Response)
    assert answer.status == 503
    assert json.loads(answer.body or b"").keys() == {"message", "reason", "request_id"}  # type: ignore[arg-type]
    assert (await at.call("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("Host", "a b")],
        [("Host", "relay"), ("Host", "relay")],
        [],
        [("Host", "relay"), ("Transfer-Encoding", ""), ("Content-Length", "5")],
        [("Host", "relay"), ("Upgrade", "websocket"), ("Content-Length", "5")],
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/alpha/api", "/alpha/tree"])
async def test_a_head_that_could_be_read_in_two_ways(
    path: str, headers: list[tuple[str, str]]
) -> None:
    at = desk()
    request = make_mocked_request("GET", path, headers=CIMultiDict([*headers, BEARER]))
    assert (await at.app.handle_https(request)).status == 400
    assert not at.passed
