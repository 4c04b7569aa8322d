"""Payloads of control records: what edge, agent and holder tell one another besides messages.

Each is the JSON of a struct; `records` states which kind of record has which, and its sender.
"""

from __future__ import annotations

import enum
import re
from typing import Final, Literal, TypeAlias

import msgspec

from relay.bridge.versions import Opening
from relay.model import ExecutionState

_POSITION: Final = re.compile(r"([0-9a-f]{12})-([0-9]{1,18})", re.ASCII)


class Position(msgspec.Struct, frozen=True):
    """A reader's position in a kernel's journal.

    The reader has everything up to ``seq``, and ``fragment`` WebSocket frames of the next message.
    """

    epoch: str
    seq: int
    fragment: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read a position in clients' form, ``<epoch>-<seq>``. Raises ``ValueError``."""
        found = _POSITION.fullmatch(text)
        if found is None:
            raise ValueError("a position is <epoch>-<seq>, as in a message's relay_seq")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


class Attach(Opening, frozen=True, kw_only=True):
    """Attaches a client's WebSocket to a kernel.

    ``link`` is the edge's name (32 hex digits) for the WebSocket. It stays the same when the edge
    attaches again through another agent, so that repeats are recognised.
    """

    link: str
    principal: str
    session_id: str = ""
    subprotocol: str = ""
    gateway: bool = False
    """Whether the client is a Jupyter Server in gateway mode, whose WebSocket takes text only."""
    position: Position | None = None
    """The position up to which the edge has sent the journal on this WebSocket already."""
    resumes: bool = msgspec.field(default=False, name="asks")
    """Whether the client wants to hear the seq of every message, and repeats its requests."""
    last_seq: Position | None = None
    """The position that the client states for itself."""
    views_only: bool = False
    """Whether the client may read only; the agent decides it from the ticket's rights."""
    granted: bool = False
    """Whether the client has access by a grant, which the kernel's owner can revoke."""
    request_id: str = ""


class Attached(Opening, frozen=True, kw_only=True):
    """The holder's answer: where reading starts, and the last client message it has received."""

    position: Position
    acknowledged: int


class Close(Opening, frozen=True):
    """End of the client's WebSocket, with a code and a reason it may see.

    In the place of an answer: the link is refused.
    """

    code: int
    reason: str


class Disconnect(enum.StrEnum):
    """How a client's connection ended."""

    CLEAN = "goodbye"
    """The client closed its WebSocket cleanly."""
    ABNORMAL = "broken"
    """The connection was lost, or the client closed it because of a message it was sent."""


class Detach(msgspec.Struct, frozen=True, kw_only=True):
    """The client's WebSocket ended; ``disconnect`` is None where the edge ended it.

    The client was sent everything up to ``seq``, and ``fragment`` frames of the next message.
    """

    disconnect: Disconnect | None = msgspec.field(default=None, name="departure")
    seq: int = 0
    fragment: int = 0


class GrantChange(msgspec.Struct, frozen=True, kw_only=True):
    """Changes what another principal may do: ``use``, ``view``, or nothing (None)."""

    principal: str
    action: str | None


Operation: TypeAlias = Literal["status", "interrupt", "restart", "shutdown", "grant"]
"""What an agent can ask of a holder.

``status`` asks for nothing but the `Status` that the holder sends to each agent: it opens a
connection. ``grant`` changes a grant (`GrantChange`); the others are about the kernel's process.
"""


class Call(Opening, frozen=True, kw_only=True):
    """One request from an agent to a holder; a `Result` with the same id answers it."""

    id: int
    op: Operation
    grant: GrantChange | None = None
    request_id: str = ""


class Failure(msgspec.Struct, frozen=True):
    """The reason of a failure, in words that are safe to show to a client."""

    message: str
    reason: str = "Kernel error"
    http_status: int = 500


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the `Call` with the same id."""

    id: int
    failure: Failure | None = None


class Phase(enum.StrEnum):
    """A kernel's phase between its launch and its end."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    GONE = "gone"


class HolderFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A holder's counts since its start, and its measurements, for the agent's metrics."""

    journal_bytes: int = 0
    """On disk."""
    journal_problem: str | None = None
    """Why the journal cannot be written just now."""
    messages: int = 0
    """Messages written to the journal in all."""
    unsaved: int = 0
    """Messages that could not be written to disk."""
    gaps: int = 0
    gap_messages: int = 0
    sessions: int = 0
    limit_hits: dict[str, int] = {}
    """Number of times that limits were reached, by setting."""


class Status(Opening, frozen=True, kw_only=True):
    """The state of a kernel, which its holder sends to agents at once and after each change.

    ``last_activity`` is in seconds since the epoch.
    """

    phase: Phase
    name: str
    owner: str
    execution_state: ExecutionState
    last_activity: float
    connections: int
    failure: Failure | None = None
    figures: HolderFigures | None = None
    """None from holders of an older version."""
    knows_viewers: bool = False
    """False from holders of an older version, which do not restrict clients to reading."""


class Read(Opening, frozen=True, kw_only=True):
    """Reads the messages that a kernel sent to all clients, from the journal."""

    after: int
    """The seq after which to begin."""
    limit: int | None
    """The highest number of messages; None means no limit."""
    follow: bool
    """Whether to wait for more messages until the kernel ends, or end with the newest one."""
    message_bytes: int
    """Bytes of the largest message that the agent accepts."""
    principal: str = ""
    granted: bool = False
    """As in `Attach`."""
    request_id: str = ""


class Reading(Opening, frozen=True, kw_only=True):
    """The answer to a `Read`: the journal's epoch and its newest seq."""

    epoch: str
    last_seq: int


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Messages that are missing; some may not have been for all clients.

    ``seq`` is the last one's. ``setting`` is the limit because of which they were deleted, None
    where the disk could not be written.
    """

    messages: int
    seq: int
    setting: str | None
