"""The server's side of a client's WebSocket, sans I/O: frames, limits on them, and its end.

Bytes from the client go in, messages and pongs come out; so do the bytes of answers. The
`websockets` library parses frames, answers pings and close frames, and fails the connection on what
is no WebSocket (RFC 6455).
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from typing import Final

import msgspec
from websockets.exceptions import PayloadTooBig
from websockets.frames import CLOSE, CONT, PONG, TEXT, CloseCode, Frame
from websockets.protocol import OPEN, Protocol, Side

from relay.bridge.control import Disconnect
from relay.bridge.messages import Buffer
from relay.config import EdgeLimits
from relay.edge.websocket.state import TRANSITIONS, State, Trigger

MESSAGE_BYTES: Final = "limits.message_bytes"
"""The setting that bounds a message."""
_REASON_BYTES: Final = 123
"""Bytes of a close frame's reason beside its code (RFC 6455 §5.5)."""
_CONTROL_PERIOD: Final = 1.0
"""Seconds for which ``limits.control_frames`` counts."""
_UTF8_CHUNK: Final = 65536
"""Bytes of text that are decoded at a time: decoded they may take four times as much."""
_PARSE_CHUNK: Final = 8192
"""Bytes that are parsed before their frames are looked at: these may be over a thousand."""
_ABNORMAL_CODES: Final = frozenset(
    {
        CloseCode.PROTOCOL_ERROR,
        CloseCode.UNSUPPORTED_DATA,
        CloseCode.INVALID_DATA,
        CloseCode.POLICY_VIOLATION,
        CloseCode.MESSAGE_TOO_BIG,
        CloseCode.INTERNAL_ERROR,
    }
)
"""With these a client closes because of what it was sent (RFC 6455 §7.4.1)."""


_OPEN: Final = State.OPEN
"""For the hot path: Python 3.11 takes as long to find an enum's member as to call a function."""


class ClientMessage(msgspec.Struct, frozen=True, gc=False):
    """A whole message of the client."""

    payload: Buffer
    text: bool


class Pong(msgspec.Struct, frozen=True, gc=False):
    """A pong of the client."""

    payload: bytes


class Violation(msgspec.Struct, frozen=True, gc=False):
    """A rule that the client broke; its WebSocket has failed."""

    problem: str
    setting: str | None = None
    """The limit that was hit; None where the client broke the protocol."""


class ClientFrames:
    """One client's WebSocket after its handshake.

    After each call that takes or sends frames the bytes of `data_to_send` are to be written. Text
    messages hold UTF-8 (RFC 6455 §8.1), except with ``any_text``: Jupyter Server in gateway mode
    sends buffers in them, whatever these are.
    """

    def __init__(self, limits: EdgeLimits, *, any_text: bool = False) -> None:
        self._limits = limits
        self._any_text = any_text
        self._protocol = Protocol(Side.SERVER, state=OPEN, max_size=limits.message_bytes)
        self._fragments = bytearray()
        """Payloads so far of a message in several frames: one buffer, however small they are."""
        self._fragment_count = 0
        self._text = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._control_count = 0
        """Control frames of the client since ``_control_since``."""
        self._control_since = -math.inf
        self.state = State.OPEN
        self.disconnect: Disconnect | None = None
        """How the client left; None as long as it has not, and if this side ended the WebSocket."""

    def receive(self, data: bytes, now: float) -> Iterator[ClientMessage | Pong | Violation]:
        """Take bytes from the client, and yield what they complete; to be iterated to its end.

        ``now`` is in seconds. A `Violation` is the last.
        """
        for start in range(0, len(data), _PARSE_CHUNK):
            if self.state is not _OPEN and self.state is not State.CLOSING_HERE:
                return
            self._protocol.receive_data(data[start : start + _PARSE_CHUNK])
            for frame in self._protocol.events_received():
                if self.state is not _OPEN or not isinstance(frame, Frame):
                    break
                if frame.opcode >= CLOSE:
                    yield from self._on_control_frame(frame, now)
                elif (event := self._on_data_frame(frame)) is not None:
                    yield event
            if self._protocol.parser_exc is not None and self._move(Trigger.FAIL):
                yield _parser_violation(self._protocol.parser_exc)

    def _on_control_frame(self, frame: Frame, now: float) -> Iterator[Pong | Violation]:
        # The library answers pings and close frames.
        if frame.opcode is PONG:
            yield Pong(bytes(frame.data))
        if now - self._control_since >= _CONTROL_PERIOD:
            self._control_count, self._control_since = 0, now
        self._control_count += 1
        most = self._limits.control_frames
        if self._control_count > most:
            problem = f"more than {most} control frames a second"
            yield self._fail_for_limit(1008, problem, "limits.control_frames")
        elif frame.opcode is CLOSE:
            self._move(Trigger.CLIENT_CLOSE)

    def _on_data_frame(self, frame: Frame) -> ClientMessage | Violation | None:
        if frame.opcode is not CONT:
            self._text = frame.opcode is TEXT
            self._fragment_count = 0
            self._utf8.reset()
        self._fragment_count += 1
        most = self._limits.message_frames
        if self._fragment_count > most:
            problem = f"a message in more than {most} frames"
            return self._fail_for_limit(1009, problem, "limits.message_frames")
        if self._text and not self._any_text and not self._is_utf8(frame):
            problem = "a text that is not UTF-8"
            self._fail(1007, problem)
            return Violation(problem)
        if frame.fin and not self._fragments:
            return ClientMessage(bytes(frame.data), self._text)
        self._fragments += frame.data
        if not frame.fin:
            return None
        whole, self._fragments = self._fragments, bytearray()
        return ClientMessage(memoryview(whole), self._text)

    def _is_utf8(self, frame: Frame) -> bool:
        """Whether a text's frames so far are UTF-8; a character may go on in the next frame."""
        view = memoryview(frame.data)
        try:
            for start in range(0, len(view), _UTF8_CHUNK):
                self._utf8.decode(view[start : start + _UTF8_CHUNK])
            if frame.fin:
                self._utf8.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
        return True

    def _fail_for_limit(self, code: int, problem: str, setting: str) -> Violation:
        self._fail(code, f"{problem} ({setting})")
        return Violation(problem, setting)

    def _fail(self, code: int, reason: str) -> None:
        """Fail the WebSocket (RFC 6455 §7.1.7): the client's answer is not waited for."""
        self._protocol.fail(code, reason)
        self._move(Trigger.FAIL)

    # While the frames before a client's close frame are handled, the library has answered it.

    def send_ping(self, payload: bytes) -> bool:
        """Send a ping if the WebSocket is open; return whether it was sent."""
        if self.state is not State.OPEN or self._protocol.state is not OPEN:
            return False
        self._protocol.send_ping(payload)
        return True

    def close(self, code: int, reason: str) -> bool:
        """Close the WebSocket, ``reason`` cut to fit; return whether it was open."""
        if self.state is State.OPEN and self._protocol.state is OPEN:
            short = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
            self._protocol.send_close(code, short)
        return self._move(Trigger.CLOSE)

    def abort(self) -> None:
        """Note that this side cuts the connection."""
        self._move(Trigger.ABORT)

    def connection_lost(self) -> None:
        """Note that the connection is gone."""
        self._move(Trigger.CONNECTION_LOST)

    def data_to_send(self) -> list[bytes]:
        """Return the bytes to write since the last call; ``b""`` asks to close the connection."""
        return self._protocol.data_to_send()

    def _move(self, trigger: Trigger) -> bool:
        """Change the state as the table says; return whether it changed."""
        following = TRANSITIONS[self.state].get(trigger)
        if following is None:
            return False
        if self.state is State.OPEN:
            self.disconnect = self._disconnect(trigger)
            self._fragments = bytearray()
        self.state = following
        return True

    def _disconnect(self, trigger: Trigger) -> Disconnect | None:
        """Return how the client leaves with the first trigger after `State.OPEN`."""
        close = self._protocol.close_rcvd
        if close is not None:
            return Disconnect.ABNORMAL if close.code in _ABNORMAL_CODES else Disconnect.CLEAN
        return Disconnect.ABNORMAL if trigger is Trigger.CONNECTION_LOST else None


def _parser_violation(problem: Exception) -> Violation:
    if isinstance(problem, PayloadTooBig):
        return Violation(str(problem), MESSAGE_BYTES)
    return Violation(str(problem))
