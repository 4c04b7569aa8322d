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


class SessionTrigger(enum.Enum):
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


_UNKNOWN, _ATTACHED, _AWAY = SessionState.UNKNOWN, SessionState.ATTACHED, SessionState.AWAY

TRANSITIONS: Final = {
    (_UNKNOWN, SessionTrigger.ATTACH): Transition(_ATTACHED, (Step.START_READING,)),
    (_AWAY, SessionTrigger.ATTACH): Transition(_ATTACHED, (Step.START_READING,)),
    (_ATTACHED, SessionTrigger.ATTACH): Transition(
        _ATTACHED, (Step.CLOSE_REPLACED, Step.START_READING)
    ),
    (_AWAY, SessionTrigger.ATTACH_REPLACED): Transition(_AWAY, (Step.REJECT,)),
    (_ATTACHED, SessionTrigger.ATTACH_REPLACED): Transition(_ATTACHED, (Step.REJECT,)),
    (_ATTACHED, SessionTrigger.DISCONNECT_CLEAN): Transition(
        _AWAY, (Step.LEAVE, Step.SKIP_CLOSE_TRIGGER)
    ),
    (_ATTACHED, SessionTrigger.DISCONNECT_CLEAN_UNNAMED): Transition(_UNKNOWN),
    (_ATTACHED, SessionTrigger.DISCONNECT_ABNORMAL): Transition(
        _AWAY, (Step.LEAVE, Step.COUNT_FAILURE)
    ),
    (_ATTACHED, SessionTrigger.CONNECTION_LOST): Transition(_AWAY, (Step.LEAVE,)),
    (_AWAY, SessionTrigger.EXPIRE): Transition(_UNKNOWN),
    (_AWAY, SessionTrigger.EVICT): Transition(_UNKNOWN),
}
"""A pair that is missing cannot happen."""
