"""The states of a client's WebSocket from its handshake to its end, and what leads to which."""

from __future__ import annotations

import enum
from typing import Final


class State(enum.Enum):
    """How far a client's WebSocket is on its way to its end."""

    OPEN = enum.auto()
    """Frames are taken and sent."""
    CLOSING_BY_CLIENT = enum.auto()
    """The client sent a close frame, which was answered; the connection is being closed."""
    CLOSING_HERE = enum.auto()
    """This side sent a close frame; of the client's frames only its answer matters."""
    FAILED = enum.auto()
    """The client broke a rule: the connection is being closed, and nothing more is looked at."""
    ABORTED = enum.auto()
    """This side cut the connection."""
    CLOSED = enum.auto()
    """The connection is gone."""


class Trigger(enum.Enum):
    """What may change a `State`."""

    CLIENT_CLOSE = enum.auto()
    """A close frame came."""
    CLOSE = enum.auto()
    """This side wants to close."""
    FAIL = enum.auto()
    """The client broke the protocol, or hit a limit."""
    ABORT = enum.auto()
    """This side cuts the connection."""
    CONNECTION_LOST = enum.auto()
    """The connection ended."""


TRANSITIONS: Final = {
    State.OPEN: {
        Trigger.CLIENT_CLOSE: State.CLOSING_BY_CLIENT,
        Trigger.CLOSE: State.CLOSING_HERE,
        Trigger.FAIL: State.FAILED,
        Trigger.ABORT: State.ABORTED,
        Trigger.CONNECTION_LOST: State.CLOSED,
    },
    State.CLOSING_BY_CLIENT: {
        Trigger.ABORT: State.ABORTED,
        Trigger.CONNECTION_LOST: State.CLOSED,
    },
    State.CLOSING_HERE: {
        Trigger.FAIL: State.FAILED,
        Trigger.ABORT: State.ABORTED,
        Trigger.CONNECTION_LOST: State.CLOSED,
    },
    State.FAILED: {
        Trigger.ABORT: State.ABORTED,
        Trigger.CONNECTION_LOST: State.CLOSED,
    },
    State.ABORTED: {
        Trigger.CONNECTION_LOST: State.CLOSED,
    },
    State.CLOSED: {},
}
"""The next state. A trigger that a state does not have changes nothing."""
