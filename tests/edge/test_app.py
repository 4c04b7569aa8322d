"""What the edge lets through, and what it says of the bearer when it does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from relay.auth.chain import Chain
from relay.auth.policy import Action, Policy, Rights, Rule
from relay.auth.tokens import TokenStore, generate
from relay.edge.app import App
from relay.edge.council import Lease
from relay.edge.upstream import Bearer, Upstream
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


class OpenDoor:
    """Lets everybody come as often as they like, and knows no certificates."""

    def address(self, _: web.BaseRequest) -> str:
        return "192.0.2.1"

    def certified(self, _: web.BaseRequest) -> None:
        return None

    @contextlib.asynccontextmanager
    async def counting_failures(self, _: web.BaseRequest) -> AsyncIterator[None]:
        yield

    async def admit(self, *_: object) -> None:
        pass

    async def socket(self, *_: object) -> Lease:
        return Lease(lambda: None)


class Desk:
    """REST and channels in one, behind the real entry."""

    def __init__(self, *actions: Action, identity: Any = None, **rule: Any) -> None:
        self.passed: list[Passed] = []
        metrics, signer, itself = EdgeMetrics.local(), Any, self
        fakes: dict[str, Any] = {"rest": itself, "channels": itself, "door": OpenDoor()}
        rules = [Rule(**{"authenticator": "token", "actions": frozenset(actions), **rule})]
        self.app = App(
            chain=Chain([Knows(**(identity or {}))]),
            policy=Policy(rules),
            upstream=Upstream(CONFIG, signer, metrics=metrics),  # type: ignore[arg-type]
            metrics=metrics,
            clock=lambda: NOW,
            **fakes,
        )

    async def handle(self, _: web.BaseRequest, **asked: Any) -> web.Response:
        kind = asked["route"].kind if "route" in asked else "channels"
        self.passed.append(Passed(asked["cluster"], kind, asked["bearer"]))
        return web.Response(status=299)

    async def ask(self, method: str, path: str, token: str = TOKEN) -> int:
        request = make_mocked_request(method, path, headers={"Authorization": f"token {token}"})
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
