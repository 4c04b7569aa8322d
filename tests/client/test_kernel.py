from __future__ import annotations

import json
from typing import Any

import pytest

from relay.bridge.messages import Channel, Message
from relay.bridge.ws_codec import Subprotocol, decode
from relay.client import KernelRestarted, Settings
from relay.client.kernel import Kernel
from relay.errors import BadRequest, NotFound
from tests.client.fakeclient import Way, connected
from tests.client.fakekernel import EPOCH, FakeKernel, at, lines
from tests.virtualtime import settle, virtual


class Recorder(FakeKernel):
    """Keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Message] = []

    def submit(self, payload: bytes) -> None:
        self.requests.append(decode(Subprotocol.V1, text=False, payload=payload))
        super().submit(payload)


async def say(_: object) -> str:
    return ""


@virtual
async def test_a_request_is_what_the_specification_says() -> None:
    kernel = Recorder()
    async with connected(Way(kernel)) as client:
        await client.run("x", silent=True, stop_on_error=False)
        await client.run("x", on_input=say)
    contents = [json.loads(bytes(each.content)) for each in kernel.requests]
    assert contents[0] == {
        "code": "x",
        "silent": True,
        "store_history": True,
        "stop_on_error": False,
        "user_expressions": {},
        "allow_stdin": False,
    }
    assert contents[1]["allow_stdin"] is True
    head = json.loads(bytes(kernel.requests[0].header))
    assert (head["session"], head["msg_type"], head["version"]) == ("s", "execute_request", "5.3")


@virtual
async def test_anything_can_be_asked_on_either_channel() -> None:
    kernel = Recorder()
    async with connected(Way(kernel)) as client:
        assert await client.request("complete_request", {"code": ""}) == {"status": "ok"}
        assert await client.request("debug_request", control=True) == {"status": "ok"}
    assert [each.channel for each in kernel.requests] == [Channel.SHELL, Channel.CONTROL]


@virtual
async def test_cells_that_run_together_are_told_apart() -> None:
    kernel = FakeKernel()
    async with connected(Way(kernel)) as client:
        first, second = client.execute("print 2"), client.execute("print 3")
        assert (await second.result()).stdout == "0\n1\n2\n"
        assert client.position == at(1)
        assert (await first.result()).stdout == "0\n1\n"
    assert kernel.ran == ["print 2", "print 3"]


@virtual
async def test_another_process_goes_on_where_this_one_stood() -> None:
    kernel = FakeKernel()
    way = Way(kernel)
    taken: list[Any] = []
    async with connected(way) as client:
        execution = client.execute("print 9", msg_id="mine")
        async for output in execution:
            taken.append(output)
            if len(taken) == 4:
                break
        position = client.position
        await settle()
    assert position == at(5)
    async with connected(way, last_seq=position) as other:
        taken += [each async for each in other.resume("mine", "print 9")]
    assert [each.text for each in taken] == lines(9)
    assert kernel.ran.count("print 9") == 1
    assert other.repeated == 0


@virtual
async def test_an_execution_that_was_ahead_has_a_position_of_its_own() -> None:
    kernel = FakeKernel()
    way = Way(kernel)
    async with connected(way) as client:
        slow, fast = client.execute("print 3", msg_id="a"), client.execute("print 3", msg_id="b")
        assert [await anext(fast), await anext(fast)]
        position, ahead = client.position, fast.position
        del slow
    assert position == at(1)
    async with connected(way, last_seq=position) as other:
        first, second = other.resume("a"), other.resume("b", after=ahead)
        assert (await first.result()).stdout == "0\n1\n2\n"
        assert (await second.result()).stdout == "2\n"


@virtual
async def test_a_restart_over_rest() -> None:
    kernel = FakeKernel()
    async with connected(Way(kernel)) as client:
        before = client.execute("hold")
        await settle()
        kernel.lose_process("starting")
        await client.restart()
        after = client.execute("print 1")
        with pytest.raises(KernelRestarted):
            await before.result()
        assert (await after.result()).stdout == "0\n"


@virtual
async def test_its_life_is_rest() -> None:
    async with connected(Way(FakeKernel())) as client:
        await client.interrupt()
        await client.shutdown()
        calls = client._rest.calls  # type: ignore[attr-defined]
    assert calls == [("POST", "/api/kernels/k/interrupt"), ("DELETE", "/api/kernels/k")]


@virtual
async def test_a_kernel_that_is_gone_has_been_shut_down() -> None:
    async def call(*_: object, **__: object) -> bytes:
        raise NotFound("no such kernel")

    async with connected(Way(FakeKernel())) as client:
        client._rest.call = call  # type: ignore[method-assign]
        await client.shutdown()
        with pytest.raises(NotFound):
            await client.model()


@virtual
async def test_a_position_that_is_none_is_refused() -> None:
    async with connected(Way(FakeKernel())) as client:
        with pytest.raises(BadRequest, match="position"):
            client.resume("mine", after="yesterday")


@virtual
async def test_it_is_a_context_of_its_own() -> None:
    async with connected(Way(FakeKernel()), settings=Settings()) as client:
        async with client as same:
            assert isinstance(same, Kernel)
            assert not same.closed
        assert client.closed
        assert (client.session_id, client.position, client.connections) == ("s", None, 0)


def test_positions_are_as_the_relay_has_them() -> None:
    assert at(3) == f"{EPOCH}-3"
