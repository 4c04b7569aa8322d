from __future__ import annotations

import json
from typing import Any

import pytest

from relay.bridge.messages import Channel, Message, parse_header
from relay.holder.broker.synthetic import SyntheticMessages

REQUEST = b'{"msg_id":"m","msg_type":"execute_request"}'


@pytest.fixture
def synthetic() -> SyntheticMessages:
    return SyntheticMessages()


def shown(message: Message) -> tuple[str, str, Any]:
    """Channel, type and what the content says in short."""
    content = json.loads(bytes(message.content))
    what = content.get("execution_state") or content.get("ename") or content.get("status")
    return message.channel.wire, parse_header(message.header).msg_type, what


def test_messages_bear_the_kernels_session_once_it_is_known(synthetic: SyntheticMessages) -> None:
    sessions = []
    for kernel_session in ("", "the kernel's"):
        synthetic.kernel_session = kernel_session
        sessions.append(parse_header(synthetic.status("idle", b"{}").header).session)
    # JupyterLab cancels its handlers on a foreign one.
    assert sessions == [synthetic.own_session, "the kernel's"]


def test_a_reply_to_a_request_belongs_to_it(synthetic: SyntheticMessages) -> None:
    error = synthetic.error(Channel.SHELL, "execute_request", "E", "why", REQUEST)
    assert shown(error) == ("shell", "execute_reply", "E")
    assert error.parent_header == REQUEST
    assert json.loads(bytes(error.content))["status"] == "error"


def test_known_info_is_told_as_a_kernel_tells_it(synthetic: SyntheticMessages) -> None:
    messages = synthetic.known_info(Channel.CONTROL, b'{"status":"ok"}', REQUEST)
    assert [shown(each) for each in messages] == [
        ("iopub", "status", "busy"),
        ("control", "kernel_info_reply", "ok"),
        ("iopub", "status", "idle"),
    ]
    assert {each.parent_header for each in messages} == {REQUEST}


@pytest.mark.parametrize(
    ("request_type", "types"),
    [
        ("execute_request", ["status", "error", "execute_reply", "status"]),
        ("complete_request", ["status", "complete_reply", "status"]),
    ],
)
def test_a_refusal_is_shown_where_clients_look(
    synthetic: SyntheticMessages, request_type: str, types: list[str]
) -> None:
    messages = synthetic.refusal(Channel.SHELL, request_type, "E", "why", REQUEST)
    assert [shown(each)[1] for each in messages] == types


def test_a_request_of_the_holders_own_names_its_subshell(synthetic: SyntheticMessages) -> None:
    for subshell in ("", "x"):
        msg_id, message = synthetic.ask_info(Channel.SHELL, subshell)
        header = parse_header(message.header)
        assert (header.msg_id, header.msg_type) == (msg_id, "kernel_info_request")
        assert (header.session, header.subshell) == (synthetic.own_session, subshell)
