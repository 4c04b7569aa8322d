from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp import web

from relay import limits
from relay.connections import SERVER_NAME, Timeouts, page_server
from relay.errors import NotFound, RelayError
from relay.http import RESPONSE_HEADERS, error_response, read_body
from tests.caller import Answer, Caller, chunked, get, post
from tests.fakes import FakeTransport
from tests.virtualtime import elapse, settle, virtual

SECRET = "s3cret"


async def hello(request: web.BaseRequest) -> web.Response:
    return web.Response(text="hello")


# What every answer says


@pytest.mark.parametrize("path", ["/", "/x"])
@virtual
async def test_no_answer_names_a_library(path: str) -> None:
    async def any_answer(request: web.BaseRequest) -> web.StreamResponse:
        request[RESPONSE_HEADERS] = {"Vary": "Origin"}
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
    assert answer.json()["message"] == "An internal error occurred."
    assert SECRET.encode() not in answer.body
    assert answer.headers["Server"] == SERVER_NAME
    assert caller.transport.is_closing()


BOUNDS: Any = {"request_line_bytes": 100, "header_bytes": 120, "headers": 20, "head_bytes": 1000}
TARGET, FIELD, COUNT, ALL = "request_line_bytes", "header_bytes", "headers", "head_bytes"


def get_target(size: int) -> bytes:
    return b"GET " + b"/".ljust(size, b"x") + b" HTTP/1.1\r\nHost: x\r\n\r\n"


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def get_of(size: int) -> bytes:
    """A request of so many bytes."""
    lines = ["A: " + "x" * 118] * 7
    return get(*lines, "C: ".ljust(size - len(get(*lines, "C: ")) + 3, "x"))


@pytest.mark.parametrize(
    ("at", "past", "setting"),
    [
        (get_target(100), get_target(101), TARGET),
        (get_target(100), get_target(5000), TARGET),
        (get("A: " + "x" * 120), get("A: " + "x" * 121), FIELD),
        (get("A: " + "x" * 120), get("A: " + "x" * 500), FIELD),
        (get("N" * 200 + ": x"), get("A: " + "x" * 121), FIELD),
        # One of them is the host.
        (get(*["A: x"] * 19), get(*["A: x"] * 20), COUNT),
        (get_of(1000), get_of(1001), ALL),
        (get_of(1000), get(*["A: " + "x" * 100] * 19), ALL),
    ],
)
@virtual
async def test_a_head_at_its_limit_and_one_past_it(at: bytes, past: bytes, setting: str) -> None:
    limits.counts.clear()
    for step in (10_000, 7):
        caller = Caller(hello, **BOUNDS)
        assert (await caller.send(*pieces(at, step))).status == 200
        answer = await caller.send(*pieces(past, step))
        assert answer.status == 400
        assert f"(limits.{setting})" in answer.json()["message"]
        assert caller.transport.is_closing()
        await settle()
    assert limits.counts == {f"limits.{setting}": 2}


@virtual
async def test_more_headers_than_the_parser_takes() -> None:
    caller = Caller(hello, headers=5)
    assert (await caller.send(get(*["A: x"] * 50))).status == 400
    assert caller.transport.is_closing()


@virtual
async def test_a_head_without_end_is_not_collected() -> None:
    caller = Caller(hello)
    taken = 0
    caller.transport.protocol.data_received(b"GET / HTTP/1.1\r\n")
    while not caller.transport.is_closing() and taken < 1_000_000:
        caller.transport.protocol.data_received(b"A: " + b"x" * 8000 + b"\r\n")
        taken += 8000
        await settle()
    assert taken < 50_000
    answer = Answer(caller.transport.take())
    assert answer.status == 400
    assert answer.json()["message"].endswith("over 32768 bytes (limits.head_bytes).")


# How long it may take

SLOW = Timeouts(head=10.0, body=30.0, write=30.0, idle=75.0, linger=0.0)


async def trickle(caller: Caller, data: bytes, pause: float) -> float:
    """Send byte by byte until the server has enough: the seconds that took."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for byte in data:
        caller.transport.protocol.data_received(bytes([byte]))
        await elapse(pause)
        if caller.transport.is_closing() or caller.transport.written:
            break
    return loop.time() - begin


@virtual
async def test_a_head_has_an_absolute_time() -> None:
    for before in (0, 2):
        caller = Caller(hello, SLOW)
        for _ in range(before):
            await caller.send(get())
            await asyncio.sleep(20)
        # Never silent for longer than a second.
        took = await trickle(caller, b"GET / HTTP/1.1\r\nA: " + b"x" * 100, 1.0)
        assert 9 < took <= 11
        answer = Answer(caller.transport.take())
        assert answer.status == 408
        assert answer.json()["reason"] == "Request timeout"
        assert "10 seconds (connections.head_timeout)" in answer.json()["message"]
        await settle()
        assert caller.transport.is_closing()


@virtual
async def test_a_head_that_is_slow_but_in_time() -> None:
    caller = Caller(hello, SLOW)
    await trickle(caller, get(), 9.9 / len(get()))
    assert Answer(caller.transport.take()).status == 200
    assert not caller.transport.is_closing()
    caller.leave()


@virtual
async def test_who_asks_for_nothing_gets_no_answer() -> None:
    caller = Caller(hello, SLOW)
    await asyncio.sleep(9.9)
    assert not caller.transport.is_closing()
    await asyncio.sleep(0.2)
    assert caller.transport.is_closing()
    assert not caller.transport.written


@virtual
async def test_a_body_has_an_absolute_time() -> None:
    async def upload(request: web.BaseRequest) -> web.Response:
        try:
            return web.Response(body=await read_body(request, 1000, "limits.body_bytes"))
        except RelayError as error:
            return error_response(error, "r1")

    for request_ in (post(bytes(200)), chunked(*[b"x"] * 200)):
        caller = Caller(upload, SLOW)
        head, _, body = request_.partition(b"\r\n\r\n")
        caller.transport.protocol.data_received(head[:-1])
        took = await trickle(caller, head[-1:] + b"\r\n\r\n" + body, 1.0)
        assert 30 < took <= 36
        await settle()
        answer = Answer(caller.transport.take())
        assert answer.status == 408
        assert "30 seconds (connections.body_timeout)" in answer.json()["message"]
        assert caller.transport.is_closing()
    caller = Caller(upload, SLOW)
    head, _, body = post(bytes(29)).partition(b"\r\n\r\n")
    caller.transport.protocol.data_received(head + b"\r\n\r\n")
    await trickle(caller, body, 1.0)
    assert Answer(caller.transport.take()).status == 200
    # And what comes next has its own time.
    await asyncio.sleep(20)
    assert (await caller.send(get())).status == 200
    caller.leave()


@virtual
async def test_a_body_that_nobody_wants_ends_the_connection() -> None:
    caller = Caller(hello, SLOW)
    head, _, _ = post(bytes(100)).partition(b"\r\n\r\n")
    assert (await caller.send(head + b"\r\n\r\n")).body == b"hello"
    assert caller.transport.is_closing()


@virtual
async def test_who_does_not_read_is_cut_off() -> None:
    caller = Caller(hello, msgspec.structs.replace(SLOW, head=None))
    caller.transport.protocol.pause_writing()
    await asyncio.sleep(29)
    caller.transport.protocol.resume_writing()
    caller.transport.protocol.pause_writing()
    await asyncio.sleep(29)
    assert not caller.transport.aborted
    await asyncio.sleep(2)
    assert caller.transport.aborted


@virtual
async def test_without_patience_there_is_no_end() -> None:
    caller = Caller(hello, Timeouts(idle=3600.0))
    await trickle(caller, get(), 30.0)
    assert Answer(caller.transport.take()).status == 200
    caller.leave()


@virtual
async def test_an_observer_is_told_of_begin_and_end() -> None:
    heard: list[str] = []

    class Visitor:
        def opened(self, transport: object) -> None:
            heard.append("begin")

        def closed(self) -> None:
            heard.append("end")

    caller = Caller(hello, visitor=Visitor())
    assert heard == ["begin"]
    caller.leave()
    assert heard == ["begin", "end"]


@virtual
async def test_a_connection_is_kept_for_a_while() -> None:
    caller = Caller(hello)
    for _ in range(3):
        assert (await caller.send(get())).body == b"hello"
        await asyncio.sleep(60)
    assert not caller.transport.is_closing()
    await asyncio.sleep(60)
    assert caller.transport.is_closing()
