from __future__ import annotations

import json

import pytest

from relay.bridge.messages import Channel, Message, synthetic
from relay.bridge.notices import left_out, with_seq


def message(channel: Channel, msg_type: str, metadata: bytes = b"{}") -> Message:
    made = synthetic(
        channel,
        msg_type,
        {"x": "y" * 1000},
        session="kernel",
        msg_id="m1",
        date="2026-01-01T00:00:00Z",
        parent_header=b'{"msg_id":"p1"}',
    )
    return Message(channel, made.header, made.parent_header, metadata, made.content, (b"buffer",))


def read(part: object) -> dict[str, object]:
    value = json.loads(bytes(part))  # type: ignore[call-overload]
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("msg_type", ["display_data", "stream"])
def test_output_becomes_a_line_on_stderr_of_its_cell(msg_type: str) -> None:
    large = message(Channel.IOPUB, msg_type)
    notice = left_out(large, "it is blue")
    assert (notice.channel, notice.buffers) == (Channel.IOPUB, ())
    assert bytes(notice.parent_header) == b'{"msg_id":"p1"}'
    header = read(notice.header)
    assert (header["msg_type"], header["session"], header["date"]) == (
        "stream",
        "kernel",
        "2026-01-01T00:00:00Z",
    )
    text = f"[relay] A {msg_type} message of {large.size} bytes is left out: it is blue.\n"
    assert read(notice.content) == {"name": "stderr", "text": text}


@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL])
def test_a_reply_stays_a_reply(channel: Channel) -> None:
    notice = left_out(message(channel, "inspect_reply"), "it is blue")
    assert notice.channel is channel
    assert read(notice.header)["msg_type"] == "inspect_reply"
    content = read(notice.content)
    assert content["status"] == "error"
    assert "it is blue" in str(content["evalue"])


def test_a_question_on_stdin_becomes_a_line_too() -> None:
    notice = left_out(message(Channel.STDIN, "input_request"), "it is blue")
    assert notice.channel is Channel.IOPUB


def test_every_process_makes_the_same_of_it() -> None:
    large = message(Channel.IOPUB, "stream")
    assert left_out(large, "x") == left_out(large, "x")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (b"{}", {"relay_seq": "e-7"}),
        (b" { } ", {"relay_seq": "e-7"}),
        (b'{"a": {"b": 1}}', {"a": {"b": 1}, "relay_seq": "e-7"}),
        # What a kernel claims does not count.
        (b'{"relay_seq": "e-9"}', {"relay_seq": "e-7"}),
    ],
)
def test_the_seq_stands_in_the_metadata(metadata: bytes, expected: dict[str, object]) -> None:
    with_it = with_seq(message(Channel.IOPUB, "stream", metadata), "e-7")
    assert read(with_it.metadata) == expected
    assert with_it.content == message(Channel.IOPUB, "stream").content


@pytest.mark.parametrize("metadata", [b"[]", b"", b"1", b"null"])
def test_metadata_that_is_no_object_stays_as_it_is(metadata: bytes) -> None:
    odd = message(Channel.IOPUB, "stream", metadata)
    assert with_seq(odd, "e-7") is odd
