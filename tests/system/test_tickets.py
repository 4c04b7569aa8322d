"""An agent believes tickets and nothing else; the user's own token never gets that far."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from relay import pki
from relay.auth.policy import Action, Rights
from relay.auth.tickets import MAX_TICKET, Ticket, TicketSigner
from relay.bridge.control import Attach, Attached
from relay.bridge.records import HEADER, RecordKind, read_struct, struct_record
from relay.config import ClusterSettings, EdgeConfig, ListenSettings, TlsSettings, load
from relay.model import Principal
from relay.routing import routes
from relay.routing.table import Scope
from relay.supervisor.secrets import user_name
from tests.system.running import Answer, RunningRelay, http_request, processes_of
from tests.system.separate import Separate, admitting
from tests.system.wire import HANDSHAKE, Wire

SOMEBODY = Principal("token", user_name())
"""Whose the kernels are that the relay's own token starts."""
ABSENT = "00000000-0000-4000-8000-000000000000"
UPGRADE: Final = b"Connection: Upgrade\r\nUpgrade: relay-records\r\n"


class Route(NamedTuple):
    method: str
    path: str
    """``ID`` stands for the kernel's."""
    actions: frozenset[Action]
    """Any one of them will do."""

    @property
    def besides(self) -> frozenset[Action]:
        """What it does not take, but what makes a difference to the answer."""
        segments = tuple(self.path.replace("ID", ABSENT).split("/")[1:])
        route, _ = routes.ROUTES.match(Scope.CLUSTER, self.method, segments)
        return frozenset(map(Action, route.optional_actions))

    def names_a_kernel(self) -> bool:
        return "ID" in self.path or Action.START in self.actions


def takes(method: str, path: str, *actions: Action) -> Route:
    return Route(method, path, frozenset(actions))


CHANNELS: Final = takes("GET", "/api/kernels/ID/channels", Action.USE, Action.VIEW)


ROUTES: Final = (
    takes("GET", "/api", Action.LIST),
    takes("GET", "/api/kernels", Action.LIST),
    takes("POST", "/api/kernels", Action.START),
    takes("GET", "/api/kernels/ID", Action.VIEW, Action.USE),
    takes("DELETE", "/api/kernels/ID", Action.STOP),
    takes("POST", "/api/kernels/ID/interrupt", Action.INTERRUPT),
    takes("POST", "/api/kernels/ID/restart", Action.STOP),
    CHANNELS,
    takes("GET", "/api/kernels/ID/messages", Action.VIEW, Action.USE),
    takes("GET", "/api/kernels/ID/grants", Action.USE),
    takes("PUT", "/api/kernels/ID/grants/token:else", Action.USE),
    takes("DELETE", "/api/kernels/ID/grants/token:else", Action.USE),
    takes("GET", "/api/kernelspecs", Action.LIST),
    takes("GET", "/api/kernelspecs/python3", Action.LIST),
    takes("GET", "/kernelspecs/python3/logo-64x64.png", Action.LIST),
)


class Agent:
    """The agent of alpha, asked without an edge, by somebody who knows the edge's key."""

    def __init__(self, relay: RunningRelay) -> None:
        settings = load(EdgeConfig, relay.state / "run" / "edge.yaml", {})
        (self.url,) = settings.clusters["alpha"].agents
        self.private = Path(settings.ticket_key).read_bytes()
        self.public = (relay.state / "keys" / "ticket.pub").read_bytes()
        self.signer = TicketSigner(self.private)

    def ask(self, route: Route, kernel: str, *lines: str) -> Answer:
        """One request with these header lines; channels as an edge asks for them."""
        path = route.path.replace("ID", kernel)
        upgrade = UPGRADE if path.endswith("channels") else b""
        head = [f"{route.method} {path} HTTP/1.1", "Host: agent", *lines]
        with Wire(self.url, None) as wire:
            wire.send("\r\n".join(head).encode() + b"\r\n" + upgrade + b"\r\n")
            return wire.answer()

    def ticket(
        self,
        route: Route,
        own: str,
        /,
        *,
        signer: TicketSigner | None = None,
        age: float = 0.0,
        lifetime: float = 30.0,
        **changes: Any,
    ) -> str:
        """A good ticket for this route on one's own kernel, but for the changes.

        ``age`` is in seconds.
        """
        fields: dict[str, Any] = {
            "principal": SOMEBODY,
            "cluster": "alpha",
            "kernel": own if route.names_a_kernel() else None,
            "rights": Rights(dict.fromkeys(route.actions | route.besides)),
            "request_id": "0123456789abcdef" * 2,
        }
        ticket = Ticket(**{**fields, **changes})
        return (signer or self.signer).sign(ticket, time.time() - age, lifetime)

    def jwt(self, key: Any, algorithm: str, headers: Any = None, **claims: Any) -> str:
        """A ticket that `TicketSigner` would not sign."""
        now = time.time()
        fields = {
            "iss": "relay-edge",
            "aud": "alpha",
            "sub": str(SOMEBODY),
            "iat": now,
            "exp": now + 30,
            "kernel": None,
            "rights": {"list": None},
            "max_kernels": None,
            "request_id": "0123456789abcdef" * 2,
        }
        head = {"kid": self.signer.kid, "typ": "relay-ticket+jwt", **(headers or {})}
        payload = json.dumps({**fields, **claims}).encode()
        return jwt.PyJWS().encode(payload, key, algorithm=algorithm, headers=head)


@pytest.fixture(scope="module")
def agent(relay: RunningRelay) -> Agent:
    return Agent(relay)


def kernels(agent: Agent, kernel: str) -> list[dict[str, Any]]:
    """What runs, leaving out what changes by itself."""
    route = ROUTES[1]
    answer = agent.ask(route, kernel, f"Authorization: Bearer {agent.ticket(route, kernel)}")
    return [{"id": each["id"], "name": each["name"]} for each in answer.json]


def check(answer: Answer, status: int, reason: str) -> None:
    assert answer.status == status, answer
    assert answer.json.keys() == {"message", "reason", "request_id"}
    assert answer.json["reason"] == reason


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def others(route: Route) -> frozenset[Action]:
    """All that is no use for this route."""
    return frozenset(Action) - route.actions


# --- what is good, so that the rest shows something ---


ENDS_IN: Final = "api", "kernels", "ID", "interrupt", "channels", "kernelspecs", "python3", "png"
"""Of those that change nothing: whose answer is in one piece, and there without any grant."""


@pytest.mark.parametrize(
    "route",
    [
        each
        for each in ROUTES
        if each.path.endswith(ENDS_IN) and not each.actions & {"start", "stop"}
    ],
    ids=named,
)
def test_a_good_ticket_works(agent: Agent, kernel: str, route: Route) -> None:
    expected = {"channels": 101, "interrupt": 204}
    for action in route.actions:
        rights = Rights(dict.fromkeys({action} | route.besides))
        good = agent.ticket(route, kernel, rights=rights)
        answer = agent.ask(route, kernel, f"Authorization: Bearer {good}")
        assert answer.status == expected.get(route.path.rpartition("/")[2], 200)


def test_a_good_ticket_attaches_to_a_kernel(agent: Agent, kernel: str) -> None:
    route = CHANNELS
    with Wire(agent.url, None) as wire:
        ticket = agent.ticket(route, kernel).encode()
        path = route.path.replace("ID", kernel).encode()
        wire.send(b"GET %b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n" % (path, ticket))
        wire.send(UPGRADE + b"\r\n")
        answer = wire.answer()
        assert (answer.status, answer.headers["Upgrade"]) == (101, "relay-records")
        wire.send(struct_record(RecordKind.ATTACH, Attach(link="0" * 32, principal="token:else")))
        length, kind = HEADER.unpack(wire.read(HEADER.size))
        assert kind == RecordKind.ATTACHED
        assert read_struct(wire.read(length), Attached).position.seq > 0


# --- what is no ticket at all, or another's ---


@pytest.mark.parametrize("route", ROUTES, ids=named)
def test_nothing_is_done_without_a_ticket_of_the_edge(
    relay: RunningRelay, agent: Agent, kernel: str, route: Route
) -> None:
    before = kernels(agent, kernel)
    good = agent.ticket(route, kernel)
    stranger = TicketSigner(pki.new_ticket_keys().private)
    signature = agent.ticket(route, kernel, request_id="another").rpartition(".")[2]
    refused = {
        "nothing": [],
        "an empty one": ["Authorization: Bearer "],
        "another scheme": [f"Authorization: token {good}"],
        "no scheme": [f"Authorization: {good}"],
        "another header": [f"X-Authorization: Bearer {good}"],
        "two": [f"Authorization: Bearer {good}"] * 2,
        "another's key": [f"Authorization: Bearer {agent.ticket(route, kernel, signer=stranger)}"],
        "another's signature": [f"Authorization: Bearer {good.rpartition('.')[0]}.{signature}"],
        "another cluster": [f"Authorization: Bearer {agent.ticket(route, kernel, cluster='beta')}"],
        "expired": [f"Authorization: Bearer {agent.ticket(route, kernel, age=40)}"],
        "not yet": [f"Authorization: Bearer {agent.ticket(route, kernel, age=-20)}"],
        "padded": [f"Authorization: Bearer {good}=="],
        "the user's token": [f"Authorization: Bearer {relay.info.token}"],
        "the user's token, Jupyter's way": [f"Authorization: token {relay.info.token}"],
    }
    names = "X-Forwarded-User", "X-Remote-User", "Remote-User", "X-Forwarded-For", "KERNEL_USERNAME"
    refused["a name"] = [f"{name}: root" for name in names]
    for what, lines in refused.items():
        answer = agent.ask(route, kernel, *lines)
        assert (what, answer.status) == (what, 401)
        check(answer, 401, "Unauthorized")
    # In the query either.
    path = f"{route.path}?token={relay.info.token}&ticket={good}&access_token={good}"
    check(agent.ask(route._replace(path=path), kernel), 401, "Unauthorized")
    assert kernels(agent, kernel) == before


@pytest.mark.parametrize("route", ROUTES, ids=named)
def test_a_ticket_is_for_one_action_on_one_kernel(agent: Agent, kernel: str, route: Route) -> None:
    before = kernels(agent, kernel)
    other = str(uuid.uuid4())
    tickets = [
        agent.ticket(route, kernel, rights=Rights({action: None})) for action in others(route)
    ]
    tickets.append(agent.ticket(route, kernel, rights=Rights(dict.fromkeys(others(route)))))
    tickets.append(agent.ticket(route, kernel, rights=Rights()))
    if Action.START not in route.actions:
        # What a start's ticket names is the kernel that is going to be.
        tickets.append(agent.ticket(route, kernel, kernel=other))
    if "ID" in route.path:
        tickets.append(agent.ticket(route, kernel, kernel=None))
    for ticket in tickets:
        check(agent.ask(route, kernel, f"Authorization: Bearer {ticket}"), 403, "Forbidden")
    assert kernels(agent, kernel) == before


@pytest.mark.guarantee
def test_forgeries(agent: Agent, kernel: str) -> None:
    key = load_pem_private_key(agent.private, None)
    stranger = load_pem_private_key(pki.new_ticket_keys().private, None)
    now = time.time()

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    genuine = agent.jwt(key, "EdDSA")
    head, payload, signature = genuine.split(".")
    # PyJWT itself does not take a public key for an HMAC secret any more.
    secret = hashlib.sha256(agent.public).digest()
    forged = {
        "unsigned": agent.jwt(None, "none"),
        "unsigned, with a signature": f"{part({'alg': 'none'})}.{payload}.{signature}",
        "without its signature": f"{head}.{payload}.",
        "signed with what everybody knows": agent.jwt(secret, "HS256"),
        "our key's name on another's key": agent.jwt(stranger, "EdDSA"),
        "other claims": f"{head}.{part({'aud': 'alpha'})}.{signature}",
        "another type": agent.jwt(key, "EdDSA", {"typ": "JWT"}),
        "no key's name": agent.jwt(key, "EdDSA", {"kid": ""}),
        "a key of its own": agent.jwt(key, "EdDSA", {"jku": "http://127.0.0.1/"}),
        "critical": agent.jwt(key, "EdDSA", {"crit": ["x"], "x": 1}),
        "for a day": agent.jwt(key, "EdDSA", exp=now + 86_400),
        "for ever": agent.jwt(key, "EdDSA", exp=1e308),
        "until never": agent.jwt(key, "EdDSA", exp=None),
        "another issuer": agent.jwt(key, "EdDSA", iss="somebody"),
        "several clusters": agent.jwt(key, "EdDSA", aud=["alpha", "beta"]),
        "a part of our name": agent.jwt(key, "EdDSA", aud="alph"),
        "nobody's": agent.jwt(key, "EdDSA", sub=""),
        "a wish for more": agent.jwt(key, "EdDSA", admin=True),
        "an action that there is not": agent.jwt(key, "EdDSA", rights={"list": None, "fly": None}),
        "actions without kernelspecs": agent.jwt(key, "EdDSA", rights=["list"]),
        "a number that is none": agent.jwt(key, "EdDSA", max_kernels="5"),
        "too long": "x" * (MAX_TICKET + 1),
        "not ASCII": genuine[:-1] + "ä",
    }
    assert agent.ask(ROUTES[1], kernel, f"Authorization: Bearer {genuine}").status == 200
    for what, text in forged.items():
        answer = agent.ask(ROUTES[1], kernel, f"Authorization: Bearer {text}")
        assert (what, answer.status) == (what, 401)


def test_who_it_is_the_ticket_says(relay: RunningRelay, agent: Agent, kernel: str) -> None:
    started = str(uuid.uuid4())
    answer = http_request(
        agent.url,
        "POST",
        "/api/kernels",
        {"name": "python3", "env": {"KERNEL_USERNAME": "mallory"}},
        headers={
            "Authorization": f"Bearer {agent.ticket(ROUTES[2], started)}",
            "X-Forwarded-User": "mallory",
            "X-Remote-User": "mallory",
            "KERNEL_USERNAME": "mallory",
        },
    )
    assert (answer.status, answer.json["id"]) == (201, started)
    request = json.loads((relay.state / "alpha/kernels" / started / "request.json").read_bytes())
    assert request["owner"] == str(SOMEBODY)
    assert request["environment"]["KERNEL_USERNAME"] == SOMEBODY.subject
    # Somebody else's second start of it is not a way to it.
    other = agent.ticket(ROUTES[2], started, principal=Principal("token", "else"))
    check(agent.ask(ROUTES[2], started, f"Authorization: Bearer {other}"), 409, "Conflict")
    assert relay.request("DELETE", f"/alpha/api/kernels/{started}").status == 204


@pytest.mark.parametrize(
    "upgrade",
    [b"", HANDSHAKE, UPGRADE.replace(b"records", b"record"), UPGRADE.replace(b"relay", b"RELAY")],
)
def test_only_an_edge_opens_channels(agent: Agent, kernel: str, upgrade: bytes) -> None:
    route = CHANNELS
    with Wire(agent.url, None) as wire:
        path, ticket = route.path.replace("ID", kernel), agent.ticket(route, kernel)
        head = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ticket}\r\n"
        wire.send(head.encode() + upgrade + b"\r\n")
        assert wire.answer().status == 400


# --- the user's token ---


class Spy(BaseHTTPRequestHandler):
    """An agent that writes down all it is sent, and has nothing."""

    protocol_version = "HTTP/1.1"
    server: Spies

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.seen.append(f"{self.requestline}\r\n{self.headers}".encode() + body)
        self.server.headers.append(set(map(str.lower, self.headers)))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - the library's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


class Spies(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Spy)
        self.seen: list[bytes] = []
        self.headers: list[set[str]] = []


@contextlib.contextmanager
def spies() -> Iterator[Spies]:
    with Spies() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.guarantee
def test_an_agent_receives_the_ticket_and_never_the_token(
    relay: RunningRelay, tmp_path: Path
) -> None:
    token = relay.info.token
    hidden = {
        "Cookie": f"token={token}",
        "X-Forwarded-User": "root",
        "X-Remote-User": "root",
        "X-Authorization": f"token {token}",
        "Referer": f"https://relay/?token={token}",
        "X-Request-Id": "f" * 32,
        "User-Agent": "spied-on",
    }
    with spies() as agent:
        settings = EdgeConfig(
            https=ListenSettings(port=0),
            wss=ListenSettings(port=0),
            tls=TlsSettings(
                certificate=str(relay.state / "pki/server.pem"),
                key=str(relay.state / "pki/server.key"),
            ),
            workers=1,
            clusters={"alpha": ClusterSettings(agents=[f"http://127.0.0.1:{agent.server_port}"])},
            **admitting(relay.state / "tokens.json"),
            ticket_key=str(relay.state / "keys/ticket.key"),
        )
        with Separate(settings, tmp_path, relay.environ) as edge:
            kernel = "/alpha/api/kernels/00000000-0000-4000-8000-000000000000"
            for method, path in (
                ("GET", "/alpha/api?token={}"),
                ("GET", "/alpha/api/kernelspecs?user=U&token={}"),
                ("POST", "/alpha/api/kernels?token={}"),
                ("DELETE", kernel + "?token={}"),
                ("GET", kernel + "/channels?session_id=a&token={}"),
                ("GET", kernel + "/channels?session_id=a&t%6Fken={}"),
            ):
                lines = [f"{name}: {value}" for name, value in hidden.items()]
                lines.append(f"Authorization: Bearer {token}")
                target = path.format(token)
                head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: relay", *lines, ""])
                upgrade = HANDSHAKE if "/channels" in path else b""
                with Wire(f"https://{edge.ready['https']}", relay.tls) as wire:
                    wire.send(head.encode() + upgrade + b"\r\n")
                    assert wire.answer().status == 404
            assert token not in edge.log.read_text()
    assert len(agent.seen) == 6
    known = {"host", "authorization", "content-type", "content-length", "connection", "upgrade"}
    for names in agent.headers:
        assert names <= known
    for seen in agent.seen:
        # Whose it is, the ticket's own claims say, which are signed.
        assert b"Authorization: Bearer eyJ" in seen
        for part in (token.encode(), b"root", b"spied-on", b"f" * 32, b"token="):
            assert part not in seen


@pytest.mark.guarantee
def test_the_token_is_written_down_nowhere(relay: RunningRelay, kernel: str) -> None:
    token = relay.info.token
    channels = f"/alpha/api/kernels/{kernel}/channels?token={token}"
    for head in (
        f"GET /alpha/api?token={token} HTTP/1.1\r\nHost: relay\r\n",
        f"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nAuthorization: token {token}\r\n",
        f"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nAuthorization: Digest {token}\r\n",
        f"GET /alpha/{token} HTTP/1.1\r\nHost: relay\r\nAuthorization: token {token}\r\n",
        f"GET /alpha/../{token} HTTP/1.1\r\nHost: relay\r\nAuthorization: token {token}\r\n",
        f"GET /{token}/api HTTP/1.1\r\nHost: relay\r\nAuthorization: token {token}\r\n",
        f"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nAuthorization token {token}\r\n",
        f"GET /alpha/api?token={token} HTTP/9.9\r\nHost: relay\r\n",
        f"GET {channels} HTTP/1.1\r\nHost: relay\r\n{HANDSHAKE.decode()}",
        f"GET {channels} HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n",
    ):
        with Wire(relay.info.https_url, relay.tls) as wire:
            wire.send(f"{head}\r\n".encode())
            wire.answer()
    with relay.connect("alpha", kernel) as opened:
        opened.execute("1")
    # All of its log but the lines that show it.
    announced, _, logged = relay.log.read_text().partition("Ctrl-C stops the relay")
    assert token in announced
    secret = token.removeprefix("relay_")
    for start in range(len(secret) - 12):
        assert secret[start : start + 12] not in logged
    keepers = {relay.state / "first-token", relay.state / "relay.json"}
    for file in relay.state.rglob("*"):
        if file.is_file() and file not in keepers:
            assert secret.encode() not in file.read_bytes(), file
    for pid in processes_of(relay.folder):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for name in ("cmdline", "environ"):
                assert secret.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
