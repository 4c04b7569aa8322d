from __future__ import annotations

import json
from typing import Any

import pytest

from relay.bridge.messages import Channel, Message
from relay.errors import MalformedMessage
from relay.holder.broker.inbound import _ID_CHARACTERS, KernelQueue, _read
from tests.holder.fake_backend import FakeChannel


def message(header: dict[str, Any], channel: Channel = Channel.SHELL, spaces: str = "") -> Message:
    raw = json.dumps(header).replace("{", "{" + spaces).encode()
    return Message.from_parts(channel, [raw, b"{}", b"{}", b"{}"])


@pytest.fixture
def queue() -> KernelQueue:
    return KernelQueue()


@pytest.fixture
def kernel(queue: KernelQueue) -> FakeChannel:
    channel = FakeChannel(lambda _: None)
    queue.open(channel)
    return channel


def names(kernel: FakeChannel) -> list[str]:
    return [header["msg_id"] for _, header in kernel.sent]


def test_what_is_deferred_is_sent_in_order_and_once(
    queue: KernelQueue, kernel: FakeChannel
) -> None:
    for name in ("a", "b"):
        queue.defer(message({"msg_id": name}))
    queue.send(message({"msg_id": "first"}))
    assert names(kernel) == ["first"]
    queue.send_deferred()
    queue.send_deferred()
    assert names(kernel) == ["first", "a", "b"]


def test_nothing_outlives_the_kernel_process(queue: KernelQueue, kernel: FakeChannel) -> None:
    queue.defer(message({"msg_id": "late"}))
    queue.close()
    assert kernel.closed
    assert not queue.is_open
    queue.send(message({"msg_id": "to nobody"}))
    queue.open(kernel)
    queue.send_deferred()
    assert names(kernel) == []


def test_a_header_is_read_once_for_all_that_is_decided() -> None:
    header = {"msg_id": "m", "session": "s", "msg_type": "t", "subshell_id": "x"}
    event = _read(1, 2, message(header, Channel.CONTROL, "\n"), busy=True)
    assert (event.connection, event.number, event.channel) == (1, 2, Channel.CONTROL)
    assert (event.msg_id, event.session, event.msg_type) == ("m", "s", "t")
    assert (event.subshell, event.busy) == ("x", True)
    assert json.loads(bytes(event.header)) == header
    assert b"\n" not in bytes(event.header)


@pytest.mark.parametrize("name", ["msg_id", "session", "msg_type"])
def test_a_name_has_a_limit(name: str) -> None:
    _read(1, 1, message({name: "x" * _ID_CHARACTERS}), busy=False)
    with pytest.raises(MalformedMessage, match="at most 1024 characters"):
        _read(1, 1, message({name: "x" * (_ID_CHARACTERS + 1)}), busy=False)


def test_nobody_sends_on_iopub() -> None:
    with pytest.raises(MalformedMessage, match="iopub"):
        _read(1, 1, message({}, Channel.IOPUB), busy=False)
