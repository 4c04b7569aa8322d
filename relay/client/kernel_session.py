"""One session with one kernel, over any number of WebSockets. Sans I/O.

`Channels` hands in what it receives (`KernelSession.take`), and sends what
`KernelSession.next_unsent` gives; `KernelSession.reconnected` makes every request of which nothing
has come yet unsent again. The relay drops those that it has had, by ``msg_id``: so each runs once.
"""

from __future__ import annotations

import functools
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from relay.bridge.messages import Channel
from relay.bridge.records import Position
from relay.client import kernel_message
from relay.client.delivery_tracker import DeliveryTracker
from relay.client.errors import KernelGone, KernelRestarted
from relay.client.inbox import Inbox
from relay.client.kernel_message import KernelMessage
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
    """Something asked of the kernel. ``payload`` is None where another process has sent it."""

    channel: Channel
    payload: bytes | None
    inbox: Inbox
    after: Position | None = None
    waits_for_idle: bool = True
    seen: bool = False
    """Something came of it, so it has arrived."""
    replied: bool = False
    idle: bool = False
    then: Callable[[], None] | None = None


class KernelSession:
    """What was asked, what came, and who reads it.

    ``now`` gives the date for a header; ``in_flight`` bounds the requests of which nothing is known
    yet.
    """

    def __init__(
        self, session_id: str, start: Position | None, now: Callable[[], str], in_flight: int
    ) -> None:
        self.session_id = session_id
        self._in_flight_limit = in_flight
        self.ledger = DeliveryTracker(start)
        self.failure: RelayError | None = None
        """Why nothing will come any more."""
        self.on_unsent: Callable[[], None] = _nothing
        """Called when there is something to send."""
        self.on_room: Callable[[], None] = _nothing
        """Called when messages were read."""
        self._now = now
        self._requests: dict[str, _Request] = {}
        self._answers: dict[str, bytes] = {}
        """What was answered on stdin last, by the ``msg_id`` of the request that asked."""
        self._unsent: deque[str] = deque()
        self._unsent_answers: deque[str] = deque()
        self._in_flight: set[str] = set()
        """What was sent, and nothing came of it yet."""
        self._numbered = False
        self._listeners: list[Inbox] = []
        self._fences: set[str] = set()
        """Requests that stand for a restart which we asked for."""
        self._dead: KernelGone | None = None

    # Asking.

    def ask(
        self,
        channel: Channel,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        msg_id: str | None = None,
        waits_for_idle: bool = True,
    ) -> tuple[str, Inbox]:
        """Send a request: its ``msg_id``, and where its messages come.

        Raises `RelayError` where there is nobody to ask any more.
        """
        self._check()
        msg_id = self._new(msg_id)
        payload = self._payload(channel, msg_type, content, msg_id)
        request = _Request(channel, payload, self._inbox(), waits_for_idle=waits_for_idle)
        self._requests[msg_id] = request
        self._send(msg_id)
        return msg_id, request.inbox

    def resume(
        self, msg_id: str, content: Mapping[str, Any] | None, after: Position | None
    ) -> Inbox:
        """Take up an ``execute_request`` of another process; where ``content`` is, send it again.

        What that process has read does not come again, so the end may not either. A request that
        does nothing is sent behind it: when that has been answered, everything has come.
        """
        self._check()
        self._new(msg_id)
        payload = None
        if content is not None:
            payload = self._payload(Channel.SHELL, "execute_request", content, msg_id)
        request = _Request(Channel.SHELL, payload, self._inbox(), after=after)
        self._requests[msg_id] = request
        if payload is not None:
            self._send(msg_id)
        self._fence(functools.partial(self._end, msg_id, None))
        return request.inbox

    def restarted(self) -> None:
        """The kernel was restarted because we asked for it.

        What was asked of the process before fails, but only once all that it still said has come:
        that is when the new process has answered.
        """
        self._dead = None
        old = [msg_id for msg_id in self._requests if msg_id not in self._fences]

        def fail_old() -> None:
            self._fences.discard(fence)
            for msg_id in old:
                self._end(msg_id, _restarted())

        fence = self._fence(fail_old)
        self._fences.add(fence)

    def answer(self, question: KernelMessage, value: str) -> None:
        """Answer an ``input_request``. The same question always gets the same ``msg_id``."""
        msg_id = f"{question.header.msg_id}-reply"
        payload = self._payload(
            Channel.STDIN, "input_reply", {"value": value}, msg_id, parent=question
        )
        asker = question.parent.msg_id
        if asker in self._requests:
            self._answers[asker] = payload
            self._unsent_answers.append(asker)
            self.on_unsent()

    def listen(self) -> Inbox:
        """Have every message from now on."""
        self._check()
        inbox = self._inbox()
        self._listeners.append(inbox)
        self.on_unsent()
        return inbox

    def leave(self, inbox: Inbox) -> None:
        """Have no more of them."""
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
        return Inbox(self.ledger, self._made_room)

    def _made_room(self) -> None:
        self.on_room()

    def _fence(self, then: Callable[[], None]) -> str:
        msg_id, inbox = self.ask(Channel.SHELL, "execute_request", _SILENT)
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

    # Sending.

    def reconnected(self) -> None:
        """There is a new WebSocket: whatever may not have arrived goes again, in its order."""
        self._in_flight.clear()
        self._unsent = deque(key for key, request in self._requests.items() if not request.seen)
        self._unsent_answers = deque(self._answers)
        self.on_unsent()

    def next_unsent(self) -> bytes | None:
        """The next payload to send, once; None where there is none, or too much in flight.

        Of what has arrived the relay remembers so much only (``sessions.repeats``). Answers go
        first: what they are for may be what the rest waits for.
        """
        while self._unsent_answers:
            answer = self._answers.get(self._unsent_answers.popleft())
            if answer is not None:
                return answer
        while self._unsent and len(self._in_flight) < self._in_flight_limit:
            msg_id = self._unsent.popleft()
            request = self._requests.get(msg_id)
            if request is not None and request.payload is not None and not request.seen:
                self._in_flight.add(msg_id)
                return request.payload
        return None

    def _send(self, msg_id: str) -> None:
        self._unsent.append(msg_id)
        self.on_unsent()

    # Hearing.

    def take(self, payload: bytes) -> None:
        """What came in one WebSocket message. Raises `MalformedMessage`."""
        message = kernel_message.read(payload, self.ledger.received if self._numbered else None)
        self._numbered = True
        if message.numbered and not self.ledger.take(message.seq):
            return
        for listener in self._listeners:
            listener.put(message)
        self._note_life(message.state())
        if message.parent.session != self.session_id:
            return
        request = self._requests.get(message.parent.msg_id)
        if request is not None:
            self._deliver(message, request)

    def _deliver(self, message: KernelMessage, request: _Request) -> None:
        msg_id = message.parent.msg_id
        request.seen = True
        self._land(msg_id)
        if message.raw.channel is Channel.STDIN:
            # It asks again, so the answer before has arrived.
            self._answers.pop(msg_id, None)
        if message.raw.channel is request.channel:
            request.replied = True
            request.inbox.put(message)
        elif message.state():
            request.idle |= message.state() == "idle"
        elif not _is_before(message.seq, request.after):
            request.inbox.put(message)
        if request.replied and (request.idle or not request.waits_for_idle):
            self._end(msg_id, None)

    def _note_life(self, state: str) -> None:
        """Whether the kernel's process is still the one that was asked."""
        if state == "dead":
            self._dead = KernelGone("The kernel died.")
            self._end_all(self._dead)
        elif state == "restarting" or (state == "starting" and not self._fences):
            self._dead = None
            self._end_all(_restarted())

    # Ending.

    def fail(self, error: RelayError) -> None:
        """Nothing will come any more."""
        if self.failure is None:
            self.failure = error
        self._end_all(error)
        for listener in self._listeners:
            listener.end(error)

    def _end_all(self, error: RelayError) -> None:
        self._fences.clear()
        for msg_id in list(self._requests):
            self._end(msg_id, error)

    def _end(self, msg_id: str, error: RelayError | None) -> None:
        request = self._requests.pop(msg_id, None)
        if request is None:
            return
        self._land(msg_id)
        self._answers.pop(msg_id, None)
        request.inbox.end(error)
        if error is None and request.then is not None:
            request.then()

    def _land(self, msg_id: str) -> None:
        if msg_id in self._in_flight:
            self._in_flight.discard(msg_id)
            if self._unsent:
                self.on_unsent()


def _is_before(seq: Position, after: Position | None) -> bool:
    return after is not None and seq.epoch == after.epoch and seq.seq <= after.seq


def _restarted() -> KernelRestarted:
    return KernelRestarted("The kernel was restarted; whether this has run, it cannot say.")


def _nothing() -> None:
    """Nobody to tell."""
