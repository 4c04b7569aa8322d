"""The way from clients to the kernel: who is connected, and what they send."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from relay.auth.ownership import Grant
from relay.bridge.control import Attach, Detach
from relay.bridge.events import (
    Action,
    ClientAttached,
    ClientDetached,
    Defer,
    DeliveryProved,
    Drop,
    Event,
    Forward,
    MessageSubmitted,
)
from relay.bridge.messages import Channel, Message, parse_header
from relay.bridge.requests import short_header
from relay.errors import MalformedMessage
from relay.holder.backends.base import KernelChannel
from relay.holder.broker.activity import KernelActivity
from relay.holder.broker.outbound import JournalSubscriber
from relay.holder.sessions.grants import GrantStore

log = structlog.get_logger(__name__)

_ID_CHARACTERS: Final = 1024
"""Of what clients name their messages by; theirs have some 40."""
_USES: Final = (Forward, Defer, Drop)
"""Actions that show that a client has used the kernel."""

Perform = Callable[[Event, Message | None], Sequence[Action]]


class KernelQueue:
    """Messages for the present kernel process, and those that wait for their turn."""

    def __init__(self) -> None:
        self._channel: KernelChannel | None = None
        self._deferred: list[Message] = []

    @property
    def is_open(self) -> bool:
        """Whether there is a kernel process."""
        return self._channel is not None

    def open(self, channel: KernelChannel) -> None:
        """A kernel process was launched or adopted."""
        self._channel = channel

    def send(self, message: Message) -> None:
        """Send a message to the kernel, if there is one."""
        if self._channel is not None:
            self._channel.send(message)

    def defer(self, message: Message) -> None:
        """Keep a message for `send_deferred`."""
        self._deferred.append(message)

    def send_deferred(self) -> None:
        """Send what was deferred, in order."""
        deferred, self._deferred = self._deferred, []
        for message in deferred:
            self.send(message)

    def close(self) -> None:
        """The kernel process has ended; what it had sent is taken first."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        self._deferred.clear()


class Inbound:
    """The connections of one kernel's clients, and their messages.

    ``perform`` has the events decided and the decisions carried out. ``on_change`` is called when
    clients come and go.
    """

    def __init__(
        self,
        perform: Perform,
        readers: dict[int, JournalSubscriber],
        grants: GrantStore,
        activity: KernelActivity,
        on_change: Callable[[], None],
    ) -> None:
        self._perform = perform
        self._readers = readers
        self._grants = grants
        self._activity = activity
        self._on_change = on_change
        self._last_connection = 0

    def attach(self, reader: JournalSubscriber, attach: Attach) -> int:
        """A client comes; returns the number its connection has from now on.

        Raises `Forbidden` where the kernel's owner has just taken back its grant.
        """
        connection = self._admit(
            reader, attach.principal, granted=attach.granted, views_only=attach.views_only
        )
        views_only = self._grants.views_only(connection)
        self._perform(ClientAttached(connection, attach, views_only), None)
        self._on_change()
        return connection

    def detach(self, connection: int, detach: Detach | None) -> None:
        """A client's connection ended; without a ``detach``, its edge or agent did."""
        self._part(connection)
        told = detach or Detach()
        self._perform(
            ClientDetached(connection, told.disconnect, told.seq, told.fragment > 0), None
        )
        self._on_change()

    def watch(self, reader: JournalSubscriber, principal: str, *, granted: bool) -> int:
        """Wake and end a reader that is no client's; the number is for `unwatch`.

        Raises `Forbidden` as `attach` does.
        """
        return self._admit(reader, principal, granted=granted, views_only=True)

    def unwatch(self, number: int) -> None:
        """The reader of `watch` is gone."""
        self._part(number)

    def _admit(
        self, reader: JournalSubscriber, principal: str, *, granted: bool, views_only: bool
    ) -> int:
        number = self._last_connection = self._last_connection + 1
        self._grants.admit(number, principal, granted=granted, views_only=views_only)
        self._readers[number] = reader
        return number

    def _part(self, number: int) -> None:
        self._readers.pop(number, None)
        self._grants.leave(number)

    def grant(self, principal: str, grant: Grant | None) -> None:
        """Let a principal use or view the kernel, or no more; cut off connections that may not.

        Raises `NotFound`, `TooMany` and `DiskFull`.
        """
        for connection, reason in self._grants.change(principal, grant).items():
            log.info("access_revoked", principal=principal, problem=reason)
            reader = self._readers.pop(connection, None)
            # What it sends from now on is ignored, though it may hang up later.
            self._perform(ClientDetached(connection), None)
            if reader is not None:
                reader.cut(reason)

    def views_only(self, connection: int) -> bool:
        """Whether nothing that comes over a connection gets to the kernel."""
        return self._grants.views_only(connection)

    def prove(self, connection: int, seq: int) -> None:
        """A client has received everything up to ``seq``."""
        self._perform(DeliveryProved(connection, seq), None)

    def submit(self, connection: int, number: int, message: Message) -> None:
        """A client's message for the kernel. Raises `MalformedMessage`."""
        event = _read(connection, number, message, busy=self._activity.state == "busy")
        actions = self._perform(event, message)
        if any(isinstance(action, _USES) for action in actions):
            self._activity.asked(event.msg_type)


def _read(connection: int, number: int, message: Message, *, busy: bool) -> MessageSubmitted:
    """What there is to decide about. Raises `MalformedMessage`."""
    if message.channel is Channel.IOPUB:
        raise MalformedMessage("Nobody but the kernel sends on iopub.")
    header = parse_header(message.header)
    if max(map(len, (header.msg_id, header.session, header.msg_type))) > _ID_CHARACTERS:
        raise MalformedMessage(f"An id in a header has at most {_ID_CHARACTERS} characters.")
    return MessageSubmitted(
        connection,
        number,
        message.channel,
        header.msg_id,
        header.session,
        header.msg_type,
        header.subshell,
        header=short_header(message.header, header),
        busy=busy,
    )
