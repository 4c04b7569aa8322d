from __future__ import annotations

import json
from typing import Any

import pytest

from relay.bridge.control import Position
from relay.bridge.messages import Channel, Message
from relay.bridge.ws_codec import Subprotocol, decode, encode
from relay.client import kernel_message
from relay.errors import MalformedMessage

E = "0123456789ab"


def payload(
    content: bytes = b"{}",
    metadata: bytes = b'{"relay_seq": "0123456789ab-7"}',
    parent: bytes = b"{}",
    channel: Channel = Channel.IOPUB,
    buffers: tuple[bytes, ...] = (),
) -> bytes:
    head = b'{"msg_id": "m", "msg_type": "status", "session": "k"}'
    message = Message(channel, head, parent, metadata, content, buffers)
    return b"".join(encode(Subprotocol.V1, message).parts)


def test_a_message_is_read() -> None:
    sent = payload(b'{"execution_state": "idle"}', parent=b'{"msg_id": "p"}', buffers=(b"\xff",))
    message = kernel_message.read(sent, None)
    assert message.seq == Position(E, 7)
    assert (message.channel, message.msg_type, message.parent.msg_id) == ("iopub", "status", "p")
    assert message.content == {"execution_state": "idle"}
    assert message.metadata == {"relay_seq": f"{E}-7"}
    assert message.buffers == (b"\xff",)
    assert message.state() == "idle"


@pytest.mark.parametrize("metadata", [b"{}", b"", b"[]", b'{"relay_seq": 7}', b'{"relay_seq": ""}'])
def test_a_message_without_a_number_is_refused(metadata: bytes) -> None:
    with pytest.raises(MalformedMessage, match="resuming"):
        kernel_message.read(payload(metadata=metadata), None)


@pytest.mark.parametrize("parent", [b"", b"null", b"{}"])
def test_a_kernel_may_speak_of_its_own_accord(parent: bytes) -> None:
    assert kernel_message.read(payload(parent=parent), None).parent.msg_id == ""


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (b'{"text": "\xff"}', {"text": "�"}),
        (b'{"text": "\\udc80"}', {"text": "\udc80"}),
        (b'{"text": Infinity}', {"text": float("inf")}),
        (b"[1]", {}),
        (b"{", {}),
    ],
)
def test_what_is_not_quite_json_is_read(content: bytes, read: dict[str, Any]) -> None:
    assert kernel_message.read(payload(content), None).content == read


def test_only_a_status_is_a_state() -> None:
    idle = b'{"execution_state": "idle"}'
    assert kernel_message.read(payload(idle, channel=Channel.SHELL), None).state() == ""
    assert kernel_message.read(payload(), None).state() == ""


def test_a_request_is_the_same_however_often_it_is_made() -> None:
    def make() -> bytes:
        return kernel_message.request(
            Channel.SHELL,
            "execute_request",
            {"code": "\udc80 é"},
            msg_id="m",
            session="s",
            date="d",
            parent_header=b'{"msg_id": "p"}',
        )

    assert make() == make()
    message = decode(Subprotocol.V1, text=False, payload=make())
    assert message.channel is Channel.SHELL
    header = json.loads(bytes(message.header))
    assert (header["msg_id"], header["session"], header["msg_type"], header["date"]) == (
        "m",
        "s",
        "execute_request",
        "d",
    )
    assert json.loads(bytes(message.content)) == {"code": "\udc80 é"}
    assert json.loads(bytes(message.parent_header)) == {"msg_id": "p"}
