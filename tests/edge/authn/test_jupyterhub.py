"""What is asked of a Hub, how often, and what is believed of its answers.

The Hub here is an HTTP server that says what a test wants; a real one is in tests/system.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from aiohttp import ClientSession, web
from aiohttp.hdrs import AUTHORIZATION

from relay import limits
from relay.auth.credentials import PresentedCredentials
from relay.config import AuthenticationSettings, JupyterHubSettings
from relay.edge.authn import authenticators
from relay.edge.authn.jupyterhub import HubUser, JupyterHub
from relay.edge.authn.jupyterhub_activity import HubServer
from relay.errors import AuthenticatorUnavailable, Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal
from tests.waiting import until

ACCESS: Final = "access:services!service=relay"
TOKEN: Final = "0123456789abcdef" * 2
OWN: Final = "the-services-own"
NOW: Final = 1_800_000_000.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def user(name: str = "alice", **fields: Any) -> dict[str, Any]:
    """A model as Hubs send it."""
    return {
        "kind": "user",
        "name": name,
        "admin": True,
        "groups": ["people"],
        "scopes": [ACCESS, f"access:servers!server={name}/"],
        "token_id": "a17",
        "session_id": None,
        **fields,
    }


class StandIn:
    """A Hub: what it answers, and what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = user()
        self.asked: list[str] = []
        self.reports: list[tuple[str, Any]] = []
        self.tokens: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.under_way = 0
        self.most = 0
        self.headers: dict[str, str] = {}
        self.report_statuses: list[int] = []
        self.url = ""

    def reports_of(self, user: str) -> list[tuple[str, Any]]:
        path = f"/hub/api/users/{user}/activity"
        return [report for report in self.reports if report[0] == path]

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.tokens.append(request.headers["Authorization"])
        if request.method == "POST":
            self.reports.append((request.raw_path, await request.json()))
            status = self.report_statuses.pop(0) if self.report_statuses else 200
            return web.Response(status=status)
        self.asked.append(f"{request.method} {request.raw_path}")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.open.wait()
        finally:
            self.under_way -= 1
        body = self.body if isinstance(self.body, bytes) else msgspec.json.encode(self.body)
        return web.Response(status=self.status, body=body, headers=self.headers)


@pytest.fixture
async def hub() -> AsyncIterator[StandIn]:
    stand_in = StandIn()
    server = web.Server(stand_in.answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    stand_in.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/hub/api"
    try:
        yield stand_in
    finally:
        stand_in.open.set()
        listener.close()
        await server.shutdown(0.1)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def asking(
    hub: StandIn, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[JupyterHub]:
    made = JupyterHub(
        JupyterHubSettings(
            api_url=hub.url, service_name="relay", **{"activity_interval": 0.0, **settings}
        ),
        {"JUPYTERHUB_API_TOKEN": OWN},
        EdgeMetrics.local(),
        clock or Clock(),
    )
    async with made:
        yield made


# --- whose it is ---


async def test_a_user_is_known_by_name_groups_and_the_tokens_id(hub: StandIn) -> None:
    async with asking(hub) as authenticator:
        identity = await authenticator.authenticate(TOKEN, NOW)
    assert identity == HubUser(
        principal=Principal("jupyterhub", "alice"),
        via="jupyterhub",
        groups=frozenset({"people"}),
        scopes=frozenset(),
        credential="jupyterhub:a17",
        place=HubServer("alice", ""),
    )
    assert hub.asked == ["GET /hub/api/user"]
    assert hub.tokens == [f"token {TOKEN}"]


async def test_a_service_has_a_name_that_no_user_can_have(hub: StandIn) -> None:
    async with asking(hub) as authenticator:
        hub.body = {"kind": "service", "name": "bot", "scopes": [ACCESS], "token_id": None}
        service = await authenticator.authenticate(TOKEN, NOW)
        assert service is not None
        assert service.principal == Principal("jupyterhub", "service:bot")
        assert not isinstance(service, HubUser)
        hub.body = user("service:bot")
        with pytest.raises(Unauthorized, match="cannot be told from services"):
            await authenticator.authenticate("another", NOW)


@pytest.mark.parametrize("scope", [ACCESS, "access:services"])
async def test_the_scope_of_the_service_lets_in_and_so_does_that_of_all(
    hub: StandIn, scope: str
) -> None:
    hub.body = user(scopes=["x", scope])
    async with asking(hub) as authenticator:
        assert await authenticator.authenticate(TOKEN, NOW) is not None


@pytest.mark.parametrize(
    "scopes",
    [
        [],
        ["access:services!service=relay2"],
        ["access:services!service=rela"],
        ["access:services!service="],
        ["access:services!service=*"],
        ["access:services!"],
        ["access:services!user=alice"],
        ["access:services!service=RELAY"],
        ["Access:Services"],
        ["access:servers", "access:servers!server=alice/", "admin:services", "services"],
        ["self", "inherit", "all"],
        [f" {ACCESS}"],
        [f"{ACCESS} access:services"],
    ],
)
async def test_no_other_scope_lets_in(hub: StandIn, scopes: list[str]) -> None:
    hub.body = user(scopes=scopes)
    async with asking(hub) as authenticator:
        with pytest.raises(Unauthorized, match="lacks the scope access:services!service=relay"):
            await authenticator.authenticate(TOKEN, NOW)


@pytest.mark.parametrize("name", ["", " alice", "al\nice", "a" * 256, "\u202ealice"])
async def test_names_that_could_mislead_stay_outside(hub: StandIn, name: str) -> None:
    hub.body = user(name)
    async with asking(hub) as authenticator:
        with pytest.raises(Unauthorized, match="this name cannot be used here"):
            await authenticator.authenticate(TOKEN, NOW)


async def test_the_hubs_scopes_are_none_of_ours_unless_they_are_mapped(hub: StandIn) -> None:
    hub.body = user(scopes=[ACCESS, "custom:relay:read", "custom:relay:other"])
    async with asking(hub, scopes={"custom:relay:read": "read"}) as authenticator:
        identity = await authenticator.authenticate(TOKEN, NOW)
        assert identity is not None
        assert identity.scopes == {"read"}
        # One that was given none of them would else be limited to nothing.
        hub.body = user(scopes=[ACCESS, "custom:relay:other"])
        with pytest.raises(Unauthorized, match=r"authentication\.jupyterhub\.scopes"):
            await authenticator.authenticate("another", NOW)


@pytest.mark.parametrize(
    ("scopes", "server"),
    [
        (["access:servers!server=alice/"], ""),
        (["access:servers!server=alice/gpu"], "gpu"),
        (["access:servers!server=alice/gpu", "access:servers!server=alice/cpu"], ""),
        (["access:servers!server=bob/gpu"], ""),
        (["access:servers!user=alice"], ""),
        ([], ""),
    ],
)
async def test_the_server_is_the_one_that_the_token_was_made_for(
    hub: StandIn, scopes: list[str], server: str
) -> None:
    hub.body = user(scopes=[ACCESS, *scopes])
    async with asking(hub) as authenticator:
        identity = await authenticator.authenticate(TOKEN, NOW)
    assert isinstance(identity, HubUser)
    assert identity.place == HubServer("alice", server)


@pytest.mark.parametrize(
    "credential",
    ["relay_abc", "e30.e30.c2ln", "eyJhbGciOiJub25lIn0.e30.", "x" * 513],
)
async def test_what_is_another_authenticators_never_reaches_the_hub(
    hub: StandIn, credential: str
) -> None:
    async with asking(hub) as authenticator:
        assert await authenticator.authenticate(credential, NOW) is None
    assert hub.asked == []


@pytest.mark.parametrize("credential", ["x", "a.b", "a.b.c.d", "..", "Relay_abc", "x" * 512])
async def test_everything_else_may_be_the_hubs(hub: StandIn, credential: str) -> None:
    async with asking(hub) as authenticator:
        assert await authenticator.authenticate(credential, NOW) is not None


@pytest.mark.parametrize("status", [401, 403])
async def test_a_token_that_the_hub_does_not_know_is_anothers(hub: StandIn, status: int) -> None:
    hub.status = status
    async with asking(hub) as authenticator:
        assert await authenticator.authenticate(TOKEN, NOW) is None


# --- when the Hub does not say ---


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 400, 404, 429, 500, 502, 503, 599])
async def test_any_other_status_is_no_answer(hub: StandIn, status: int) -> None:
    hub.status = status
    hub.headers = {"Location": hub.url}
    async with asking(hub) as authenticator:
        with pytest.raises(AuthenticatorUnavailable) as caught:
            await authenticator.authenticate(TOKEN, NOW)
        assert caught.value.http_status == 503
        assert caught.value.retry_after
        # Nothing of it is remembered, and no redirection was followed.
        assert hub.asked == ["GET /hub/api/user"]
        hub.status = 200
        assert await authenticator.authenticate(TOKEN, NOW) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"<html>hello</html>",
        b"\xff",
        {},
        user(kind="admin"),
        user(kind=None),
        {**user(), "name": None},
        {**user(), "name": 7},
        user(scopes=None),
        user(scopes=ACCESS),
        user(scopes=[1]),
        user(groups="people"),
        user(groups=["x" * 256]),
        user(token_id=5),
        {"kind": "user", "name": "alice"},
        b'"' + b"x" * 1024 * 1024 + b'"',
    ],
)
async def test_an_answer_that_makes_no_sense_is_none(hub: StandIn, body: Any) -> None:
    hub.body = body
    async with asking(hub) as authenticator:
        with pytest.raises(AuthenticatorUnavailable):
            await authenticator.authenticate(TOKEN, NOW)
        hub.body = user()
        assert await authenticator.authenticate(TOKEN, NOW) is not None


async def test_a_hub_that_is_not_there_lets_nobody_in(hub: StandIn) -> None:
    hub.url = "http://127.0.0.1:1/hub/api"
    async with asking(hub) as authenticator:
        with pytest.raises(AuthenticatorUnavailable):
            await authenticator.authenticate(TOKEN, NOW)


async def test_a_hub_that_takes_too_long_has_not_answered(hub: StandIn) -> None:
    hub.open.clear()
    before = limits.counts["authentication.jupyterhub.timeout"]
    async with asking(hub, timeout=0.1) as authenticator:
        with pytest.raises(AuthenticatorUnavailable):
            await authenticator.authenticate(TOKEN, NOW)
        assert limits.counts["authentication.jupyterhub.timeout"] == before + 1
        hub.open.set()
        assert await authenticator.authenticate(TOKEN, NOW) is not None


# --- how often it is asked ---


async def test_the_hubs_word_is_taken_for_as_long_as_set_and_no_longer(hub: StandIn) -> None:
    clock = Clock()
    async with asking(hub, clock, cache=30.0) as authenticator:
        assert authenticator.recheck == 30.0
        for seconds, asked in ((0.0, 1), (29.9, 1), (0.1, 2), (29.9, 2), (0.2, 3)):
            clock.now += seconds
            assert await authenticator.authenticate(TOKEN, NOW) is not None
            assert len(hub.asked) == asked
        # Revoked.
        hub.status = 403
        assert await authenticator.authenticate(TOKEN, NOW) is not None
        clock.now += 30.0
        assert await authenticator.authenticate(TOKEN, NOW) is None


async def test_a_slow_answer_is_good_for_as_long_as_it_was_asked_for_before(hub: StandIn) -> None:
    clock = Clock()
    hub.open.clear()
    async with asking(hub, clock, cache=30.0) as authenticator, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(authenticator.authenticate(TOKEN, NOW))
        await until(lambda: len(hub.asked) == 1)
        clock.now += 4.0
        hub.open.set()
        assert await first is not None
        clock.now += 26.0
        await authenticator.authenticate(TOKEN, NOW)
        assert len(hub.asked) == 2


async def test_a_known_token_is_refused_when_the_hub_is_gone_and_its_word_is_old(
    hub: StandIn,
) -> None:
    clock = Clock()
    async with asking(hub, clock, cache=60.0) as authenticator:
        assert await authenticator.authenticate(TOKEN, NOW) is not None
        hub.status = 500
        clock.now += 59.9
        assert await authenticator.authenticate(TOKEN, NOW) is not None
        clock.now += 0.1
        with pytest.raises(AuthenticatorUnavailable):
            await authenticator.authenticate(TOKEN, NOW)


@pytest.mark.parametrize("refused", [True, False])
async def test_a_refusal_is_remembered_for_a_moment(hub: StandIn, refused: bool) -> None:
    clock = Clock()
    hub.status, hub.body = (200, user(scopes=[])) if refused else (403, b"")
    async with asking(hub, clock, cache_unknown=5.0) as authenticator:
        for seconds, asked in ((0.0, 1), (4.9, 1), (0.1, 2)):
            clock.now += seconds
            with pytest.raises(Unauthorized) if refused else contextlib.nullcontext():
                assert await authenticator.authenticate(TOKEN, NOW) is None
            assert len(hub.asked) == asked


async def test_a_token_is_asked_for_once_however_many_show_it(hub: StandIn) -> None:
    hub.open.clear()
    async with asking(hub) as authenticator, asyncio.TaskGroup() as tasks:
        same = [tasks.create_task(authenticator.authenticate(TOKEN, NOW)) for _ in range(50)]
        other = tasks.create_task(authenticator.authenticate("other", NOW))
        await until(lambda: len(hub.asked) == 2)
        # Whoever asked first leaves, and takes nothing along.
        same[0].cancel()
        await asyncio.sleep(0)
        hub.open.set()
        assert await other is not None
        assert all([await each for each in same[1:]])
    assert len(hub.asked) == 2


async def test_a_failure_is_everybodys_who_waited_for_it(hub: StandIn) -> None:
    hub.open.clear()
    hub.status = 502
    async with asking(hub) as authenticator:
        asks = [authenticator.authenticate(TOKEN, NOW) for _ in range(5)]
        gathered = asyncio.gather(*asks, return_exceptions=True)
        await until(lambda: len(hub.asked) == 1)
        hub.open.set()
        assert [type(each) for each in await gathered] == [AuthenticatorUnavailable] * 5
    assert len(hub.asked) == 1


async def test_no_more_requests_than_set_are_under_way(hub: StandIn) -> None:
    hub.open.clear()
    async with asking(hub, max_requests=3) as authenticator, asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(authenticator.authenticate(f"token-{number}", NOW))
        await until(lambda: len(hub.asked) == 3)
        # A round trip later, whatever was sent with those has come.
        async with ClientSession() as session, session.post(hub.url, headers={AUTHORIZATION: ""}):
            assert hub.under_way == 3
        hub.open.set()
    assert (hub.most, len(hub.asked)) == (3, 20)


async def test_who_waits_too_long_for_a_turn_is_told_to_come_back(hub: StandIn) -> None:
    hub.open.clear()
    setting = "authentication.jupyterhub.max_requests"
    before = limits.counts[setting]
    async with asking(hub, max_requests=1, timeout=0.2) as authenticator:
        asks = [authenticator.authenticate(f"token-{number}", NOW) for number in range(3)]
        results = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(each) for each in results] == [AuthenticatorUnavailable] * 3
        assert limits.counts[setting] >= before + 1


async def test_strangers_push_nobody_out_whom_the_hub_knows(hub: StandIn) -> None:
    setting = "authentication.jupyterhub.cache_size"
    async with asking(hub, cache_size=3) as authenticator:
        assert await authenticator.authenticate(TOKEN, NOW) is not None
        hub.status = 403
        before = limits.counts[setting]
        for number in range(10):
            assert await authenticator.authenticate(f"wrong-{number}", NOW) is None
        assert limits.counts[setting] == before + 7
        assert await authenticator.authenticate(TOKEN, NOW) is not None
        assert len(hub.asked) == 11


async def test_the_one_that_was_asked_for_longest_ago_is_forgotten(hub: StandIn) -> None:
    async with asking(hub, cache_size=2) as authenticator:
        for token in ("a", "b", "a", "c"):
            await authenticator.authenticate(token, NOW)
        assert len(hub.asked) == 3
        await authenticator.authenticate("a", NOW)
        assert len(hub.asked) == 3
        await authenticator.authenticate("b", NOW)
        assert len(hub.asked) == 4


# --- who has a kernel that works ---


class Socket:
    """A WebSocket on which something has just been seen."""

    def __init__(self) -> None:
        self.last_activity = asyncio.get_running_loop().time()


async def another_round(hub: StandIn, authenticator: JupyterHub) -> None:
    """Wait until all that there is to report has been: somebody else's activity, twice."""
    other = HubUser(
        principal=Principal("jupyterhub", "other"), via="jupyterhub", place=HubServer("other", "")
    )
    socket = Socket()
    with authenticator.follow(other, socket):
        for reports in (1, 2):
            await until(lambda reports=reports: len(hub.reports_of("other")) >= reports)  # type: ignore[misc]
            socket.last_activity += 1


async def test_activity_is_reported_with_the_services_own_token(hub: StandIn) -> None:
    hub.body = user("al/ice@x")
    async with asking(hub, activity_interval=0.05) as authenticator:
        identity = await authenticator.authenticate(TOKEN, NOW)
        assert identity is not None
        with authenticator.follow(identity, Socket()):
            await until(lambda: len(hub.reports) == 1)
            assert hub.tokens == [f"token {TOKEN}", f"token {OWN}"]
            await another_round(hub, authenticator)
    assert len(hub.reports_of("al%2Fice%40x")) == 1
    path, body = hub.reports[0]
    assert path == "/hub/api/users/al%2Fice%40x/activity"
    assert body["servers"] == {"": {"last_activity": body["last_activity"]}}


@pytest.mark.parametrize("status", [400, 404])
async def test_a_server_that_there_is_not_is_left_out(hub: StandIn, status: int) -> None:
    hub.report_statuses = [status]
    async with asking(hub, activity_interval=0.05) as authenticator:
        identity = await authenticator.authenticate(TOKEN, NOW)
        assert identity is not None
        socket = Socket()
        with authenticator.follow(identity, socket):
            await until(lambda: len(hub.reports) == 2)
            assert "servers" in hub.reports[0][1]
            assert "servers" not in hub.reports[1][1]
            socket.last_activity += 1
            await until(lambda: len(hub.reports) == 3)
            assert "servers" not in hub.reports[2][1]


@pytest.mark.parametrize("status", [403, 500])
async def test_a_report_that_fails_is_made_again(hub: StandIn, status: int) -> None:
    hub.report_statuses = [status, status]
    async with asking(hub, activity_interval=0.05) as authenticator:
        identity = await authenticator.authenticate(TOKEN, NOW)
        assert identity is not None
        with authenticator.follow(identity, Socket()):
            await until(lambda: len(hub.reports) == 3)
            await another_round(hub, authenticator)
    assert len(hub.reports_of("alice")) == 3


async def test_nothing_is_reported_of_others(hub: StandIn) -> None:
    async with asking(hub, activity_interval=0.05) as authenticator:
        others = Identity(principal=Principal("token", "alice"), via="token")
        with authenticator.follow(others, Socket()):
            await another_round(hub, authenticator)
    assert hub.reports == hub.reports_of("other")


async def test_it_is_one_of_the_edges_authenticators(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", OWN)
    settings = JupyterHubSettings(
        api_url=hub.url, service_name="relay", cache=7.0, activity_interval=0.05
    )
    aliases = {"jupyterhub:alice": "corp:al"}
    built = authenticators.build(
        AuthenticationSettings(jupyterhub=settings, aliases=aliases), EdgeMetrics.local()
    )
    async with built:
        identity = await built.identify(PresentedCredentials(TOKEN), NOW)
        assert identity.principal == Principal("corp", "al")
        assert (identity.via, identity.recheck) == ("jupyterhub", 7.0)
        # Whoever it is here, the Hub hears of its own user.
        with built.follow(identity, Socket()):
            await until(lambda: len(hub.reports) == 1)
    assert hub.reports[0][0] == "/hub/api/users/alice/activity"


def test_what_it_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {})
    settings = AuthenticationSettings(jupyterhub=JupyterHubSettings())
    with pytest.raises(ValueError, match=r"\Aauthentication\.jupyterhub\.api_url: "):
        authenticators.build(settings, EdgeMetrics.local())


async def test_it_ends_while_the_hub_is_asked(hub: StandIn) -> None:
    hub.open.clear()
    async with asyncio.TaskGroup() as tasks:
        async with asking(hub, activity_interval=0.01) as authenticator:
            asked = tasks.create_task(authenticator.authenticate(TOKEN, NOW))
            await until(lambda: len(hub.asked) == 1)
        await asyncio.wait([asked])
        assert asked.cancelled()


def test_a_ca_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    settings = JupyterHubSettings(
        api_url="https://hub", service_name="relay", ca=str(tmp_path / "ca.pem")
    )
    with pytest.raises(ValueError, match=r"\Aca: "):
        JupyterHub(settings, {"JUPYTERHUB_API_TOKEN": OWN}, EdgeMetrics.local())
