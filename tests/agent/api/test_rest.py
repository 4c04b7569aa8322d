from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from relay.agent.api.access import KernelAccess
from relay.agent.api.messages import JournalMessages
from relay.agent.api.rest import AgentRequest, Rest
from relay.agent.api.sessions import JupyterSessions
from relay.agent.api.start_request import KernelStarts
from relay.agent.holders.create import StartRequest
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket
from relay.config import AgentConfig, KernelEnvironment, KernelSettings, ListenSettings
from relay.errors import BadRequest, NotFound, TooLarge
from relay.model import KernelModel, Principal
from relay.routing.paths import parse_target
from relay.routing.routes import ROUTES
from relay.routing.table import Scope

LAUNCH_TIMEOUT = 60.0
KERNEL_ID = "0a0a0a0a-0000-4000-8000-000000000000"

# Requests


class FakeHolders:
    def __init__(self) -> None:
        self.started: list[StartRequest] = []

    async def start(self, request: StartRequest) -> Any:
        self.started.append(request)
        model = KernelModel(request.kernel_id, request.name, "1970", "starting", 0)
        return SimpleNamespace(
            model=model, kernel_folder=SimpleNamespace(kernel_id=request.kernel_id)
        )


class FakeSpecs:
    async def get(self, name: str, rights: Rights) -> dict[str, Any]:
        if name not in {"python3", "ir"} or not rights.allows(Action.START, name):
            raise NotFound("no such kernelspec")
        return {"name": name, "spec": {}}

    async def default(self, rights: Rights) -> str:
        return "python3" if rights.allows(Action.START, "python3") else "ir"

    async def all(self, rights: Rights) -> dict[str, Any]:
        return {"default": await self.default(rights), "kernelspecs": {}}


class Desk:
    """The REST API in front of a fake kernel."""

    def __init__(self, folder: Path) -> None:
        self.holders = FakeHolders()
        config = AgentConfig(
            cluster="alpha",
            listen=ListenSettings(port=1),
            state_dir="",
            ticket_keys=["key.pem"],
            environment=KernelEnvironment(inherit=["HOME"]),
            kernels=KernelSettings(launch_timeout=LAUNCH_TIMEOUT),
            body_bytes=1000,
        )
        specs: Any = FakeSpecs()
        holders: Any = self.holders
        starts = KernelStarts(config, holders, specs)
        kernels = KernelAccess(holders)
        sessions = JupyterSessions(folder, kernels, starts)
        self.rest = Rest(
            config,
            kernels=kernels,
            kernelspecs=specs,
            starts=starts,
            sessions=sessions,
            past=JournalMessages(config.past, message_bytes=2**20, max_record=2**21),
        )

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kernel: str | None = KERNEL_ID,
        rights: Rights | None = None,
    ) -> web.StreamResponse:
        ticket = Ticket(
            principal=Principal("token", "ada"),
            cluster="alpha",
            kernel=kernel,
            rights=Rights(dict.fromkeys(Action)) if rights is None else rights,
            request_id="r1",
        )
        target = parse_target(path)
        payload = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
        payload.feed_data(body)
        payload.feed_eof()
        request = make_mocked_request(method, path, payload=payload)
        route, parameters = ROUTES.match(Scope.CLUSTER, method, target.segments)
        asked = AgentRequest(request, target, route, parameters, ticket)
        return await self.rest.handlers[route.name](asked)

    async def start(self, body: object = None, **ticket: Any) -> StartRequest:
        raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        response = await self.ask("POST", "/api/kernels", raw, **ticket)
        assert response.status == 201
        (started,) = self.holders.started
        assert response.headers["Location"] == f"/api/kernels/{started.kernel_id}"
        return started


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "sessions")


async def test_a_kernel_is_started_as_the_ticket_says(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"HOME": "/home/x", "SECRET": "x"})
    env = {"KERNEL_USERNAME": "mallory", "KERNEL_WORKING_DIR": "/w", "PATH": "/evil"}
    started = await desk.start({"name": "ir", "env": env, "path": "a/b"})
    assert started.kernel_id == KERNEL_ID
    assert started.name == "ir"
    assert started.owner == Principal("token", "ada")
    assert started.environment == {
        "HOME": "/home/x",
        "KERNEL_WORKING_DIR": "/w",
        "KERNEL_USERNAME": "ada",
    }


async def test_what_a_client_sets_goes_before_what_is_inherited(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"KERNEL_X": "ours"})
    monkeypatch.setattr(KernelEnvironment, "inherited", lambda *_: {"KERNEL_X": "ours"})
    assert (await desk.start({"env": {"KERNEL_X": "theirs"}})).environment["KERNEL_X"] == "theirs"


@pytest.mark.parametrize("body", [b"", b"  \r\n", b"{}", b'{"name": null, "env": null}'])
async def test_who_names_no_kernelspec_gets_the_default(desk: Desk, body: bytes) -> None:
    assert (await desk.start(body)).name == "python3"


async def test_without_an_id_in_the_ticket_the_agent_makes_one(desk: Desk) -> None:
    assert uuid.UUID((await desk.start(kernel=None)).kernel_id).version == 4


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, 60),
        ("40", 40),
        ("0.5", 0.5),
        ("60", 60),
        ("61", 60),
        ("1e9", 60),
        ("inf", 60),
        ("1e999", 60),
        ("0", 60),
        ("-1", 60),
        ("nan", 60),
        ("", 60),
        ("soon", 60),
    ],
)
async def test_the_launch_timeout_is_ours_or_a_shorter_one(
    desk: Desk, asked: str | None, seconds: float
) -> None:
    env = {} if asked is None else {"KERNEL_LAUNCH_TIMEOUT": asked}
    assert (await desk.start({"env": env})).launch_timeout == seconds


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"python3"',
        b'{"name": 1}',
        b'{"env": []}',
        b'{"env": {"KERNEL_X": 1}}',
        b'{"env": {"A B": "x"}}',
        b'{"env": {"KERNEL_X": "\\ud800"}}',
        b'{"name": "../x"}',
        b'{"name": "%s"}' % (b"x" * 129),
        b"\xff",
        b'{"x": ' + b"[" * 900,
    ],
)
async def test_a_body_that_makes_no_sense_is_refused(desk: Desk, body: bytes) -> None:
    with pytest.raises(BadRequest):
        await desk.ask("POST", "/api/kernels", body)
    assert desk.holders.started == []


async def test_a_body_over_the_limit_is_refused(desk: Desk) -> None:
    with pytest.raises(TooLarge, match="body_bytes"):
        await desk.ask("POST", "/api/kernels", b" " * 1001)


async def test_nothing_is_started_for_a_kernelspec_that_is_not_there(desk: Desk) -> None:
    with pytest.raises(NotFound):
        await desk.ask("POST", "/api/kernels", b'{"name": "julia"}')
    assert desk.holders.started == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {"default": "python3", "kernelspecs": {}}),
        ("?user=ada", {"default": "python3", "kernelspecs": {}}),
        # The gateway client glues the name to its user.
        ("?user=ada/ir", {"name": "ir", "spec": {}}),
    ],
)
async def test_the_kernelspecs_of_a_user(desk: Desk, query: str, found: object) -> None:
    response = await desk.ask("GET", f"/api/kernelspecs{query}")
    assert isinstance(response, web.Response)
    assert json.loads(response.body or b"") == found  # type: ignore[arg-type]


async def test_nothing_is_started_of_a_kernelspec_that_is_not_for_them(desk: Desk) -> None:
    rights = Rights({Action.START: frozenset({"ir"})})
    with pytest.raises(NotFound):
        await desk.ask("POST", "/api/kernels", b'{"name": "python3"}', rights=rights)
    assert desk.holders.started == []
    assert (await desk.start(rights=rights)).name == "ir"


@pytest.mark.parametrize(
    ("actions", "permitted"),
    [
        ([], {"kernels": [], "kernelspecs": [], "sessions": [], "contents": []}),
        (["list", "admin"], {"kernels": [], "kernelspecs": [], "sessions": [], "contents": []}),
        (
            ["view"],
            {"kernels": ["read"], "kernelspecs": [], "sessions": ["read"], "contents": []},
        ),
        (
            ["use"],
            {
                "kernels": ["read", "execute"],
                "kernelspecs": [],
                "sessions": ["read"],
                "contents": [],
            },
        ),
        (
            ["start", "view"],
            {
                "kernels": ["read", "write"],
                "kernelspecs": ["read"],
                "sessions": ["read", "write"],
                "contents": [],
            },
        ),
    ],
)
async def test_permissions_are_what_the_rights_leave(
    desk: Desk, actions: list[str], permitted: dict[str, list[str]]
) -> None:
    wanted = {resource: ["read", "write", "execute"] for resource in permitted}
    rights = Rights(dict.fromkeys(map(Action, actions)))
    query = quote(json.dumps(wanted))
    response = await desk.ask("GET", f"/api/me?permissions={query}", rights=rights)
    assert isinstance(response, web.Response)
    found = json.loads(response.body or b"")["permissions"]  # type: ignore[arg-type]
    assert found == {**permitted, "updatable_fields": []}


def test_every_route_has_a_handler(desk: Desk) -> None:
    # Channels are the one thing that REST does not serve.
    served = {route.name for route in ROUTES.of(Scope.CLUSTER) if not route.upgrades}
    assert set(desk.rest.handlers) == served
