from __future__ import annotations

import json
from typing import Any

import pytest

from relay.bridge.control import Position
from relay.bridge.messages import Channel, Header, Message
from relay.client.kernel_message import KernelMessage
from relay.client.outputs import (
    ClearOutput,
    DisplayData,
    Error,
    ExecuteResult,
    Other,
    Output,
    Result,
    Stream,
    UpdateDisplayData,
    read_output,
)


def message(msg_type: str, content: dict[str, Any], *buffers: bytes) -> KernelMessage:
    raw = Message(Channel.IOPUB, b"{}", b"{}", b"{}", json.dumps(content).encode(), buffers)
    return KernelMessage(Position("0123456789ab", 1), Header(msg_type=msg_type), Header(), raw)


DATA: dict[str, Any] = {
    "data": {"text/plain": "1"},
    "metadata": {"a": 1},
    "transient": {"display_id": "d"},
}


@pytest.mark.parametrize(
    ("msg_type", "content", "output"),
    [
        ("stream", {"name": "stderr", "text": "t"}, Stream("stderr", "t")),
        ("display_data", DATA, DisplayData(**DATA)),
        ("update_display_data", DATA, UpdateDisplayData(**DATA)),
        (
            "execute_result",
            {"execution_count": 1, "data": {}, "metadata": {}},
            ExecuteResult(1, {}),
        ),
        ("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}, Error("E", "v", ["t"])),
        ("error", {"ename": "E", "evalue": "v"}, Error("E", "v")),
        ("clear_output", {"wait": True}, ClearOutput(wait=True)),
        ("clear_output", {}, ClearOutput()),
        ("novelty", {"a": 1}, Other("novelty", {"a": 1})),
        ("stream", {"name": "stdlog", "text": 1}, Other("stream", {"name": "stdlog", "text": 1})),
    ],
)
def test_outputs_have_their_types(msg_type: str, content: dict[str, Any], output: Output) -> None:
    assert read_output(message(msg_type, content)) == output


@pytest.mark.parametrize("msg_type", ["status", "execute_input", "comm_open", "comm_msg"])
def test_what_is_no_output_is_left_out(msg_type: str) -> None:
    assert read_output(message(msg_type, {})) is None


def test_buffers_come_along() -> None:
    output = read_output(message("display_data", DATA, b"\xff"))
    assert isinstance(output, DisplayData)
    assert output.buffers == (b"\xff",)
    assert output.display_id == "d"


def test_a_result_is_easy_to_read() -> None:
    outputs: list[Output] = [
        Stream("stdout", "a"),
        Stream("stderr", "e"),
        Stream("stdout", "b"),
        ExecuteResult(1, {"text/plain": "2"}),
    ]
    result = Result("m", outputs, {"status": "ok"})
    assert (result.ok, result.stdout, result.stderr, result.value) == (True, "ab", "e", "2")
    assert result.error is None
    failed = Result("m", [Error("E", "v")], {"status": "error"})
    assert (failed.ok, failed.error, failed.value) == (False, Error("E", "v"), None)
    assert not Result("m", [], None).ok
