"""What happens to a kernel's sessions, and what is to be done about it.

The words between `bridge.session`, which decides, and the holder, which performs. Tags are part of
the format of a holder's files: they stay when a class gets another name.
"""

from __future__ import annotations

import msgspec

from relay.bridge.control import Attach, Disconnect, Position
from relay.bridge.messages import Channel

# Events: what happened.


class ClientAttached(msgspec.Struct, frozen=True, tag="Attached"):
    """A connection (the holder's own number for it) asks for a session."""

    connection: int
    attach: Attach


class ClientDetached(msgspec.Struct, frozen=True, tag="Detached"):
    """A connection ended.

    ``departure`` is how the client left, as far as its edge could tell; ``None`` where the edge,
    or the agent, did not live to tell. ``sent`` is the last message that had been written to the
    client whole, ``begun`` says whether any of the next one had.
    """

    connection: int
    departure: Disconnect | None = None
    sent: int = 0
    begun: bool = False


class MessageSubmitted(msgspec.Struct, frozen=True, tag="Submitted"):
    """A client's message ``number``, with the ids from its header.

    ``answered`` says that the holder answers it itself: no reply of the kernel's will.
    """

    connection: int
    number: int
    channel: Channel
    msg_id: str
    session: str
    msg_type: str = ""
    subshell: str = ""
    answered: bool = False


class MessagePublished(msgspec.Struct, frozen=True, tag="Published"):
    """A kernel's message, with the ids from its parent header.

    ``connection`` is the only one that shall hear it, where there is such a one. ``farewell`` says
    that clients close their WebSocket when they hear it.
    """

    channel: Channel
    parent_msg_id: str
    parent_session: str
    subshell: str = ""
    connection: int | None = None
    farewell: bool = False


class DeliveryProved(msgspec.Struct, frozen=True, tag="Proved"):
    """The client of this connection has received everything up to ``seq``."""

    connection: int
    seq: int


class KernelLost(msgspec.Struct, frozen=True, tag=True):
    """The kernel process is gone: what was asked of it stays unanswered."""


class HolderLost(msgspec.Struct, frozen=True, tag=True):
    """The process that held the connections is gone, and they with it."""


Event = (
    ClientAttached
    | ClientDetached
    | MessageSubmitted
    | MessagePublished
    | DeliveryProved
    | KernelLost
    | HolderLost
)


# Actions: what to do about it.


class StartReading(msgspec.Struct, frozen=True):
    """Let the connection read from ``position`` on what is addressed to ``audiences``.

    Its client's messages up to number ``acknowledged`` are known. The first message is left out
    where ``poison`` says that this client cannot take it.
    """

    connection: int
    audiences: frozenset[bytes]
    position: Position
    acknowledged: int
    poison: bool = False


class CloseConnection(msgspec.Struct, frozen=True):
    """Close the connection with a code and a reason."""

    connection: int
    code: int
    reason: str


class Forward(msgspec.Struct, frozen=True):
    """Send the submitted message to the kernel."""


class Acknowledge(msgspec.Struct, frozen=True):
    """Tell the connection that ``number`` needs no repeating."""

    connection: int
    number: int


class Append(msgspec.Struct, frozen=True):
    """Write the published message to the journal."""

    seq: int
    audience: bytes


class Discard(msgspec.Struct, frozen=True):
    """The published message answers nobody that is known here."""


class Evicted(msgspec.Struct, frozen=True):
    """To make room, the oldest was forgotten: ``setting`` says of what there is too much."""

    setting: str


Action = StartReading | CloseConnection | Forward | Acknowledge | Append | Discard | Evicted
