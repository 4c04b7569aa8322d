from __future__ import annotations

from typing import Any

import pytest

from relay.client import RelayClient
from relay.errors import BadRequest, NotFound
from tests.client.fakerelay import client_of


async def test_a_kernel_is_started_and_used() -> None:
    async with client_of() as (relay, client):
        kernel = await client.start("python3", parameters={"cpus": 2})
        assert kernel.position is not None
        assert (await kernel.run("print 2")).stdout == "0\n1\n"
        assert (await kernel.model()).id == kernel.id
        assert [each.id for each in await client.kernels()] == [kernel.id]
        assert (await client.kernelspecs())["default"] == "python3"
        assert relay.bodies[0]["parameters"] == {"cpus": 2}
        await kernel.shutdown()
        assert await client.kernels() == []


async def test_a_kernel_is_found_again() -> None:
    async with client_of() as (relay, client):
        first = await client.start()
        result = await first.run("print 1")
        assert result.ok
        position, session_id = first.position, first.session_id
        await first.close()
        second = await client.connect(first.id, session_id=session_id, last_seq=position)
        assert (await second.run("print 2")).stdout == "0\n1\n"
        assert relay.queries[-1] == {"session_id": session_id, "last_seq": position}
        stranger = await client.connect(first.id)
        assert stranger.session_id != session_id
        assert (await stranger.run("print 1")).ok


async def test_an_unknown_kernel_is_told_at_once() -> None:
    async with client_of() as (_, client):
        with pytest.raises(NotFound, match="no-such-kernel"):
            await client.connect("no-such-kernel")


async def test_a_position_that_is_none_is_refused() -> None:
    async with client_of() as (relay, client):
        with pytest.raises(BadRequest, match="position"):
            await client.connect("any", session_id="s", last_seq="yesterday")
        assert relay.requests == []


async def test_leaving_closes_everything_and_lets_errors_through() -> None:
    async def script() -> None:
        async with client_of() as (relay, client):
            seen.extend([relay, await client.start()])
            raise ZeroDivisionError

    seen: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        await script()
    relay, kernel = seen
    assert kernel.closed
    assert kernel.id in relay.kernels


@pytest.mark.parametrize(
    "url", ["", "relay:8443", "ftp://relay", "https://", "wss://relay/alpha", "https://relay/a?b=c"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="http"):
        RelayClient(url)


def test_the_channels_url_follows_from_the_other() -> None:
    assert RelayClient("https://http.example/alpha/")._ws_url == "wss://http.example/alpha"
    assert RelayClient("http://127.0.0.1:1/a")._ws_url == "ws://127.0.0.1:1/a"
    with pytest.raises(BadRequest, match="wss"):
        RelayClient("https://relay/alpha", ws_url="https://relay/alpha")


def test_jupyters_own_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_GATEWAY_URL", "https://relay:8443/alpha")
    monkeypatch.setenv("JUPYTER_GATEWAY_WS_URL", "wss://relay:8444/alpha")
    monkeypatch.setenv("JUPYTER_GATEWAY_AUTH_TOKEN", "secret")
    client = RelayClient.from_environment()
    assert (client._url, client._ws_url) == ("https://relay:8443/alpha", "wss://relay:8444/alpha")
    assert client._headers == {"Authorization": "token secret"}
    monkeypatch.delenv("JUPYTER_GATEWAY_URL")
    with pytest.raises(BadRequest, match="JUPYTER_GATEWAY_URL"):
        RelayClient.from_environment()
