"""One session with one kernel, over any number of WebSockets. Sans I/O.

`Channels` passes in what it receives (`KernelSession.receive`), and sends what is in the `Outbox`:
on a new WebSocket every request without any response again. The relay drops requests that it
knows, by ``msg_id``, so each runs once.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from relay.bridge.control import Position
from relay.bridge.messages import Channel
from relay.client import kernel_message
from relay.client.delivery_tracker import DeliveryTracker
from relay.client.errors import KernelGone, KernelRestarted
from relay.client.inbox import Inbox
from relay.client.kernel_message import KernelMessage
from relay.client.outbox import Outbox
from relay.errors import BadRequest, RelayError

_SILENT: Final = {
    "code": "",
    "silent": True,
    "store_history": False,
    "user_expressions": {},
    "allow_stdin": False,
    "stop_on_error": False,
}


class _Request(msgspec.Struct):
    """A request to the kernel, by this process or another one."""

    channel: Channel
    inbox: Inbox
    after: Position | None = None
    waits_for_idle: bool = True
    replied: bool = False
    idle: bool = False
    then: Callable[[], None] | None = None


class KernelSession:
    """Matches requests with the kernel's messages, and passes the messages to their readers.

    ``now`` returns the date for a header; ``in_flight`` is the limit of the `Outbox`.
    """

    def __init__(
        self, session_id: str, start: Position | None, now: Callable[[], str], in_flight: int
    ) -> None:
        self.session_id = session_id
        self.tracker = DeliveryTracker(start)
        self.outbox = Outbox(in_flight)
        self.failure: RelayError | None = None
        """Why no more messages will arrive; None while they may."""
        self.on_room: Callable[[], None] = _nothing
        """Called when messages were read."""
        self._now = now
        self._requests: dict[str, _Request] = {}
        self._numbered = False
        self._listeners: list[Inbox] = []
        self._barriers: set[str] = set()
        """Requests sent after a restart of ours, whose reply shows that the new process runs."""
        self._dead: KernelGone | None = None

    # Requests.

    def request(
        self,
        channel: Channel,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        msg_id: str | None = None,
        waits_for_idle: bool = True,
    ) -> tuple[str, Inbox]:
        """Send a request; return its ``msg_id`` and the inbox of its messages.

        Raises `RelayError` where the kernel or the connection is gone.
        """
        self._check()
        msg_id = self._new(msg_id)
        payload = self._payload(channel, msg_type, content, msg_id)
        request = _Request(channel, self._inbox(), waits_for_idle=waits_for_idle)
        self._requests[msg_id] = request
        self.outbox.request(msg_id, payload)
        return msg_id, request.inbox

    def resume(
        self, msg_id: str, content: Mapping[str, Any] | None, after: Position | None
    ) -> Inbox:
        """Continue an ``execute_request`` of another process; ``content`` sends it again.

        What that process has read is not sent again, and this may include the end. A request
        without effect is sent after it: its reply shows that everything before has arrived.
        """
        self._check()
        self._new(msg_id)
        request = _Request(Channel.SHELL, self._inbox(), after=after)
        self._requests[msg_id] = request
        if content is not None:
            payload = self._payload(Channel.SHELL, "execute_request", content, msg_id)
            self.outbox.request(msg_id, payload)
        self._send_barrier(functools.partial(self._end, msg_id, None))
        return request.inbox

    def restarted(self) -> None:
        """Handle a restart of the kernel that this client asked for.

        Requests to the previous process fail once all of its messages have arrived, which the
        reply to a barrier request shows.
        """
        self._dead = None
        old = [msg_id for msg_id in self._requests if msg_id not in self._barriers]

        def fail_old() -> None:
            self._barriers.discard(barrier)
            for msg_id in old:
                self._end(msg_id, _restarted())

        barrier = self._send_barrier(fail_old)
        self._barriers.add(barrier)

    def answer(self, question: KernelMessage, value: str) -> None:
        """Answer an ``input_request``; the same question always gets the same ``msg_id``."""
        msg_id = f"{question.header.msg_id}-reply"
        payload = self._payload(
            Channel.STDIN, "input_reply", {"value": value}, msg_id, parent=question
        )
        asker = question.parent.msg_id
        if asker in self._requests:
            self.outbox.answer(asker, payload)

    def listen(self) -> Inbox:
        """Return an inbox of every message from now on."""
        self._check()
        inbox = self._inbox()
        self._listeners.append(inbox)
        # A listener sends nothing, and needs the WebSocket all the same.
        self.outbox.on_unsent()
        return inbox

    def leave(self, inbox: Inbox) -> None:
        """End the delivery to an inbox of `listen`."""
        self._listeners.remove(inbox)
        inbox.close()

    def _check(self) -> None:
        error = self.failure or self._dead
        if error is not None:
            raise error

    def _new(self, msg_id: str | None) -> str:
        if msg_id is not None and msg_id in self._requests:
            text = "There is a request with this msg_id already."
            raise BadRequest(text)
        return msg_id or uuid.uuid4().hex

    def _inbox(self) -> Inbox:
        return Inbox(self.tracker, self._made_room)

    def _made_room(self) -> None:
        self.on_room()

    def _send_barrier(self, then: Callable[[], None]) -> str:
        """Send a request without effect; call ``then`` after its reply."""
        msg_id, inbox = self.request(Channel.SHELL, "execute_request", _SILENT)
        inbox.close()
        self._requests[msg_id].then = then
        return msg_id

    def _payload(
        self,
        channel: Channel,
        msg_type: str,
        content: Mapping[str, Any],
        msg_id: str,
        parent: KernelMessage | None = None,
    ) -> bytes:
        return kernel_message.request(
            channel,
            msg_type,
            content,
            msg_id=msg_id,
            session=self.session_id,
            date=self._now(),
            parent_header=b"{}" if parent is None else parent.raw.header,
        )

    # Messages.

    def receive(self, payload: bytes) -> None:
        """Handle one WebSocket message. Raises `MalformedMessage`."""
        before = self.tracker.received if self._numbered else None
        message = kernel_message.read(payload, before)
        self._numbered = True
        if message.numbered and not self.tracker.receive(message.seq):
            return
        for listener in self._listeners:
            listener.put(message)
        self._on_state(message.state())
        if message.parent.session != self.session_id:
            return
        request = self._requests.get(message.parent.msg_id)
        if request is not None:
            self._deliver(message, request)

    def _deliver(self, message: KernelMessage, request: _Request) -> None:
        msg_id = message.parent.msg_id
        self.outbox.received(msg_id)
        if message.raw.channel is Channel.STDIN:
            # The kernel asks again, so it has received the previous answer.
            self.outbox.answered(msg_id)
        if message.raw.channel is request.channel:
            request.replied = True
            request.inbox.put(message)
        elif message.state():
            request.idle |= message.state() == "idle"
        elif not _is_before(message.seq, request.after):
            request.inbox.put(message)
        if request.replied and (request.idle or not request.waits_for_idle):
            self._end(msg_id, None)

    def _on_state(self, state: str) -> None:
        """End requests to a process of the kernel that died or was replaced."""
        if state == "dead":
            self._dead = KernelGone("The kernel died.")
            self._end_all(self._dead)
        elif state == "restarting" or (state == "starting" and not self._barriers):
            self._dead = None
            self._end_all(_restarted())

    # The end.

    def fail(self, error: RelayError) -> None:
        """End all requests and listeners with ``error``."""
        if self.failure is None:
            self.failure = error
        self._end_all(error)
        for listener in self._listeners:
            listener.end(error)

    def _end_all(self, error: RelayError) -> None:
        self._barriers.clear()
        for msg_id in list(self._requests):
            self._end(msg_id, error)

    def _end(self, msg_id: str, error: RelayError | None) -> None:
        request = self._requests.pop(msg_id, None)
        if request is None:
            return
        self.outbox.received(msg_id)
        self.outbox.answered(msg_id)
        request.inbox.end(error)
        if error is None and request.then is not None:
            request.then()


def _is_before(seq: Position, after: Position | None) -> bool:
    return after is not None and seq.epoch == after.epoch and seq.seq <= after.seq


def _restarted() -> KernelRestarted:
    return KernelRestarted("The kernel was restarted; whether the code has run is not known.")


def _nothing() -> None:
    """Do nothing; the default callback."""
