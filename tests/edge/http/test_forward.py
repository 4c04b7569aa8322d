"""What the edge asks of agents for a client, and what it makes of their answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, Self
from urllib.parse import parse_qs

import msgspec
import pytest
from aiohttp import HttpVersion10, HttpVersion11, web

from relay import limits
from relay.auth.policy import Action, Rights
from relay.config import EdgeLimits, UpstreamSettings
from relay.edge.authn.revalidation import AuthorizedStream
from relay.edge.caller import Caller
from relay.edge.http.context import AuthorizedRequest
from relay.edge.http.forward import Forwarder
from relay.edge.upstream.call import CallTimeouts, UpstreamCall
from relay.errors import (
    AgentTimeout,
    AgentUnavailable,
    BadRequest,
    RelayError,
    TooLarge,
    Unauthorized,
)
from relay.http import NoResponse
from relay.metrics import EdgeMetrics
from relay.routing.table import Retry
from tests.edge.http.contexts import ALICE, CALLER, authorized, request
from tests.edge.test_parent import CONFIG

KERNEL = "0a0a0a0a-0000-4000-8000-000000000000"
SETTINGS = UpstreamSettings(
    request_timeout=10.0,
    start_timeout=90.0,
    hold=5.0,
    websocket_hold=20.0,
    reattach=60.0,
    link_ping_interval=15.0,
)
MIB = 1024 * 1024


class Answer:
    """An agent's answer; ``chunks`` are its body, errors among them included."""

    def __init__(
        self,
        *chunks: bytes | RelayError,
        status: int = 200,
        headers: dict[str, str] | None = None,
        is_chunked: bool = False,
        length: int | None = None,
    ) -> None:
        self.status = status
        self.headers = headers or {}
        self.is_chunked = is_chunked
        self.length = length
        self.broken_off: list[str] = []
        self.entered = 0
        self._chunks = chunks

    async def __aenter__(self) -> Self:
        self.entered += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.entered -= 1

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for chunk in self._chunks:
            if isinstance(chunk, RelayError):
                raise chunk
            yield chunk

    def break_off(self, reason: str) -> None:
        self.broken_off.append(reason)


class Desk:
    """A forwarder in front of an agent that gives one answer, or an error."""

    def __init__(self, answer: Answer | RelayError | None = None) -> None:
        self.answer = answer or Answer(b"{}")
        self.calls: list[tuple[str, UpstreamCall]] = []
        self.metrics = EdgeMetrics.local()
        config = msgspec.structs.replace(
            CONFIG, upstream=SETTINGS, limits=EdgeLimits(body_bytes=1000)
        )
        upstream: Any = self
        self.forwarder = Forwarder(config, upstream, self.metrics)

    async def call(self, cluster: str, call: UpstreamCall) -> Answer:
        self.calls.append((cluster, call))
        if isinstance(self.answer, RelayError):
            raise self.answer
        return self.answer

    async def asked(self, context: AuthorizedRequest) -> UpstreamCall:
        """What an agent is asked."""
        await self.forwarder.handle(context)
        ((cluster, call),) = self.calls
        assert cluster == "alpha"
        return call


async def body_of(response: web.StreamResponse) -> bytes:
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    return response.body


# What an agent is asked


async def test_what_was_checked_is_what_is_forwarded() -> None:
    path = f"/api/kernels/{KERNEL}"
    asked = request("DELETE", f"/alpha{path}?token=secret&user=x", b"abc")
    call = await Desk().asked(authorized("DELETE", f"{path}?token=secret&user=x", asked))
    assert (call.method, call.path, call.query, call.body) == ("DELETE", path, "", b"abc")
    assert (call.kernel_id, call.request_id) == (KERNEL, "r1")
    assert call.caller.principal == ALICE.principal


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/kernelspecs?user=ada/ir&token=secret&x=1", {"user": ["ada/ir"]}),
        ("/api/me?permissions=%7B%7D&user=ada", {"permissions": ["{}"]}),
        ("/api/kernels?user=ada", {}),
        (
            f"/api/kernels/{KERNEL}/messages?since=3&since=4&limit=1&heartbeat=0",
            {
                "since": ["3", "4"],
                "limit": ["1"],
            },
        ),
        (
            f"/api/kernels/{KERNEL}/messages?follow=true",
            {
                "follow": ["true"],
                "heartbeat": ["15.000000"],
            },
        ),
    ],
)
async def test_parameters_that_agents_know_are_passed_on_and_no_others(
    path: str, query: dict[str, list[str]]
) -> None:
    assert parse_qs((await Desk().asked(authorized("GET", path))).query) == query


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/kernels"),
        ("POST", "/api/sessions"),
        ("PATCH", f"/api/sessions/{KERNEL}"),
    ],
)
async def test_the_edge_chooses_the_id_of_what_is_started(method: str, path: str) -> None:
    ids = {(await Desk().asked(authorized(method, path))).kernel_id for _ in range(3)}
    assert len(ids) == 3
    assert all(each is not None and len(each) == 36 for each in ids)


async def test_a_ticket_for_no_kernel_is_no_ticket_for_any() -> None:
    assert (await Desk().asked(authorized("GET", "/api/kernels"))).kernel_id is None


K = f"/api/kernels/{KERNEL}"


@pytest.mark.parametrize(
    ("method", "path", "retry", "timeouts"),
    [
        ("GET", "/api/kernels", Retry.IDEMPOTENT, CallTimeouts(10.0, None, 5.0, 5.0)),
        ("HEAD", "/api/kernels", Retry.IDEMPOTENT, CallTimeouts(10.0, None, 5.0, 5.0)),
        ("POST", "/api/kernels", Retry.START, CallTimeouts(90.0, None, 20.0, 60.0)),
        ("POST", "/api/sessions", Retry.START, CallTimeouts(90.0, None, 20.0, 60.0)),
        ("DELETE", K, Retry.IDEMPOTENT, CallTimeouts(90.0, None, 5.0, 5.0)),
        ("POST", f"{K}/restart", Retry.ONCE, CallTimeouts(90.0, None, 5.0, 5.0)),
        ("POST", f"{K}/interrupt", Retry.ONCE, CallTimeouts(10.0, None, 5.0, 5.0)),
        ("PUT", f"{K}/grants/bob", Retry.IDEMPOTENT, CallTimeouts(10.0, None, 5.0, 5.0)),
        ("GET", f"{K}/messages", Retry.IDEMPOTENT, CallTimeouts(None, 10.0, 5.0, 5.0)),
        ("GET", f"{K}/messages?follow=true", Retry.IDEMPOTENT, CallTimeouts(None, 30.0, 5.0, 5.0)),
    ],
)
async def test_how_long_and_how_often_an_agent_is_asked(
    method: str, path: str, retry: Retry, timeouts: CallTimeouts
) -> None:
    call = await Desk().asked(authorized(method, path))
    assert (call.retry, call.timeouts) == (retry, timeouts)


@pytest.mark.parametrize(("size", "passed"), [(1000, True), (1001, False)])
async def test_a_body_has_a_limit(size: int, passed: bool) -> None:
    desk = Desk()
    asked = request("POST", "/alpha/api/kernels", b"x" * size)
    context = authorized("POST", "/api/kernels", asked)
    if passed:
        assert len((await desk.asked(context)).body) == size
    else:
        with pytest.raises(TooLarge, match=r"limits\.body_bytes"):
            await desk.forwarder.handle(context)
        assert desk.calls == []


@pytest.mark.parametrize("version", [HttpVersion10, HttpVersion11])
async def test_a_stream_needs_a_version_whose_end_can_be_seen(version: Any) -> None:
    desk = Desk()
    path = f"{K}/messages"
    context = authorized("GET", path, request("GET", path, version=version))
    if version == HttpVersion11:
        await desk.forwarder.handle(context)
    else:
        with pytest.raises(BadRequest, match=r"HTTP/1\.1"):
            await desk.forwarder.handle(context)
    assert len(desk.calls) == (version == HttpVersion11)


@pytest.mark.parametrize(
    ("method", "path", "error", "setting"),
    [
        ("GET", "/api", AgentTimeout("late"), "upstream.request_timeout"),
        ("POST", "/api/kernels", AgentTimeout("late"), "upstream.start_timeout"),
        ("GET", "/api", AgentUnavailable("away"), "upstream.hold"),
        ("POST", "/api/kernels", AgentUnavailable("away"), "upstream.websocket_hold"),
    ],
)
async def test_the_limit_that_was_reached_is_counted(
    method: str, path: str, error: RelayError, setting: str
) -> None:
    limits.counts.clear()
    with pytest.raises(type(error)):
        await Desk(error).forwarder.handle(authorized(method, path))
    assert limits.counts == {setting: 1}


async def test_an_answer_that_is_not_whole_in_time_counts_as_late() -> None:
    limits.counts.clear()
    with pytest.raises(AgentTimeout):
        await Desk(Answer(b"{", AgentTimeout("late"))).forwarder.handle(authorized("GET", "/api"))
    assert limits.counts == {"upstream.request_timeout": 1}
    # Broken off is not waited for in vain: no limit was reached.
    limits.counts.clear()
    broken = Answer(b"{", AgentUnavailable("broke off"))
    with pytest.raises(AgentUnavailable):
        await Desk(broken).forwarder.handle(authorized("GET", "/api"))
    assert limits.counts == {}
    assert broken.entered == 0


# What a client gets


async def test_a_short_answer_is_passed_on_whole() -> None:
    answer = Answer(b"{}", status=201, headers={"Content-Type": "application/json", "ETag": "x"})
    response = await Desk(answer).forwarder.handle(authorized("GET", "/api"))
    assert (response.status, await body_of(response)) == (201, b"{}")
    assert (response.headers["Content-Type"], response.headers["ETag"]) == ("application/json", "x")
    assert answer.entered == 0


@pytest.mark.parametrize("prefix", ["", "/services/relay", "/t/secret"])
async def test_a_location_is_what_the_client_can_ask_for(prefix: str) -> None:
    answer = Answer(b"{}", status=201, headers={"Location": f"/api/kernels/{KERNEL}"})
    context = authorized("POST", "/api/kernels", prefix=prefix)
    response = await Desk(answer).forwarder.handle(context)
    assert response.headers["Location"] == f"{prefix}/alpha/api/kernels/{KERNEL}"


SPEC = {"name": "ir", "resources": {"logo": "/alpha/kernelspecs/ir/logo.png"}}
PREFIXED = {"name": "ir", "resources": {"logo": "/t/x/alpha/kernelspecs/ir/logo.png"}}


@pytest.mark.parametrize(
    ("path", "body", "seen"),
    [
        (
            "/api/kernelspecs",
            {"default": "ir", "kernelspecs": {"ir": SPEC}},
            {"default": "ir", "kernelspecs": {"ir": PREFIXED}},
        ),
        ("/api/kernelspecs/ir", SPEC, PREFIXED),
    ],
)
async def test_links_bear_the_prefix_that_the_client_used(
    path: str, body: object, seen: object
) -> None:
    def answer() -> Answer:
        return Answer(json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    response = await Desk(answer()).forwarder.handle(authorized("GET", path, prefix="/t/x"))
    assert json.loads(await body_of(response)) == seen
    assert response.headers["Content-Type"] == "application/json"
    response = await Desk(answer()).forwarder.handle(authorized("GET", path))
    assert json.loads(await body_of(response)) == body


@pytest.mark.parametrize(("status", "body"), [(404, b'{"message": "no"}'), (200, b"")])
async def test_what_has_no_links_is_left_as_it_is(status: int, body: bytes) -> None:
    context = authorized("GET", "/api/kernelspecs", prefix="/t/x")
    response = await Desk(Answer(body, status=status)).forwarder.handle(context)
    assert (response.status, await body_of(response)) == (status, body)


# Long answers


class Client:
    """What a client reads: `web.StreamResponse`, without a connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.body = b""
        self.ended = False
        self.limit = 0
        client = self

        async def prepare(_: object, __: object) -> None:
            pass

        async def write(_: object, data: bytes) -> None:
            client.body += data

        async def write_eof(_: object, __: bytes = b"") -> None:
            client.ended = True

        class Transport:
            def set_write_buffer_limits(self, high: int) -> None:
                client.limit = high

        monkeypatch.setattr(web.StreamResponse, "prepare", prepare)
        monkeypatch.setattr(web.StreamResponse, "write", write)
        monkeypatch.setattr(web.StreamResponse, "write_eof", write_eof)
        monkeypatch.setattr("relay.edge.http.forward.transport_of", lambda _: Transport())


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(monkeypatch)


@pytest.mark.parametrize(
    ("answer", "streamed"),
    [
        (Answer(b"a", b"b", is_chunked=True), True),
        (Answer(b"a", b"b", length=MIB + 1), True),
        (Answer(b"a", b"b", length=MIB), False),
    ],
)
async def test_a_long_answer_is_passed_on_as_it_comes(
    client: Client, answer: Answer, streamed: bool
) -> None:
    response = await Desk(answer).forwarder.handle(authorized("GET", "/api/kernels"))
    if streamed:
        assert (client.body, client.ended, client.limit) == (b"ab", True, 64 * 1024)
        assert response.headers["X-Request-Id"] == "r1"
    else:
        assert await body_of(response) == b"ab"
    assert answer.entered == 0


async def test_the_answer_to_a_head_is_never_a_stream(client: Client) -> None:
    answer = Answer(is_chunked=True)
    response = await Desk(answer).forwarder.handle(authorized("HEAD", f"{K}/messages"))
    assert await body_of(response) == b""
    assert not client.ended


async def test_what_breaks_off_is_not_ended_as_if_it_were_whole(client: Client) -> None:
    desk = Desk(Answer(b"a", AgentUnavailable("broke off"), is_chunked=True))
    response = await desk.forwarder.handle(authorized("GET", "/api/kernels"))
    assert isinstance(response, NoResponse)
    assert (client.body, client.ended) == (b"a", False)
    assert desk.metrics.broken_answers.labels("alpha")._value.get() == 1


# Streams that end early


class Waiting(Answer):
    """A stream during which something happens."""

    def __init__(self, happens: Any) -> None:
        super().__init__(b"1", is_chunked=True)
        self._happens = happens

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield b"1"
        self._happens()
        if self.broken_off:
            raise AgentUnavailable(self.broken_off[0])
        yield b"2"


def stream_for(less: Caller = CALLER) -> AuthorizedStream:
    """A stream whose caller has ``less`` when it is authorised again."""
    return AuthorizedStream(ALICE, lambda _: less, CALLER, {})


@pytest.mark.parametrize("follow", [False, True])
async def test_a_caller_who_may_no_longer_is_cut_off(client: Client, follow: bool) -> None:
    stream = stream_for()
    desk = Desk(Waiting(lambda: stream.revoke(Unauthorized("the credential was revoked"))))
    context = authorized("GET", f"{K}/messages?follow={str(follow).lower()}")
    response = await desk.forwarder.handle(context, stream)
    assert isinstance(response, NoResponse)
    assert (client.body, client.ended) == (b"1", False)
    assert isinstance(desk.answer, Answer)
    assert desk.answer.broken_off == ["the credential was revoked"]


async def test_a_caller_with_other_rights_asks_anew(client: Client) -> None:
    stream = stream_for(Caller(ALICE.principal, Rights({Action.VIEW: None})))
    desk = Desk(Waiting(lambda: stream.reauthorize(ALICE)))
    response = await desk.forwarder.handle(authorized("GET", f"{K}/messages"), stream)
    assert isinstance(response, NoResponse)
    assert client.body == b"1"


@pytest.mark.parametrize(("follow", "cut"), [("true", True), ("false", False)])
async def test_an_edge_that_stops_cuts_what_would_never_end(
    client: Client, follow: str, cut: bool
) -> None:
    desk = Desk()
    desk.answer = Waiting(desk.forwarder.drain)
    context = authorized("GET", f"{K}/messages?follow={follow}")
    await desk.forwarder.handle(context, stream_for())
    assert client.body == (b"1" if cut else b"12")
    assert desk.answer.broken_off == (["the edge is stopping"] if cut else [])
    # What is over is not broken off again.
    desk.forwarder.drain()
    assert len(desk.answer.broken_off) == cut
