from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from relay.errors import AgentUnavailable, NotFound, RelayError
from relay.http import NoResponse, error_response, json_response, read_body, transport_of
from tests.caller import Caller, chunked, get, post
from tests.virtualtime import settle, virtual

LIMIT = 10


async def echo(request: web.BaseRequest) -> web.Response:
    try:
        return web.Response(body=await read_body(request, LIMIT, "limits.body_bytes"))
    except RelayError as error:
        return error_response(error, "r1")


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


# Taking over


@virtual
async def test_nothing_is_sent_for_a_connection_that_was_taken_over() -> None:
    async def take_over(request: web.BaseRequest) -> web.StreamResponse:
        transport_of(request).write(b"mine")
        return NoResponse()

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
        return NoResponse()

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
        return NoResponse()

    caller = Caller(closing)
    caller.transport.protocol.data_received(get())
    await settle()
    assert refused.is_set()
    caller.leave()
