"""The states of a client session and the transitions between them, in one table.

`bridge.session` looks here for what to do when a client comes or goes, and ``docs/sessions.md``
shows this table.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class SessionState(enum.Enum):
    """What there is of a session."""

    UNKNOWN = "nothing is remembered of it"
    ATTACHED = "one connection reads for it"
    AWAY = "it is remembered, and nobody reads"


class Trigger(enum.Enum):
    """What happens to a session."""

    ATTACH = "a client attaches"
    ATTACH_REPLACED = "a client attaches by a link that a newer one has replaced"
    DISCONNECT_CLEAN = "the client of a named session closes its WebSocket"
    DISCONNECT_CLEAN_UNNAMED = "a client without a session_id closes its WebSocket"
    DISCONNECT_ABNORMAL = "the client's connection breaks"
    CONNECTION_LOST = "the edge, the agent or the holder dies"
    EXPIRE = "its lifetime away is over"
    EVICT = "there are more sessions than may be remembered"


class Step(enum.Enum):
    """What is done in a transition."""

    CLOSE_REPLACED = "close the connection that the session has had"
    START_READING = "read for the new connection from where its client stands"
    REJECT = "let the new connection read once, and close it as replaced"
    LEAVE = "note when the client left"
    SKIP_CLOSE_TRIGGER = "move the cursor past the last message on which clients close"
    COUNT_FAILURE = "count one more connection that ended on the same message"


class Transition(NamedTuple):
    """Where a session goes from a state, and what is done on the way, in order."""

    state: SessionState
    steps: tuple[Step, ...] = ()


TRANSITIONS: Final = {
    (SessionState.UNKNOWN, Trigger.ATTACH): Transition(
        SessionState.ATTACHED, (Step.START_READING,)
    ),
    (SessionState.AWAY, Trigger.ATTACH): Transition(SessionState.ATTACHED, (Step.START_READING,)),
    (SessionState.ATTACHED, Trigger.ATTACH): Transition(
        SessionState.ATTACHED, (Step.CLOSE_REPLACED, Step.START_READING)
    ),
    (SessionState.AWAY, Trigger.ATTACH_REPLACED): Transition(SessionState.AWAY, (Step.REJECT,)),
    (SessionState.ATTACHED, Trigger.ATTACH_REPLACED): Transition(
        SessionState.ATTACHED, (Step.REJECT,)
    ),
    (SessionState.ATTACHED, Trigger.DISCONNECT_CLEAN): Transition(
        SessionState.AWAY, (Step.LEAVE, Step.SKIP_CLOSE_TRIGGER)
    ),
    (SessionState.ATTACHED, Trigger.DISCONNECT_CLEAN_UNNAMED): Transition(SessionState.UNKNOWN),
    (SessionState.ATTACHED, Trigger.DISCONNECT_ABNORMAL): Transition(
        SessionState.AWAY, (Step.LEAVE, Step.COUNT_FAILURE)
    ),
    (SessionState.ATTACHED, Trigger.CONNECTION_LOST): Transition(SessionState.AWAY, (Step.LEAVE,)),
    (SessionState.AWAY, Trigger.EXPIRE): Transition(SessionState.UNKNOWN),
    (SessionState.AWAY, Trigger.EVICT): Transition(SessionState.UNKNOWN),
}
"""A pair that is missing cannot happen."""
