"""A kernel behind a relay that keeps the contract of ``last_seq``, in memory.

Its language: ``print 3`` prints three lines; ``fail`` raises; ``ask`` reads a line and prints it;
``big 1000`` shows so many bytes; ``hold`` runs until `FakeKernel.release`. Anything else does
nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter, deque
from typing import Any

from relay.bridge.control import Position
from relay.bridge.messages import Channel, Message, parse_header, synthetic
from relay.bridge.ws_codec import Subprotocol, decode, encode
from relay.client.delivery_tracker import parse_position
from relay.client.errors import ConnectionLost
from relay.errors import RelayError

EPOCH = "0123456789ab"


def at(number: int) -> str:
    return str(Position(EPOCH, number))


class FakeKernel:
    """``journal`` has each message with the session that may read it, "" for all."""

    def __init__(self) -> None:
        self.journal: list[tuple[str, Message]] = []
        self.ran: list[str] = []
        """Code, in the order of running."""
        self.received: Counter[str] = Counter()
        """How often each msg_id came, repeats included."""
        self.answers: list[str] = []
        self.changed = asyncio.Event()
        self._seen: set[tuple[Channel, str, str]] = set()
        self._ids = itertools.count()
        self.running: Message | None = None
        """The request that is not answered yet."""
        self._waiting: deque[Message] = deque()

    def submit(self, payload: bytes) -> None:
        message = decode(Subprotocol.V1, text=False, payload=payload)
        header = parse_header(message.header)
        self.received[header.msg_id] += 1
        key = message.channel, header.msg_id, header.session
        if key in self._seen:
            return
        self._seen.add(key)
        if header.msg_type == "input_reply":
            self._answered(json.loads(bytes(message.content))["value"])
        else:
            self._waiting.append(message)
            self._go_on()

    def _go_on(self) -> None:
        while self.running is None and self._waiting:
            self.running = self._waiting.popleft()
            self._run(self.running)

    def _run(self, request: Message) -> None:
        header = parse_header(request.header)
        content = json.loads(bytes(request.content))
        self.publish("status", {"execution_state": "busy"}, request)
        self.ran.append(content.get("code", header.msg_type))
        match content.get("code", "").split():
            case ["print", count]:
                for number in range(int(count)):
                    self.publish("stream", {"name": "stdout", "text": f"{number}\n"}, request)
            case ["big", count]:
                data = {"data": {"text/plain": "x" * int(count)}, "metadata": {}}
                self.publish("display_data", data, request)
            case ["fail"]:
                error = {"ename": "E", "evalue": "v", "traceback": ["t"]}
                self.publish("error", error, request)
                self._reply(request, {"status": "error", **error})
                return
            case ["ask"]:
                content = {"prompt": "name?", "password": False}
                self.publish("input_request", content, request, Channel.STDIN)
                return
            case ["hold"]:
                return
        self._reply(request, {"status": "ok"})

    def _reply(self, request: Message, content: dict[str, Any]) -> None:
        msg_type = parse_header(request.header).msg_type.replace("_request", "_reply")
        self.publish(msg_type, content, request, request.channel)
        self.publish("status", {"execution_state": "idle"}, request)
        self.running = None

    def release(self, text: str = "") -> None:
        """End ``hold`` or ``ask``, and run what waits behind it."""
        request = self.running
        assert request is not None
        self.publish("stream", {"name": "stdout", "text": text}, request)
        self._reply(request, {"status": "ok"})
        self._go_on()

    def _answered(self, value: str) -> None:
        self.answers.append(value)
        if self.running is not None:
            self.release(value)

    def lose_process(self, *states: str) -> None:
        """Forget what was asked; then the kernel says these states."""
        self.running = None
        self._waiting.clear()
        for state in states:
            self.publish("status", {"execution_state": state})

    def publish(
        self,
        msg_type: str,
        content: dict[str, Any],
        request: Message | None = None,
        channel: Channel = Channel.IOPUB,
    ) -> None:
        parent = b"{}" if request is None else request.header
        reader = "" if channel is Channel.IOPUB else parse_header(parent).session
        message = synthetic(
            channel,
            msg_type,
            content,
            session="kernel",
            msg_id=f"k{next(self._ids)}",
            date="2026-01-01T00:00:00Z",
            parent_header=parent,
        )
        self.journal.append((reader, message))
        self.changed.set()

    def payload(self, number: int) -> bytes:
        """What the relay sends for a message."""
        _, message = self.journal[number - 1]
        metadata = json.dumps({"relay_seq": at(number)}).encode()
        numbered = Message(
            message.channel, message.header, message.parent_header, metadata, message.content
        )
        return b"".join(encode(Subprotocol.V1, numbered).parts)

    async def after(self, number: int, session: str) -> int:
        """The number of the next message for a session."""
        while True:
            for following in range(number + 1, len(self.journal) + 1):
                if self.journal[following - 1][0] in {"", session}:
                    return following
            self.changed.clear()
            await self.changed.wait()


class FakeSocket:
    """A WebSocket to a `FakeKernel` that breaks after so many messages either way.

    ``arrives`` says whether the request at which it breaks has reached the kernel. ``stale`` sends
    that many messages again that the client has.
    """

    def __init__(
        self,
        kernel: FakeKernel,
        session: str,
        last_seq: str,
        *,
        receives: int | None = None,
        sends: int | None = None,
        arrives: bool = False,
        stale: int = 0,
        end: RelayError | None = None,
    ) -> None:
        self._kernel = kernel
        self._session = session
        self._number = max(0, (parse_position(last_seq).seq if last_seq else 0) - stale)
        self._receives = receives
        self._sends = sends
        self._arrives = arrives
        self._end = end or ConnectionLost("cut")
        self._broken = asyncio.Event()
        self.closed = False

    async def send(self, payload: bytes) -> None:
        if self._broken.is_set():
            raise ConnectionLost("cut")
        if self._sends is not None:
            self._sends -= 1
            if self._sends < 0:
                self._broken.set()
                if self._arrives:
                    self._kernel.submit(payload)
                return
        self._kernel.submit(payload)

    async def receive(self) -> bytes:
        if self._receives is not None:
            self._receives -= 1
            if self._receives < 0:
                self._broken.set()
        if self._broken.is_set():
            raise self._end
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self._kernel.after(self._number, self._session))
            broken = tasks.create_task(self._broken.wait())
            await asyncio.wait([following, broken], return_when=asyncio.FIRST_COMPLETED)
            following.cancel()
            broken.cancel()
        if self._broken.is_set() or following.cancelled():
            raise self._end
        self._number = following.result()
        return self._kernel.payload(self._number)

    async def close(self) -> None:
        self.closed = True


def lines(count: int) -> list[str]:
    return [f"{number}\n" for number in range(count)]
