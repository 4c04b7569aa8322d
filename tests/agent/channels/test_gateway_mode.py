from __future__ import annotations

import json

import pytest

from relay.agent.channels.gateway_mode import fitting
from relay.bridge.messages import Channel, Message, synthetic

LIMIT = 10_000


def message(text: str, *buffers: bytes) -> Message:
    made = synthetic(
        Channel.IOPUB,
        "display_data",
        {"data": {"text/plain": text}},
        session="kernel",
        msg_id="m1",
        date="2026-01-01T00:00:00Z",
        parent_header=b'{"msg_id":"p1"}',
    )
    parts = made.header, made.parent_header, made.metadata, made.content
    return Message(Channel.IOPUB, *parts, buffers)


def test_a_message_that_fits_goes_as_it_is() -> None:
    small = message("x")
    assert fitting(small, LIMIT) is small


def test_buffers_are_left_out() -> None:
    fitted = fitting(message("x", b"\xff" * 20_000, b"y"), LIMIT)
    assert fitted == message("x")


@pytest.mark.parametrize("size", [LIMIT, 5 * LIMIT])
def test_word_of_a_large_message_comes_in_its_place(size: int) -> None:
    large = message("x" * size)
    notice = fitting(large, LIMIT)
    assert notice.size < LIMIT
    assert notice.channel is Channel.IOPUB
    assert bytes(notice.parent_header) == b'{"msg_id":"p1"}'
    header = json.loads(bytes(notice.header))
    assert (header["msg_type"], header["session"]) == ("stream", "kernel")
    content = json.loads(bytes(notice.content))
    assert content["name"] == "stderr"
    assert str(large.size) in content["text"]
    assert "kernels.gateway_message_bytes" in content["text"]


def test_every_agent_makes_the_same_of_it() -> None:
    assert fitting(message("x" * LIMIT), LIMIT) == fitting(message("x" * LIMIT), LIMIT)


def test_the_limit_holds_for_what_is_sent() -> None:
    # The JSON form has its own words around the parts.
    from relay.bridge.ws_codec import Subprotocol, encode  # noqa: PLC0415

    for size in range(LIMIT - 2000, LIMIT + 100, 50):
        assert encode(Subprotocol.LEGACY, fitting(message("x" * size), LIMIT)).size <= LIMIT
