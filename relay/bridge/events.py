"""What happens to a kernel's sessions, and what is to be done about it.

The words between `bridge.session`, which decides, and the holder, which performs. Tags are part of
the format of a holder's files: they stay when a class gets another name.
"""

from __future__ import annotations

from typing import Final

import msgspec

from relay.bridge.control import Attach, Disconnect, Position
from relay.bridge.messages import Channel

NO_HEADER: Final = msgspec.Raw(b"{}")

# Events: what happened.


class ClientAttached(msgspec.Struct, frozen=True, tag="Attached"):
    """A connection (the holder's own number for it) asks for a session.

    Of a connection with ``views_only`` nothing gets to the kernel.
    """

    connection: int
    attach: Attach
    views_only: bool = False


class ClientDetached(msgspec.Struct, frozen=True, tag="Detached"):
    """A connection ended.

    ``disconnect`` is how the client left, as far as its edge could tell; ``None`` where the edge,
    or the agent, did not live to tell. ``sent`` is the last message that had been written to the
    client whole, ``begun`` says whether any of the next one had.
    """

    connection: int
    disconnect: Disconnect | None = msgspec.field(default=None, name="departure")
    sent: int = 0
    begun: bool = False


class MessageSubmitted(msgspec.Struct, frozen=True, tag="Submitted", omit_defaults=True):
    """A client's message ``number``, with what the holder has read of its header.

    ``header`` is the header itself, shortened (`short_header`). ``busy`` says that the kernel was
    busy when the message came. ``answered`` is of version 1: the holder has answered by itself.
    """

    connection: int
    number: int
    channel: Channel
    msg_id: str
    session: str
    msg_type: str = ""
    subshell: str = ""
    answered: bool = False
    header: msgspec.Raw = NO_HEADER
    busy: bool = False


class MessagePublished(msgspec.Struct, frozen=True, tag="Published", omit_defaults=True):
    """A message to clients, with the ids from its parent header.

    With a ``connection`` it is for that one's session only. Clients close their WebSocket when
    they receive a ``close_trigger``. ``idle`` says that it is the status after a request.
    """

    channel: Channel
    parent_msg_id: str
    parent_session: str
    subshell: str = ""
    connection: int | None = None
    close_trigger: bool = msgspec.field(default=False, name="farewell")
    idle: bool = False


class DeliveryProved(msgspec.Struct, frozen=True, tag="Proved"):
    """The client of this connection has received everything up to ``seq``."""

    connection: int
    seq: int


class KernelLaunched(msgspec.Struct, frozen=True, tag=True):
    """There is a new kernel process."""


class KernelAdopted(msgspec.Struct, frozen=True, tag=True):
    """There is a kernel process that still works off what an earlier holder sent it."""


class KernelRecovered(msgspec.Struct, frozen=True, tag=True):
    """The main shell of an adopted kernel has worked off what an earlier holder sent it."""


class KernelInfoLearnt(msgspec.Struct, frozen=True, tag=True):
    """The kernel has replied to a kernel_info_request on shell: its reply is known from now on."""


class KernelLost(msgspec.Struct, frozen=True, tag=True):
    """The kernel process is gone: what was asked of it stays unanswered."""


class HolderLost(msgspec.Struct, frozen=True, tag=True):
    """The process that held the connections is gone, and they with it."""


KernelEvent = KernelLaunched | KernelAdopted | KernelRecovered | KernelInfoLearnt | KernelLost
Event = (
    ClientAttached
    | ClientDetached
    | MessageSubmitted
    | MessagePublished
    | DeliveryProved
    | KernelEvent
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


class Defer(msgspec.Struct, frozen=True):
    """Keep the submitted message until the deferred ones are sent."""


class SendDeferred(msgspec.Struct, frozen=True):
    """Send what was deferred, in order."""


class Drop(msgspec.Struct, frozen=True):
    """Do nothing with the submitted message: there is no kernel process."""


class AnswerInfo(msgspec.Struct, frozen=True):
    """Answer a kernel_info_request of this connection by the last reply that is known."""

    connection: int
    request: MessageSubmitted


class Refuse(msgspec.Struct, frozen=True):
    """Answer a request of this connection by an error: its client may only view the kernel."""

    connection: int
    request: MessageSubmitted


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
    """To make room, the oldest was forgotten: ``setting`` names the limit."""

    setting: str


Action = (
    StartReading
    | CloseConnection
    | Forward
    | Defer
    | SendDeferred
    | Drop
    | AnswerInfo
    | Refuse
    | Acknowledge
    | Append
    | Discard
    | Evicted
)
