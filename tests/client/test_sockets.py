from __future__ import annotations

import pytest

from relay.bridge.session import REPLACED
from relay.client import KernelGone, Replaced, Settings
from relay.errors import AgentUnavailable, ClientError, Forbidden, NotFound, Unauthorized
from tests.client.fakekernel import at
from tests.client.fakerelay import answer, client_of, raw
from tests.waiting import until


async def test_a_broken_connection_is_not_noticed() -> None:
    async with client_of() as (relay, client):
        kernel = await client.start()
        execution = kernel.execute("hold")
        fake = relay.kernels[kernel.id]
        await until(lambda: fake.running is not None)
        await until(lambda: kernel.position == at(4))
        for count in range(2, 5):
            relay.cut()
            await until(lambda count=count: kernel.connections == count)  # type: ignore[misc]
        fake.release("here")
        assert (await execution.result()).stdout == "here"
        assert fake.ran == ["kernel_info_request", "hold"]
        assert kernel.repeated == 0
        # Each came back to where it stood: after busy, reply and idle, and busy again.
        assert [each["last_seq"] for each in relay.queries][1:] == [at(4)] * 3


@pytest.mark.parametrize("code", [1000, 1011, 1012])
async def test_after_some_close_codes_it_comes_again(code: int) -> None:
    async with client_of() as (relay, client):
        kernel = await client.start()
        execution = kernel.execute("hold")
        fake = relay.kernels[kernel.id]
        await until(lambda: fake.running is not None)
        await relay.sockets[0].close(code=code, message=b"the relay is restarting")
        fake.release("here")
        assert (await execution.result()).stdout == "here"
        assert kernel.connections == 2


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (4401, "expired", Unauthorized),
        (4403, "no longer", Forbidden),
        (*REPLACED, Replaced),
        (1008, "policy", ClientError),
    ],
)
async def test_after_others_it_does_not(code: int, reason: str, kind: type[Exception]) -> None:
    async with client_of() as (relay, client):
        kernel = await client.start()
        execution = kernel.execute("hold")
        await relay.sockets[0].close(code=code, message=reason.encode())
        with pytest.raises(kind):
            await execution.result()
        assert kernel.closed


async def test_refused_handshakes() -> None:
    async with client_of() as (relay, client):
        kernel = await client.start()
        relay.handshake = [answer(AgentUnavailable("away", retry_after=0)), raw(502)]
        relay.cut()
        assert (await kernel.run("print 1")).stdout == "0\n"
        assert relay.handshake == []
        relay.handshake = [answer(NotFound("no such kernel"))]
        relay.cut()
        with pytest.raises(KernelGone):
            await kernel.run("hold")


async def test_a_silent_connection_is_broken() -> None:
    settings = Settings(silent_after=0.05, retry_at_most=0.001)
    async with client_of(settings=settings) as (_, client):
        kernel = await client.start()
        await until(lambda: kernel.connections == 3)
        assert (await kernel.run("print 1")).ok


async def test_a_server_without_the_subprotocol_is_refused() -> None:
    async with client_of() as (relay, client):
        relay.protocols = ()
        with pytest.raises(ClientError, match="v1"):
            await client.start()


async def test_large_messages_come() -> None:
    async with client_of() as (_, client):
        kernel = await client.start()
        result = await kernel.run("big 5000000")
        (output,) = result.outputs
        assert len(output.data["text/plain"]) == 5_000_000  # type: ignore[union-attr]
