from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict

from relay.edge.upstream.response import CHUNK_BYTES, UpstreamResponse
from relay.errors import AgentTimeout, AgentUnavailable, RelayError
from tests.fakes import FakeTransport
from tests.virtualtime import settle, virtual


class FakeResponse:
    """An aiohttp response whose body a test feeds."""

    def __init__(self, status: int = 200, **headers: str) -> None:
        self.status = status
        self.headers = CIMultiDict({name.replace("_", "-"): v for name, v in headers.items()})
        length = self.headers.get("Content-Length")
        self.content_length = None if length is None else int(length)
        loop = asyncio.get_running_loop()
        protocol = BaseProtocol(loop)
        protocol.connection_made(FakeTransport(protocol))
        self.content = aiohttp.StreamReader(protocol, 2**16, loop=loop)
        self.released = False

    async def read(self) -> bytes:
        return await self.content.read()

    def release(self) -> None:
        self.released = True


def response_of(fake: FakeResponse) -> UpstreamResponse:
    given: Any = fake
    return UpstreamResponse("alpha", given)


async def collected(response: UpstreamResponse, into: list[bytes]) -> None:
    async for chunk in response.chunks():
        into.append(chunk)  # noqa: PERF401 - a test looks into it before it is whole


async def test_headers_that_are_not_for_clients_stay_behind() -> None:
    fake = FakeResponse(
        201, content_type="a/b", location="/x", set_cookie="a=b", server="s", retry_after="1"
    )
    response = response_of(fake)
    assert response.status == 201
    assert response.headers == {"Content-Type": "a/b", "Location": "/x", "Retry-After": "1"}


@pytest.mark.parametrize(
    ("headers", "is_chunked", "length"),
    [
        ({"transfer_encoding": "chunked"}, True, None),
        ({"transfer_encoding": "Chunked"}, True, None),
        ({"content_length": "5"}, False, 5),
        ({}, False, None),
    ],
)
async def test_how_its_end_is_told(
    headers: dict[str, str], is_chunked: bool, length: int | None
) -> None:
    response = response_of(FakeResponse(200, **headers))
    assert (response.is_chunked, response.length) == (is_chunked, length)


async def test_a_body_is_read_whole() -> None:
    fake = FakeResponse()
    fake.content.feed_data(b"a" * 100_000)
    fake.content.feed_eof()
    async with response_of(fake) as response:
        assert await response.read() == b"a" * 100_000
        assert not fake.released
    assert fake.released


@virtual
async def test_a_body_comes_in_chunks_of_no_more_than_a_size() -> None:
    fake, chunks = FakeResponse(), list[bytes]()
    fake.content.feed_data(b"a" * (CHUNK_BYTES + 1))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(collected(response_of(fake), chunks))
        await settle()
        assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, 1]
        fake.content.feed_data(b"b")
        await settle()
        assert chunks[-1] == b"b"
        fake.content.feed_eof()


FAILURES = [
    (aiohttp.ClientPayloadError("cut"), AgentUnavailable),
    (aiohttp.ServerDisconnectedError(), AgentUnavailable),
    (ConnectionResetError(), AgentUnavailable),
    (aiohttp.SocketTimeoutError(), AgentTimeout),
    (TimeoutError(), AgentTimeout),
]


@pytest.mark.parametrize(("failure", "error"), FAILURES)
async def test_errors_of_the_library_stay_behind(
    failure: Exception, error: type[RelayError]
) -> None:
    for read in (lambda response: response.read(), lambda response: collected(response, [])):
        fake = FakeResponse()
        fake.content.feed_data(b"a")
        fake.content.set_exception(failure)
        with pytest.raises(error, match="'alpha'") as caught:
            await read(response_of(fake))
        assert caught.value.retry_after == 1


@virtual
async def test_a_pending_read_ends_when_it_is_broken_off() -> None:
    fake, chunks = FakeResponse(), list[bytes]()
    response = response_of(fake)
    fake.content.feed_data(b"a")
    reading = asyncio.gather(collected(response, chunks), return_exceptions=True)
    await settle()
    assert (chunks, reading.done()) == ([b"a"], False)
    response.break_off("rights have changed")
    (error,) = await reading
    assert isinstance(error, AgentUnavailable)
