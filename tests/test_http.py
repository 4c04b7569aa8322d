from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from relay.errors import AgentUnavailable, NotFound, RelayError
from relay.http import (
    ANSWER_HEADERS,
    SERVER_NAME,
    TakenOver,
    error_response,
    json_response,
    page_server,
    read_body,
    server,
    transport_of,
)
from tests.fakes import FakeTransport
from tests.virtualtime import settle, virtual

SECRET = "s3cret"
LIMIT = 10


class Answer:
    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode("ascii").split("\r\n")
        self.status = int(status.split()[1])
        pairs = (line.partition(": ") for line in lines)
        self.headers = CIMultiDict((name, value) for name, _, value in pairs)

    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """A client of a server that answers by ``handler``, without a network."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **limits: int
    ) -> None:
        self.transport = FakeTransport(server(handler, **limits)())
        self.transport.protocol.connection_made(self.transport)

    async def send(self, *data: bytes) -> Answer:
        for piece in data:
            self.transport.protocol.data_received(piece)
            await settle()
        return Answer(self.transport.take())

    def leave(self) -> None:
        self.transport.lose()


async def hello(request: web.BaseRequest) -> web.Response:
    return web.Response(text="hello")


async def echo(request: web.BaseRequest) -> web.Response:
    try:
        return web.Response(body=await read_body(request, LIMIT, "limits.body_bytes"))
    except RelayError as error:
        return error_response(error, "r1")


def get(*headers: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST / HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*chunks: bytes) -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


# Answers


def test_json_is_said_to_be_json() -> None:
    response = json_response({"a": [1, None]}, 201)
    assert response.status == 201
    assert response.content_type == "application/json"
    assert json.loads(response.body or b"") == {"a": [1, None]}  # type: ignore[arg-type]


def test_an_error_tells_its_message_its_reason_and_whom_to_ask() -> None:
    response = error_response(NotFound("There is no such kernel."), "r1")
    assert response.status == 404
    assert json.loads(response.body or b"") == {  # type: ignore[arg-type]
        "message": "There is no such kernel.",
        "reason": "Not found",
        "request_id": "r1",
    }
    assert "Retry-After" not in response.headers


def test_an_error_says_when_to_try_again() -> None:
    response = error_response(AgentUnavailable("away", retry_after=2), "r1")
    assert response.status == 503
    assert response.headers["Retry-After"] == "2"


# Bodies


@virtual
async def test_a_body_is_read() -> None:
    caller = Caller(echo)
    assert (await caller.send(post(b"0123456789"))).body == b"0123456789"
    assert (await caller.send(get())).body == b""
    caller.leave()


@virtual
async def test_a_body_in_pieces_is_read() -> None:
    caller = Caller(echo)
    data = post(b"0123456789")
    assert (await caller.send(data[:-7], data[-7:-3], data[-3:])).body == b"0123456789"
    assert (await caller.send(chunked(b"01234", b"56789"))).body == b"0123456789"
    caller.leave()


@pytest.mark.parametrize("request_", [post(b"0123456789a"), chunked(b"01234", b"56789", b"a")])
@virtual
async def test_a_body_over_the_limit_is_refused(request_: bytes) -> None:
    caller = Caller(echo)
    answer = await caller.send(request_)
    assert answer.status == 413
    assert "limits.body_bytes" in answer.json()["message"]
    caller.leave()


@virtual
async def test_a_body_that_says_it_is_too_long_is_not_waited_for() -> None:
    caller = Caller(echo)
    head, _, _ = post(bytes(LIMIT + 1)).partition(b"\r\n\r\n")
    assert (await caller.send(head + b"\r\n\r\n")).status == 413
    caller.leave()


@pytest.mark.parametrize(
    ("encoding", "status"),
    [
        ("gzip", 415),
        ("GZIP", 415),
        ("x", 415),
        ("", 415),
        ("identity, gzip", 415),
        ("Identity", 200),
    ],
)
@virtual
async def test_compressed_bodies_are_refused(encoding: str, status: int) -> None:
    caller = Caller(echo)
    assert (await caller.send(post(b"x", f"Content-Encoding: {encoding}"))).status == status
    caller.leave()


@virtual
async def test_no_second_header_hides_a_compressed_body() -> None:
    caller = Caller(echo)
    twice = "Content-Encoding: identity", "Content-Encoding: gzip"
    assert (await caller.send(post(b"x", *twice))).status == 415
    caller.leave()


# What every answer says


@pytest.mark.parametrize("path", ["/", "/x"])
@virtual
async def test_no_answer_names_a_library(path: str) -> None:
    async def any_answer(request: web.BaseRequest) -> web.StreamResponse:
        request[ANSWER_HEADERS] = {"Vary": "Origin"}
        if request.path == "/x":
            return error_response(NotFound("x"), "r1")
        response = web.StreamResponse(headers={"Content-Length": "0"})
        await response.prepare(request)
        return response

    caller = Caller(any_answer)
    answer = await caller.send(get().replace(b"/", path.encode(), 1))
    assert answer.headers.getall("Server") == [SERVER_NAME]
    assert answer.headers["Vary"] == "Origin"
    caller.leave()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /metrics", 200),
        ("GET /", 404),
        ("GET /metrics/", 404),
        ("GET /metrics/../x", 404),
        ("POST /metrics", 405),
        ("OPTIONS /metrics", 405),
    ],
)
@virtual
async def test_a_page_says_nothing_else(line: str, status: int) -> None:
    caller = Caller(hello)
    caller.transport = FakeTransport(page_server("/metrics", lambda _: (b"x", "text/plain"))())
    caller.transport.protocol.connection_made(caller.transport)
    answer = await caller.send(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.status == status
    assert answer.headers.getall("Server") == [SERVER_NAME]
    if status == 200:
        assert answer.body == b"x"
    else:
        assert answer.json().keys() == {"message", "reason", "request_id"}
        assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    caller.leave()


# What is not HTTP, or goes wrong


@pytest.mark.parametrize(
    "data",
    [
        f"GET /?token={SECRET} HTTP/9.9\r\n\r\n".encode(),
        f"{SECRET}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nA{SECRET}\x00: b\r\n\r\n".encode(),
        f"POST / HTTP/1.1\r\nContent-Length: {SECRET}\r\n\r\n".encode(),
        f"GET /{SECRET} {SECRET} HTTP/1.1\r\n\r\n".encode(),
        b"\x16\x03\x01\x02\x00",
    ],
)
@virtual
async def test_what_is_no_http_is_answered_without_quoting_it(
    data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    caller = Caller(hello)
    answer = await caller.send(data)
    assert answer.status == 400
    assert answer.json() == {
        "message": "The request is not valid HTTP.",
        "reason": "Bad request",
        "request_id": answer.headers["X-Request-Id"],
    }
    assert answer.headers["Server"] == SERVER_NAME
    assert SECRET.encode() not in answer.body
    assert caller.transport.is_closing()
    await settle()
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err


@virtual
async def test_an_error_nobody_foresaw_is_told_without_its_text() -> None:
    async def fail(request: web.BaseRequest) -> web.Response:
        raise ValueError(SECRET)

    caller = Caller(fail)
    answer = await caller.send(get())
    assert answer.status == 500
    assert answer.json()["message"] == "Something went wrong here."
    assert SECRET.encode() not in answer.body
    assert answer.headers["Server"] == SERVER_NAME
    assert caller.transport.is_closing()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * 70 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /" + b"x" * 200 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (get("A: " + "x" * 70), 200),
        (get("A: " + "x" * 200), 400),
        (get(*["A: x"] * 4), 200),
        (get(*["A: x"] * 6), 400),
    ],
)
@virtual
async def test_what_comes_before_a_body_has_limits(request_: bytes, status: int) -> None:
    caller = Caller(hello, request_line_bytes=100, header_bytes=100, headers=5)
    assert (await caller.send(request_)).status == status
    caller.leave()


@virtual
async def test_a_connection_is_kept_for_a_while() -> None:
    caller = Caller(hello)
    for _ in range(3):
        assert (await caller.send(get())).body == b"hello"
        await asyncio.sleep(60)
    assert not caller.transport.is_closing()
    await asyncio.sleep(60)
    assert caller.transport.is_closing()


# Taking over


@virtual
async def test_nothing_is_sent_for_a_connection_that_was_taken_over() -> None:
    async def take_over(request: web.BaseRequest) -> web.StreamResponse:
        transport_of(request).write(b"mine")
        return TakenOver()

    caller = Caller(take_over)
    caller.transport.protocol.data_received(get())
    await settle()
    assert caller.transport.take() == b"mine"
    # And aiohttp does not wait for another request on it.
    assert caller.transport.is_closing()


@virtual
async def test_a_client_that_went_away_has_no_connection() -> None:
    gone = asyncio.Event()

    async def late(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(1)
        with pytest.raises(ConnectionResetError):
            transport_of(request)
        gone.set()
        return TakenOver()

    caller = Caller(late)
    caller.transport.protocol.data_received(get())
    await settle()
    caller.leave()
    await asyncio.wait_for(gone.wait(), 2)


@virtual
async def test_a_connection_that_is_closing_is_none() -> None:
    refused = asyncio.Event()

    async def closing(request: web.BaseRequest) -> web.StreamResponse:
        caller.transport._closing = True
        with pytest.raises(ConnectionResetError):
            transport_of(request)
        refused.set()
        return TakenOver()

    caller = Caller(closing)
    caller.transport.protocol.data_received(get())
    await settle()
    assert refused.is_set()
    caller.leave()
