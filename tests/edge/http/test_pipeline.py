"""What the edge lets through, and what it says of the bearer when it does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple
from unittest.mock import Mock

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from relay.auth.audit import AuditEvent, AuditNote
from relay.auth.chain import AuthenticatorChain
from relay.auth.policy import Action, Policy, Rights, Rule
from relay.auth.tokens import TokenStore, generate
from relay.config import (
    AuditSettings,
    AuthenticationSettings,
    MtlsSettings,
    PolicySettings,
    ProxySettings,
    QuotaSettings,
    RuleSettings,
    TokenSettings,
)
from relay.edge.authn.authenticators import Authenticators
from relay.edge.authn.revalidation import AuthorizedStream, Reauthorizer
from relay.edge.caller import Caller
from relay.edge.http.audit import AuditTrail
from relay.edge.http.context import AuthorizedRequest
from relay.edge.http.pipeline import Dependencies, Pipeline
from relay.edge.ipc.client import Permit
from relay.edge.listener.acceptor import ClientConnection
from relay.edge.listener.client_address import ClientAddresses
from relay.edge.upstream.client import UpstreamClient
from relay.errors import Forbidden, RateLimited, RelayError, Unauthorized
from relay.http import RESPONSE_HEADERS
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal
from tests.edge.test_parent import CONFIG

NOW = 1_800_000_000.0
TOKEN, RECORD = generate("ada", NOW)
PATH_TOKEN, PATH_RECORD = generate("ada", NOW, lifetime=60.0, path=True)
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


class KnowsPath:
    """The path token."""

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        return TokenStore([PATH_RECORD]).authenticate_path(credential, now, 60.0)


class Passed(NamedTuple):
    """A request that an agent would be asked."""

    cluster: str
    kind: str
    caller: Caller
    prefix: str


class NoLimits:
    """Lets everybody come as often as they like, and writes down what was counted."""

    def __init__(self) -> None:
        self.refusal: RelayError | None = None
        self.failures = 0
        self.counted: list[tuple[Principal, str]] = []
        self.sockets: list[str] = []

    @contextlib.asynccontextmanager
    async def counting_failed_logins(self, address: str) -> AsyncIterator[None]:
        assert address == "192.0.2.1"
        try:
            yield
        except Unauthorized:
            self.failures += 1
            raise

    async def count_request(self, principal: Principal, cluster: str) -> None:
        self.counted.append((principal, cluster))
        if self.refusal is not None:
            raise self.refusal

    async def open_socket(self, _: Principal, cluster: str) -> Permit[None]:
        self.sockets.append(f"opened on {cluster}")
        return Permit(None, lambda: self.sockets.append("closed"))


class Desk:
    """REST and channels in one, behind the real pipeline."""

    def __init__(
        self,
        *actions: Action,
        identity: Any = None,
        base_url: str = "",
        quota: int | None = 20,
        origins: Sequence[str] = (),
        **rule: Any,
    ) -> None:
        self.passed: list[Passed] = []
        self.limits = NoLimits()
        self.connection = ClientConnection("192.0.2.1")
        metrics, signer, itself = EdgeMetrics.local(), Any, self
        fakes: dict[str, Any] = {
            "forwarder": itself,
            "channels": itself,
            "rate_limits": self.limits,
        }
        rule = {"authenticator": "token", "actions": list(actions), **rule}
        config = msgspec.structs.replace(
            CONFIG,
            base_url=base_url,
            authentication=AuthenticationSettings(
                tokens=TokenSettings(file="t"), mtls={"r.example": MtlsSettings(ca="c")}
            ),
            policy=PolicySettings(rules=[RuleSettings(**rule)]),
            quotas=QuotaSettings(user_kernels=quota),
            origins=list(origins),
        )
        authenticators = Authenticators(
            AuthenticatorChain([Knows(**(identity or {}))]), AuthenticatorChain([KnowsPath()])
        )
        self.notes: list[AuditNote] = []
        self.metrics = metrics
        self.reauthorizer = Reauthorizer(authenticators.identify, metrics)
        parts = Dependencies(
            addresses=ClientAddresses(ProxySettings()),
            authenticators=authenticators,
            reauthorizer=self.reauthorizer,
            audit=AuditTrail(AuditSettings(file="a"), self._write),
            upstream=UpstreamClient(CONFIG, signer, metrics=metrics),  # type: ignore[arg-type]
            metrics=metrics,
            **fakes,
        )
        self.app = Pipeline(config, parts, clock=lambda: NOW)

    async def _write(self, note: AuditNote | None) -> bool:
        if note is not None:
            self.notes.append(note)
        return True

    async def handle(
        self, context: AuthorizedRequest, stream: AuthorizedStream | None = None, *_: Any
    ) -> web.Response:
        # What stays open stays authorised; everything else is over before anything could change.
        is_watched = any(
            each.streams == {stream} for each in self.reauthorizer._credentials.values()
        )
        assert is_watched == (context.route.upgrades or context.route.streams)
        caller = context.caller if stream is None else stream.caller
        self.passed.append(Passed(context.cluster, context.route.name, caller, context.prefix))
        return web.Response(status=299)

    def request(self, method: str, path: str, headers: CIMultiDict[str]) -> web.Request:
        protocol = Mock(observer=self.connection)
        return make_mocked_request(method, path, headers=headers, protocol=protocol)

    def certify(self, identity: Identity) -> None:
        """Have a certificate name the client."""
        self.connection.expect_certificate(lambda _: identity)
        self.connection.identity = identity

    async def ask(self, method: str, path: str, token: str = TOKEN) -> int:
        headers = CIMultiDict([("Host", "relay"), ("Authorization", f"token {token}")])
        return (await self.app.handle_https(self.request(method, path, headers))).status

    async def rights(self, method: str, path: str) -> Rights:
        """What is said of the bearer of a request that is let through."""
        assert await self.ask(method, path) == 299
        passed = self.passed.pop()
        assert passed.caller.principal == ADA
        return passed.caller.rights


@pytest.mark.parametrize(("quota", "shown"), [(20, 20), (1, 1), (None, None)])
async def test_an_agent_hears_how_many_kernels_a_user_may_have(
    quota: int, shown: int | None
) -> None:
    desk = Desk(Action.START, quota=quota)
    assert await desk.ask("POST", "/alpha/api/kernels") == 299
    assert desk.passed.pop().caller.max_kernels == shown


EVERY = tuple(Action)
ADMIN = Action.ADMIN


@pytest.mark.parametrize(
    ("method", "path", "shown"),
    [
        ("GET", "/alpha/api", {"list"}),
        ("GET", "/alpha/api/kernels", {"list", "view", "use"}),
        ("POST", "/alpha/api/kernels", {"start"}),
        ("GET", KERNEL, {"view", "use"}),
        ("DELETE", KERNEL, {"stop", "view", "use"}),
        ("POST", f"{KERNEL}/interrupt", {"interrupt", "view", "use"}),
        ("POST", f"{KERNEL}/restart", {"stop", "view", "use"}),
        ("GET", f"{KERNEL}/channels", {"view", "use"}),
        ("GET", f"{KERNEL}/grants", {"use", "view"}),
        ("PUT", f"{KERNEL}/grants/token:bob", {"use", "view"}),
        ("GET", "/alpha/api/kernelspecs", {"list", "start"}),
        ("POST", "/alpha/api/sessions", {"start", "use", "view"}),
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
            assert set(desk.passed[0].caller.rights.kernelspecs) == {*shown, ADMIN} - {action}


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


BASE = "/services/relay"


async def test_a_base_is_taken_off_once_and_never_guessed() -> None:
    desk = Desk(*EVERY, base_url=BASE)
    for path in ("/alpha/api/kernels", KERNEL, f"{KERNEL}/channels"):
        assert await desk.ask("GET", f"{BASE}{path}") == 299
        assert [each.cluster for each in desk.passed] == ["alpha"]
        desk.passed.clear()
        for other in ("", "/services", "/services/relay2", BASE.upper(), BASE + BASE, "/x" + BASE):
            assert await desk.ask("GET", f"{other}{path}") == 404
    assert desk.passed == []
    assert await desk.ask("GET", BASE) == 404
    # Without a token nobody learns more than that.
    assert await desk.ask("GET", f"{BASE}/alpha/api/kernels", "wrong") == 401
    assert await desk.ask("GET", f"{BASE}/", "wrong") == 401
    # Who watches over the relay does not come through a proxy.
    assert await desk.ask("GET", "/healthz", "wrong") == 200
    assert await desk.ask("GET", f"{BASE}/healthz", "wrong") == 401


async def test_a_token_in_the_path_stands_behind_the_base() -> None:
    desk = Desk(*EVERY, base_url=BASE)
    for target in (KERNEL, f"/t/{PATH_TOKEN}{KERNEL}"):
        assert await desk.ask("GET", f"{BASE}{target}") == 299
    assert [each.prefix for each in desk.passed] == [BASE, f"{BASE}/t/{PATH_TOKEN}"]
    desk.passed.clear()
    for target, status in (
        (f"/t/{PATH_TOKEN}{BASE}{KERNEL}", 404),
        (f"/t/{PATH_TOKEN}{KERNEL}", 404),
        (f"{BASE}/t/{PATH_TOKEN}{BASE}{KERNEL}", 404),
        (f"{BASE}/t/{PATH_TOKEN}/t/{PATH_TOKEN}{KERNEL}", 404),
        (f"{BASE}/t/{PATH_TOKEN}", 404),
        (f"{BASE}/t/{PATH_TOKEN}x{KERNEL}", 401),
        (f"{BASE}/t{KERNEL}", 401),
    ):
        assert await desk.ask("GET", target) == status, target
    assert desk.passed == []


async def test_what_a_path_takes_is_said_below_a_base_too() -> None:
    desk = Desk(*EVERY, base_url=BASE)
    headers = CIMultiDict([("Host", "relay"), ("Authorization", f"token {TOKEN}")])
    request = desk.request("DELETE", f"{BASE}/alpha/api/kernels", headers)
    answer = await desk.app.handle_https(request)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, POST, OPTIONS")


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


# Limits


async def test_wrong_credentials_are_counted_and_none_at_all_is_not() -> None:
    desk = Called(*EVERY)
    for path, headers in (
        ("/alpha/api", [("Authorization", "token wrong")]),
        ("/beta/api", [("Authorization", "token wrong")]),
        ("/alpha/api", [("Authorization", "Digest x")]),
        (f"/t/{PATH_TOKEN[:-1]}x{KERNEL}", []),
        (f"/t/wrong{KERNEL}", []),
    ):
        before = desk.limits.failures
        assert (await desk.call("GET", path, *headers)).status == 401
        assert desk.limits.failures == before + 1, path
    before = desk.limits.failures
    assert (await desk.call("GET", "/alpha/api")).status == 401
    assert await desk.ask("GET", "/alpha/api") == 299
    assert desk.limits.failures == before
    # And whom nobody knows has no quota.
    assert desk.limits.counted == [(ADA, "alpha")]


async def test_requests_are_counted_for_clusters_that_somebody_may_know_of() -> None:
    desk = Desk(Action.LIST, clusters=["alpha"])
    for method, path, status in (
        ("GET", "/beta/api", 404),
        ("GET", "/alpha/api", 299),
        ("OPTIONS", "/alpha/api", 204),
        ("GET", "/alpha/nothing", 404),
        ("DELETE", KERNEL, 403),
    ):
        assert await desk.ask(method, path) == status
    assert desk.limits.counted == [(ADA, "alpha")] * 4
    stranger = Desk(*EVERY, user="bob")
    assert await stranger.ask("GET", "/alpha/api") == 404
    assert stranger.limits.counted == []


async def test_who_comes_too_often_gets_no_further() -> None:
    desk = Desk(*EVERY)
    desk.limits.refusal = RateLimited("Too many requests.", retry_after=1)
    for method, path in (("GET", "/alpha/api"), ("GET", f"{KERNEL}/channels"), ("DELETE", KERNEL)):
        assert await desk.ask(method, path) == 429
    assert (desk.passed, desk.limits.sockets) == ([], [])


async def test_a_socket_is_counted_for_as_long_as_it_is_open() -> None:
    desk = Desk(*EVERY)
    assert await desk.ask("GET", f"{KERNEL}/channels") == 299
    assert desk.limits.sockets == ["opened on alpha", "closed"]
    assert await desk.ask("GET", KERNEL) == 299
    assert await Desk(Action.LIST).ask("GET", f"{KERNEL}/channels") == 403
    assert desk.limits.sockets == ["opened on alpha", "closed"]


async def test_a_certificate_is_a_credential_beside_others() -> None:
    desk = Called(*EVERY, authenticator="mtls")
    robot = Principal("mtls", "r2")
    desk.certify(Identity(principal=robot, via="mtls", expires=NOW + 1))
    assert (await desk.call("GET", f"{KERNEL}/channels")).status == 299
    assert desk.passed.pop().caller.principal == robot
    # Somebody else's token, and a wrong one.
    for token in (TOKEN, "wrong"):
        headers = ("Authorization", f"token {token}")
        assert (await desk.call("GET", "/alpha/api", headers)).status == 401
    assert (await desk.call("GET", f"/t/{PATH_TOKEN}/alpha/api")).status == 401
    desk.certify(Identity(principal=robot, via="mtls", expires=NOW))
    assert (await desk.call("GET", "/alpha/api")).status == 401
    assert desk.passed == []


# Pages


class Called(Desk):
    """A desk whose relay lists one origin."""

    async def call(self, method: str, path: str, *headers: tuple[str, str]) -> web.StreamResponse:
        listed = CIMultiDict([("Host", "relay"), *headers])
        return await self.app.handle_https(self.request(method, path, listed))


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
    prepared = at.request("GET", "/alpha/api", CIMultiDict([("Host", "relay"), FOREIGN, BEARER]))
    assert (await at.app.handle_https(prepared)).status == 299
    assert prepared[RESPONSE_HEADERS] == {"Vary": "Origin"}


@pytest.mark.parametrize("credential", [(), (BEARER,), (("Authorization", "token x"),)])
async def test_a_listed_page_can_read_every_answer(credential: tuple[tuple[str, str], ...]) -> None:
    for method, path in (("GET", "/alpha/api"), ("GET", "/healthz"), *CHANGING):
        headers = CIMultiDict([("Host", "relay"), LISTED, *credential])
        at = desk()
        request = at.request(method, path, headers)
        await at.app.handle_https(request)
        assert request[RESPONSE_HEADERS] == {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": "https://lab.example",
            "Access-Control-Expose-Headers": "Location, Retry-After, X-Request-Id",
        }


async def test_without_a_list_nothing_is_said_of_origins() -> None:
    at = Desk(*EVERY)
    request = at.request("GET", "/healthz", CIMultiDict([("Host", "r"), LISTED]))
    await at.app.handle_https(request)
    assert request[RESPONSE_HEADERS] == {}


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
    at.app.edge_routes.ready = False
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
    request = at.request("GET", path, CIMultiDict([*headers, BEARER]))
    assert (await at.app.handle_https(request)).status == 400
    assert not at.passed


# How far a request comes, and what is noted of it


@pytest.mark.parametrize(
    ("request_line", "token", "status", "noted", "counted"),
    [
        ("GET /alpha/api", "wrong", 401, ("login-refused", "", "", ""), ("", "")),
        # Somebody known, where there is no such cluster.
        ("GET /beta/api", TOKEN, 404, ("refused", "token:ada", "", ""), ("", "")),
        ("GET /alpha/x", TOKEN, 404, None, ("alpha", "")),
        ("PUT /alpha/api", TOKEN, 405, None, ("alpha", "")),
        ("GET /alpha/tree", "wrong", 404, None, ("", "")),
        (
            f"DELETE {KERNEL}",
            TOKEN,
            403,
            ("refused", "token:ada", "alpha", "stop"),
            ("alpha", "stop"),
        ),
        (
            "POST /alpha/api/kernels",
            TOKEN,
            299,
            ("kernel-started", "token:ada", "alpha", "start"),
            ("alpha", "start"),
        ),
        ("GET /alpha/api/me", TOKEN, 299, None, ("alpha", "me")),
    ],
    ids=["nobody", "no cluster", "no path", "no method", "a probe", "forbidden", "start", "read"],
)
async def test_what_is_noted_of_a_request(
    request_line: str,
    token: str,
    status: int,
    noted: tuple[str, ...] | None,
    counted: tuple[str, str],
) -> None:
    desk = Desk(Action.LIST, Action.START)
    method, path = request_line.split()
    assert await desk.ask(method, path, token) == status
    found = [(note.event, note.principal, note.cluster, note.kind) for note in desk.notes]
    assert found == ([] if noted is None else [noted])
    samples = next(iter(desk.metrics._requests.collect())).samples
    (sample,) = (each for each in samples if each.name.endswith("_total"))
    assert (sample.labels["cluster"], sample.labels["kind"]) == counted


async def test_a_cluster_of_others_is_noted_by_its_name() -> None:
    desk = Desk(*EVERY, user="bob")
    assert await desk.ask("GET", "/alpha/api/kernels") == 404
    (note,) = desk.notes
    assert (note.event, note.cluster, note.kind) == (AuditEvent.REFUSED, "alpha", "")


async def test_an_error_nobody_foresaw_is_noted_and_goes_on() -> None:
    desk = Desk(*EVERY)

    async def broken(*_: object) -> web.Response:
        raise ZeroDivisionError

    desk.handle = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        await desk.ask("POST", "/alpha/api/kernels")
    assert [(n.event, n.status) for n in desk.notes] == [(AuditEvent.FAILED, 500)]


@pytest.mark.parametrize("path", [f"{KERNEL}/channels", f"{KERNEL}/messages"])
async def test_what_the_relay_ends_is_noted_with_the_reason(path: str) -> None:
    desk = Desk(*EVERY)

    async def revoked(
        context: AuthorizedRequest, stream: AuthorizedStream, *_: object
    ) -> web.Response:
        stream.revoke(Unauthorized("the credential was revoked"))
        return web.Response(status=101 if context.route.upgrades else 200)

    desk.handle = revoked  # type: ignore[method-assign,assignment]
    await desk.ask("GET", path)
    (note,) = desk.notes
    assert (note.event, note.status) == (AuditEvent.CHANNELS_ENDED, 4401)
    assert note.reason == "the credential was revoked"


@pytest.mark.parametrize("path", [f"{KERNEL}/channels", f"{KERNEL}/messages"])
async def test_what_is_open_is_authorised_by_the_policy_of_now(path: str) -> None:
    desk = Desk(*EVERY)
    wide = Rights(dict.fromkeys((Action.USE, Action.VIEW, Action.ADMIN)))
    seen: list[Rights] = []

    async def stays(_: AuthorizedRequest, stream: AuthorizedStream, *__: object) -> web.Response:
        seen.append(stream.caller.rights)
        only = Rule(authenticator="token", actions=frozenset({Action.VIEW}))
        desk.app.change_policy(Policy([only]))
        assert stream.reauthorize(stream.identity) is None
        seen.append(stream.caller.rights)
        desk.app.change_policy(Policy())
        problem = stream.reauthorize(stream.identity)
        assert isinstance(problem, Forbidden)
        return web.Response()

    desk.handle = stays  # type: ignore[method-assign,assignment]
    assert await desk.ask("GET", path) == 200
    assert seen == [wide, Rights({Action.VIEW: None})]


@pytest.mark.parametrize(
    ("left", "status"), [((), 404), ((Action.LIST,), 403), ((Action.STOP,), 299)]
)
async def test_a_policy_that_changes_while_a_request_is_counted_counts(
    monkeypatch: pytest.MonkeyPatch, left: tuple[Action, ...], status: int
) -> None:
    desk = Desk(*EVERY)

    async def count_request(*_: object) -> None:
        rules = [Rule(authenticator="token", actions=frozenset(left))] if left else []
        desk.app.change_policy(Policy(rules))

    monkeypatch.setattr(desk.limits, "count_request", count_request)
    assert await desk.ask("DELETE", KERNEL) == status


async def test_the_port_for_channels_serves_nothing_else() -> None:
    desk = Desk(*EVERY)
    headers = CIMultiDict([("Host", "relay"), BEARER])
    for path, status in (
        ("/alpha/api/kernels", 404),
        (f"{KERNEL}/messages", 404),
        (f"{KERNEL}/channels", 299),
        ("/healthz", 200),
    ):
        answer = await desk.app.handle_wss(desk.request("GET", path, headers))
        assert answer.status == status, path
    # It is told so only where the same would be allowed elsewhere.
    less = Desk(Action.LIST)
    answer = await less.app.handle_wss(less.request("DELETE", KERNEL, headers))
    assert answer.status == 403
