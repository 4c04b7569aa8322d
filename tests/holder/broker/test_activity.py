from __future__ import annotations

import pytest

from relay.bridge.messages import Channel, Header, Message
from relay.holder.broker.activity import NO_PARENT, KernelActivity, state_in

CELL = b'{"msg_id": "m"}'
EXECUTE = Header(msg_id="m", msg_type="execute_request")
ASIDE = Header(msg_id="i", msg_type="kernel_info_request")


def status(content: bytes, parent: bytes = CELL) -> Message:
    return Message(Channel.IOPUB, b"{}", parent, b"{}", content)


def state(name: str) -> Message:
    return status(b'{"execution_state": "%b"}' % name.encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"execution_state": 1}',
        b'{"execution_state": "\xed\xb2\x80"}',
        b'{"execution_state": "odd"}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_state_is_none_whatever_it_is(content: bytes) -> None:
    assert state_in(status(content)) is None


def test_busy_is_what_the_main_shell_is() -> None:
    changes: list[str] = []
    activity = KernelActivity(lambda: changes.append("x"))
    activity.note_status(state("busy"), EXECUTE)
    assert (activity.state, activity.running_cell) == ("busy", CELL)
    subshell = Header(msg_id="s", msg_type="execute_request", subshell_id="sub")
    activity.note_status(state("idle"), subshell)
    activity.note_status(state("idle"), ASIDE)
    assert activity.state == "busy"
    activity.note_status(state("idle"), EXECUTE)
    assert (activity.state, activity.running_cell) == ("idle", NO_PARENT)
    assert len(changes) == 2


def test_a_new_kernel_that_answers_is_idle() -> None:
    activity = KernelActivity(lambda: None)
    activity.note_status(state("busy"), ASIDE)
    assert activity.state == "idle"
