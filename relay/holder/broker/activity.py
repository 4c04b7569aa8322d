"""What a kernel is doing, as far as its messages tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from relay.bridge.messages import Buffer, Header, Message
from relay.model import ExecutionState

NO_PARENT: Final = b"{}"
ASIDE: Final = frozenset(
    {
        "comm_info_request",
        "debug_request",
        "interrupt_request",
        "kernel_info_request",
        "shutdown_request",
    }
)
"""Requests that a kernel answers beside its work, some of them in a thread of their own: that it is
idle again after one of these does not mean that its cell has ended. They are Jupyter Server's
``untracked_message_types`` (services/kernels/kernelmanager.py), and no use of the kernel."""
_NEW: Final = frozenset({"starting", "restarting"})
_STATES: Final[dict[str, ExecutionState]] = {
    "starting": "starting",
    "idle": "idle",
    "busy": "busy",
    "restarting": "restarting",
}


class _StatusContent(msgspec.Struct, frozen=True):
    execution_state: str = "unknown"


_STATUS_CONTENT: Final = msgspec.json.Decoder(_StatusContent)


class KernelActivity:
    """One kernel's state, and when it was used last (seconds since the epoch).

    ``on_change`` is called when the state has changed.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.state: ExecutionState = "starting"
        self.last = time.time()
        self.running_cell: Buffer = NO_PARENT
        """The parent header of what the kernel is busy with."""
        self._on_change = on_change

    def enter(self, state: ExecutionState) -> None:
        """Note a state."""
        if state != self.state:
            self.state = state
            self._on_change()

    def asked(self, msg_type: str) -> None:
        """A client has asked for something."""
        if msg_type not in ASIDE:
            self.last = time.time()

    def heard(self, parent: Header) -> None:
        """The kernel has said something that belongs to a client's request."""
        if parent.msg_type not in ASIDE or self.state == "busy":
            self.last = time.time()

    def note_status(self, message: Message, parent: Header) -> ExecutionState | None:
        """Take a status of the kernel's; returns the state in it (`state_in`)."""
        state = state_in(message)
        if parent.subshell_id is not None:
            # What a subshell does is done beside the kernel's work.
            return state
        if parent.msg_type in ASIDE:
            if self.state in _NEW and state in {"idle", "busy"}:
                # It answers: the state of a kernel that has nothing to do.
                self.enter("idle")
        elif state is not None:
            self.running_cell = message.parent_header if state == "busy" else NO_PARENT
            self.enter(state)
        return state


def state_in(message: Message) -> ExecutionState | None:
    """The state in a status; None for one that is unknown, and in what is no status."""
    try:
        return _STATES.get(_STATUS_CONTENT.decode(message.content).execution_state)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
