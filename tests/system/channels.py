"""A kernel's channels over a WebSocket, as a client has them that brings no library of its own.

Messages are dictionaries as in the Jupyter messaging specification, with ``channel`` and
``buffers`` besides. What is on the wire is made and read with Jupyter Server's own functions.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlencode

from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_socket
from websockets.typing import Subprotocol

V1: Final = Subprotocol("v1.kernel.websocket.jupyter.org")
_PARTS: Final = ("header", "parent_header", "metadata", "content")

Message = dict[str, Any]


class Execution(NamedTuple):
    """One execution: what came with its ``msg_id`` as parent, in the order of arrival."""

    messages: list[Message]

    def of(self, *types: str) -> Iterator[Message]:
        """The messages of these types."""
        return (each for each in self.messages if each["header"]["msg_type"] in types)

    @property
    def replies(self) -> list[dict[str, Any]]:
        """The content of the ``execute_reply``, of each that came."""
        return [each["content"] for each in self.of("execute_reply")]

    @property
    def states(self) -> list[str]:
        """The kernel's states: busy, idle."""
        return [each["content"]["execution_state"] for each in self.of("status")]

    @property
    def stdout(self) -> str:
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        return self._stream("stderr")

    def _stream(self, name: str) -> str:
        streams = (each["content"] for each in self.of("stream"))
        return "".join(each["text"] for each in streams if each["name"] == name)


class Channels:
    """An open WebSocket."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        """Use `connect`, or `RunningRelay.connect`."""
        self.socket = socket
        self.session = session

    def send(
        self,
        channel: str,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        parent: Mapping[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
        msg_id: str | None = None,
    ) -> str:
        """Send a message; its ``msg_id``. ``parent`` is a header."""
        message = request(
            channel,
            msg_type,
            content,
            session=self.session,
            parent=parent,
            buffers=buffers,
            msg_id=msg_id,
        )
        return self._send(message)

    def _send(self, message: Message) -> str:
        self.socket.send(pack(message, v1=self.socket.subprotocol == V1))
        return str(message["header"]["msg_id"])

    def receive(self, timeout: float = 30.0) -> Message:
        """The next message. Raises `TimeoutError`, or websockets' ``ConnectionClosed``."""
        return unpack(self.socket.recv(timeout), v1=self.socket.subprotocol == V1)

    def submit(self, code: str, **options: Any) -> str:
        """Send code to execute; the ``msg_id``. ``options`` are more of the content."""
        return self._send(execute_request(code, session=self.session, **options))

    def execute(
        self,
        code: str,
        *,
        seen: Callable[[Execution], None] | None = None,
        timeout: float = 60.0,
        **options: Any,
    ) -> Execution:
        """Execute code and wait for both its reply and its idle status.

        ``seen`` is called after each message, with what came so far; ``options`` are more of an
        ``execute_request``'s content. Raises `TimeoutError` after ``timeout`` seconds.
        """
        return self.collect(self.submit(code, **options), seen, timeout)

    def collect(
        self,
        msg_id: str,
        seen: Callable[[Execution], None] | None = None,
        timeout: float = 60.0,
    ) -> Execution:
        """Wait for the rest of an execution, as `execute` does."""
        execution = Execution([])
        deadline = time.monotonic() + timeout
        replied = idle = False
        while not (replied and idle):
            try:
                message = self.receive(max(deadline - time.monotonic(), 0.0))
            except TimeoutError:
                raise TimeoutError(f"no end within {timeout:.0f} s: {execution}") from None
            if message["parent_header"].get("msg_id") == msg_id:
                execution.messages.append(message)
                replied |= message["header"]["msg_type"] == "execute_reply"
                idle |= message["content"].get("execution_state") == "idle"
                if seen is not None:
                    seen(execution)
        return execution

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def of(messages: list[Message], msg_id: str) -> Execution:
    """What belongs to one cell."""
    return Execution([m for m in messages if m["parent_header"].get("msg_id") == msg_id])


def is_over(messages: list[Message], msg_id: str) -> bool:
    mine = of(messages, msg_id)
    return bool(mine.replies) and "idle" in mine.states


class Count(NamedTuple):
    """How lines that came differ from those that were printed."""

    lost: int
    repeated: int
    out_of_order: int
    strange: int
    """Never printed."""


def count_lines(text: str, printed: Sequence[str]) -> Count:
    """Compare what came with what was printed, line by line; ``printed`` has no line twice."""
    places = {line: place for place, line in enumerate(printed)}
    came = text.splitlines()
    order = [places[line] for line in came if line in places]
    firsts = list(dict.fromkeys(order))
    return Count(
        lost=len(printed) - len(firsts),
        repeated=len(order) - len(firsts),
        out_of_order=sum(after < before for before, after in itertools.pairwise(firsts)),
        strange=len(came) - len(order),
    )


def connect(
    url: str,
    *,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None = None,
    v1: bool = True,
    session: str = "",
    last_seq: str | None = None,
) -> Channels:
    """Open ``…/channels``. Raises websockets' ``InvalidStatus`` where that is refused."""
    query = {"session_id": session or None, "last_seq": last_seq}
    given = {name: value for name, value in query.items() if value is not None}
    socket = open_socket(
        f"{url}?{urlencode(given)}" if given else url,
        ssl=tls,
        additional_headers=headers,
        subprotocols=[V1] if v1 else None,
        compression=None,
        max_size=None,
        proxy=None,
        open_timeout=30.0,
        # Whoever stops reading does not take its own deafness for the server's silence.
        ping_interval=None,
        legacy=True,  # returns the connection itself, which `Channels` closes
    )
    return Channels(socket, session)


def request(
    channel: str,
    msg_type: str,
    content: Mapping[str, Any],
    *,
    session: str,
    parent: Mapping[str, Any] | None = None,
    buffers: Sequence[bytes] = (),
    msg_id: str | None = None,
) -> Message:
    """A message to a kernel. ``parent`` is a header."""
    header = {
        "msg_id": msg_id or secrets.token_hex(16),
        "msg_type": msg_type,
        "session": session,
        "username": "",
        "version": "5.4",
        "date": dt.datetime.now(dt.UTC).isoformat(),
    }
    return {
        "channel": channel,
        "header": header,
        "parent_header": dict(parent or {}),
        "metadata": {},
        "content": dict(content),
        "buffers": list(buffers),
    }


def execute_request(
    code: str, *, session: str, msg_id: str | None = None, **options: Any
) -> Message:
    """Code to execute. ``options`` are more of the content."""
    defaults = {"silent": False, "store_history": True, "allow_stdin": False}
    content = {"code": code, "user_expressions": {}, **defaults, **options}
    return request("shell", "execute_request", content, session=session, msg_id=msg_id)


def pack(message: Message, *, v1: bool) -> str | bytes:
    """A message as it goes into a WebSocket."""
    if v1:
        parts = [*(json.dumps(message[part]).encode() for part in _PARTS), *message["buffers"]]
        packed: bytes = serialize_msg_to_ws_v1(parts, message["channel"])
    elif message["buffers"]:
        packed = serialize_binary_message(message)
    else:
        return json.dumps(message)
    return packed


def unpack(payload: str | bytes, *, v1: bool) -> Message:
    """A message as it came out of a WebSocket."""
    if isinstance(payload, str):
        assert not v1, "text on a v1 WebSocket"
        message: Message = json.loads(payload)
    elif v1:
        channel, parts = deserialize_msg_from_ws_v1(payload)
        message = {name: json.loads(part) for name, part in zip(_PARTS, parts[:4], strict=True)}
        message |= {"channel": channel, "buffers": parts[4:]}
    else:
        message = deserialize_binary_message(payload)
    return message
