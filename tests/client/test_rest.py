from __future__ import annotations

import socket

import aiohttp
import pytest

from relay.client import GaveUp, RelayClient, Settings
from relay.client.rest import RestClient
from relay.errors import (
    AgentError,
    AgentUnavailable,
    Forbidden,
    NotFound,
    RelayError,
    StartFailed,
    TooMany,
    Unauthorized,
)
from tests.client.fakerelay import FAST, FakeRelay, answer, broken, client_of, late, raw, serving

AWAY = AgentUnavailable("The cluster is away.")


@pytest.mark.parametrize("error", [NotFound("what"), Forbidden("what"), TooMany("what")])
async def test_what_the_relay_refuses_is_not_asked_again(error: RelayError) -> None:
    async with client_of() as (relay, client):
        relay.trouble = [answer(error)]
        with pytest.raises(type(error), match="what"):
            await client.kernels()
        assert len(relay.requests) == 1


async def test_a_wrong_token_is_told() -> None:
    async with client_of(token="wrong") as (_, client):
        with pytest.raises(Unauthorized, match="token"):
            await client.kernels()


async def test_a_relay_that_is_away_is_asked_again() -> None:
    async with client_of() as (relay, client):
        relay.trouble = [answer(AWAY), raw(502, "<html>"), raw(504), broken]
        assert await client.kernels() == []
        assert len(relay.requests) == 5


async def test_a_relay_that_stays_away_is_given_up() -> None:
    settings = Settings(give_up_after=0.05, retry_at_most=0.001)
    async with client_of(settings=settings) as (relay, client):
        relay.trouble = [answer(AWAY)] * 10_000
        with pytest.raises(GaveUp, match="The cluster is away"):
            await client.kernels()


async def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    settings = Settings(request_timeout=0.05, retry_at_most=0.001)
    async with client_of(settings=settings) as (relay, client):
        relay.trouble = [late]
        assert await client.kernels() == []


async def test_a_connection_that_does_not_come_about_is_not_waited_for() -> None:
    settings = Settings(connect_timeout=0.01, give_up_after=0.05, retry_at_most=0.001)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        async with RelayClient(url, settings=settings) as client:
            with pytest.raises(GaveUp, match="ConnectionTimeoutError"):
                await client.kernels()


async def test_what_no_connection_came_about_for_is_repeated_whatever_it_is() -> None:
    settings = Settings(give_up_after=0.05, retry_at_most=0.001)
    timeout = aiohttp.ClientTimeout(sock_connect=0.01)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        async with aiohttp.ClientSession(timeout=timeout) as session:
            rest = RestClient(session, url, settings, lambda: 1.0)
            with pytest.raises(GaveUp):
                await rest.call("POST", "/interrupt", {}, repeatable=False)


async def test_a_start_is_repeated_with_the_same_id() -> None:
    async with client_of() as (relay, client):
        relay.trouble = [answer(AWAY), broken]
        kernel = await client.start("python3", env={"KERNEL_A": "1"}, path="a")
        assert len(relay.requests) == 4
        assert list(relay.kernels) == [kernel.id]
        assert relay.bodies == [
            {"name": "python3", "kernel_id": kernel.id, "env": {"KERNEL_A": "1"}, "path": "a"}
        ]


async def test_a_start_that_fails_is_told() -> None:
    async with client_of() as (relay, client):
        relay.trouble = [answer(StartFailed("It said: no."))]
        with pytest.raises(StartFailed, match="It said: no"):
            await client.start()


@pytest.mark.parametrize("what", ["interrupt", "restart"])
async def test_what_may_not_happen_twice_is_not_repeated(what: str) -> None:
    async with client_of() as (relay, client):
        kernel = await client.start()
        relay.trouble = [answer(AWAY)]
        before = len(relay.requests)
        with pytest.raises(AgentError):
            await getattr(kernel, what)()
        assert len(relay.requests) == before + 1


async def test_what_nobody_has_seen_is_repeated_whatever_it_is() -> None:
    async with serving() as (_, url):
        pass  # from here on nobody listens there
    settings = Settings(give_up_after=0.05, retry_at_most=0.001)
    async with RelayClient(url, settings=settings) as client:
        with pytest.raises(GaveUp):
            await client._rest.call("POST", "/api/kernels/k/interrupt", {}, repeatable=False)


async def test_a_redirect_is_not_followed() -> None:
    async with client_of() as (relay, client):
        relay.trouble = [raw(302, Location="/elsewhere")]
        with pytest.raises(RelayError, match="302"):
            await client.kernels()
        assert len(relay.requests) == 1


def test_the_fast_settings_are_for_tests() -> None:
    assert FAST.retry_at_most < Settings().retry_at_most
    assert FakeRelay().trouble == []
