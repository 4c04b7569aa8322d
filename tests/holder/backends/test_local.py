from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from relay.bridge.messages import Channel, Message
from relay.bridge.zmq_codec import Signer
from relay.holder.backends.local import ZmqChannel
from relay.holder.backends.sockets import Endpoints

SIGNER = Signer(b"key")
WAIT = 20.0
REQUEST = Message.from_parts(Channel.SHELL, [b'{"msg_id":"m"}', b"{}", b"{}", b"{}", b"buffer"])


class Kernel:
    """The kernel's end of its shell and its heartbeat."""

    def __init__(self, folder: Path) -> None:
        self.endpoints = Endpoints(
            addresses={channel: f"ipc://{folder}/{channel.wire}" for channel in Channel},
            heartbeat=f"ipc://{folder}/beat",
        )
        self._context = zmq.asyncio.Context()
        self.shell = self._context.socket(zmq.ROUTER)
        # As ipykernel sets it.
        self.shell.router_handover = True
        self.shell.bind(self.endpoints.addresses[Channel.SHELL])
        self.heartbeat = self._context.socket(zmq.REP)
        self.heartbeat.bind(self.endpoints.heartbeat)

    async def request(self) -> list[bytes]:
        async with asyncio.timeout(WAIT):
            parts: list[bytes] = await self.shell.recv_multipart()
        return parts

    async def reply(self, identity: bytes, signer: Signer, content: bytes) -> None:
        message = Message.from_parts(Channel.SHELL, [b"{}", b"{}", b"{}", content])
        await self.shell.send_multipart([identity, *signer.serialize(message)])

    def close(self) -> None:
        self.shell.close(linger=0)
        self.heartbeat.close(linger=0)
        self._context.term()


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    made.close()


async def test_messages_are_signed_and_verified(kernel: Kernel) -> None:
    taken: asyncio.Queue[Message] = asyncio.Queue()
    channel = ZmqChannel(kernel.endpoints, SIGNER, ["me"], taken.put_nowait)
    channel.send(REQUEST)
    identity, *parts = await kernel.request()
    assert identity == b"me"
    assert SIGNER.parse(Channel.SHELL, parts) == REQUEST
    # What is not signed by this kernel's key is dropped, and costs nothing else.
    await kernel.reply(identity, Signer(b"another"), b'"forged"')
    await kernel.reply(identity, SIGNER, b'"real"')
    async with asyncio.timeout(WAIT):
        message = await taken.get()
    assert (message.channel, bytes(message.content)) == (Channel.SHELL, b'"real"')
    assert taken.empty()
    channel.close()


async def test_replies_to_an_earlier_holder_arrive_until_they_are_forgotten(
    kernel: Kernel,
) -> None:
    taken: asyncio.Queue[Message] = asyncio.Queue()
    earlier = ZmqChannel(kernel.endpoints, SIGNER, ["old"], taken.put_nowait)
    earlier.send(REQUEST)
    await kernel.request()
    earlier.close()
    channel = ZmqChannel(kernel.endpoints, SIGNER, ["new", "old"], taken.put_nowait)
    channel.send(REQUEST)
    identity, *_ = await kernel.request()
    # Nothing is ever sent under an earlier holder's identity.
    assert identity == b"new"
    async with asyncio.timeout(WAIT):
        while taken.empty():
            # Dropped by ZeroMQ until the old identity is connected again.
            await kernel.reply(b"old", SIGNER, b'"late"')
            await asyncio.sleep(0)
    assert bytes(taken.get_nowait().content) == b'"late"'
    channel.drop_inherited()
    channel.close()


async def test_a_heartbeat_that_is_answered_is_a_sign_of_life(kernel: Kernel) -> None:
    channel = ZmqChannel(kernel.endpoints, SIGNER, ["me"], lambda _: None)
    alive = [channel.is_alive]
    channel.beat()
    async with asyncio.timeout(WAIT):
        await kernel.heartbeat.send(await kernel.heartbeat.recv())
        while not alive[-1]:
            channel.beat()
            await asyncio.sleep(0)
            alive.append(channel.is_alive)
    assert not alive[0]
    channel.close()
