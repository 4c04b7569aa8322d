"""Messages between an edge's workers and their parent: their types, and their way through a stream.

A message is msgpack. It travels in frames, each behind its length and kind. A message that fits in
one frame goes ahead of the remaining parts of a longer one, so that nothing short waits for a long
answer. No I/O happens here.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct

MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the longest message: some 40,000 models of kernels of 400 bytes each."""
FRAME_BYTES: Final = 64 * 1024
"""Bytes that a frame carries at the most."""

HEAD: Final = struct.Struct("<IB")
"""A frame's head: the bytes that it carries, and its kind."""
WHOLE: Final = 0
"""Kind of a frame that carries a whole message."""
PART: Final = 1
"""Kind of a frame that carries a part of a longer message; more follow."""
LAST: Final = 2
"""Kind of a frame that carries a longer message's last part."""

Payload = TypeVar("Payload")


class Refusal(Struct, frozen=True, array_like=True):
    """Why a service does not do what it was asked for."""

    code: str
    """For programs; where a limit is met, the limit's setting."""
    message: str
    """For people."""
    retry_after: int = 0
    """Whole seconds after which another try makes sense; 0: unknown."""


class ServiceCall(Struct, Generic[Payload], frozen=True, tag=True, array_like=True):
    """A worker's request to a service; exactly one answer has the same number."""

    number: int
    """New for each call on a connection."""
    service: str
    request: Payload


class Notification(Struct, Generic[Payload], frozen=True, tag=True, array_like=True):
    """A worker's request to a service that is not answered."""

    service: str
    request: Payload


class Release(Struct, frozen=True, tag=True, array_like=True):
    """A worker gives back the permit that the call of this number was granted, if it was."""

    number: int


class CallResult(Struct, Generic[Payload], frozen=True, tag=True, array_like=True):
    """A service's answer."""

    number: int
    answer: Payload


class CallRefusal(Struct, frozen=True, tag=True, array_like=True):
    """A service's refusal."""

    number: int
    refusal: Refusal


class CallFailure(Struct, frozen=True, tag=True, array_like=True):
    """Why a call did not reach a service, or has no answer from it."""

    number: int
    code: str
    message: str


WorkerMessage = ServiceCall[Raw] | Notification[Raw] | Release
ParentMessage = CallResult[Raw] | CallRefusal | CallFailure


class ProtocolError(ValueError):
    """The other side does not speak this protocol; the connection is of no more use."""


class MessageTooLarge(ValueError):
    """A message of more than `MESSAGE_BYTES`; it was not sent."""


BAD_MESSAGE: Final = (ValueError, RecursionError)
"""What is raised for bytes that are no message: `ProtocolError`, and msgspec's own errors."""

_encode: Final = msgspec.msgpack.Encoder().encode


def encode(message: Struct) -> bytes:
    """Return the message's bytes.

    Raises:
        MessageTooLarge: there are more than `MESSAGE_BYTES`.
    """
    data = _encode(message)
    if len(data) > MESSAGE_BYTES:
        raise MessageTooLarge(f"a message of {len(data)} bytes is over {MESSAGE_BYTES}")
    return data


class MessageWriter:
    """Cuts messages into frames, and gives frames to ``write`` unless writing is paused."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._paused = False
        self._short: deque[bytes] = deque()
        self._long: deque[bytes] = deque()
        self._cut = 0
        """How many bytes of the first long message are written."""
        self.waiting = 0
        """Bytes of messages that are not written yet."""

    def send(self, message: bytes, *, behind_all: bool = False) -> None:
        """Write ``message`` as soon as it is its turn.

        Short messages keep their order, and so do long ones; with ``behind_all`` this one comes
        after everything that waits now.
        """
        if not self._paused and len(message) <= FRAME_BYTES:
            self._write(HEAD.pack(len(message), WHOLE) + message)
            return
        in_short_lane = len(message) <= FRAME_BYTES and not behind_all
        (self._short if in_short_lane else self._long).append(message)
        self.waiting += len(message)
        self._flush()

    def pause(self) -> None:
        """Write nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Write what waits, until `pause`."""
        self._paused = False
        self._flush()

    def _flush(self) -> None:
        while not self._paused and (self._short or self._long):
            self._write(self._whole() if self._short else self._part())

    def _whole(self) -> bytes:
        message = self._short.popleft()
        self.waiting -= len(message)
        return HEAD.pack(len(message), WHOLE) + message

    def _part(self) -> bytes:
        message = self._long[0]
        part = message[self._cut : self._cut + FRAME_BYTES]
        self._cut += len(part)
        self.waiting -= len(part)
        if self._cut < len(message):
            return HEAD.pack(len(part), PART) + part
        kind = LAST if self._cut > len(part) else WHOLE
        self._long.popleft()
        self._cut = 0
        return HEAD.pack(len(part), kind) + part


class MessageReader:
    """Puts messages together out of a stream's bytes.

    It holds what was fed and not taken yet, and one long message up to `MESSAGE_BYTES`.
    """

    def __init__(self) -> None:
        self._data = b""
        self._start = 0
        """Where in the data the next frame begins."""
        self._long: bytearray | None = None
        """The parts of a long message so far; None between long messages."""

    def feed(self, data: bytes) -> None:
        """Take what the stream brings."""
        self._data = self._data[self._start :] + data
        self._start = 0

    def next(self) -> bytes | None:
        """Return the next complete message, or None where there is none yet.

        Raises:
            ProtocolError: what comes next cannot be a frame; nothing of it is collected.
        """
        while len(self._data) >= self._start + HEAD.size:
            length, kind = HEAD.unpack_from(self._data, self._start)
            if kind != WHOLE or length > FRAME_BYTES:
                self._check(length, kind)
            begin = self._start + HEAD.size
            end = begin + length
            if len(self._data) < end:
                return None
            self._start = end
            payload = self._data[begin:end]
            if kind == WHOLE:
                return payload
            if (message := self._join(payload, last=kind == LAST)) is not None:
                return message
        return None

    def _check(self, length: int, kind: int) -> None:
        """Raise `ProtocolError` for a head that may not come now."""
        if length > FRAME_BYTES:
            raise ProtocolError(f"a frame of {length} bytes is over {FRAME_BYTES}")
        if kind not in (WHOLE, PART, LAST):
            raise ProtocolError(f"no frame is of kind {kind}")
        if self._long is None and kind == LAST:
            raise ProtocolError("a last part without a first one")
        if self._long is not None and len(self._long) + length > MESSAGE_BYTES:
            raise ProtocolError(f"a message is over {MESSAGE_BYTES} bytes")

    def _join(self, part: bytes, *, last: bool) -> bytes | None:
        """Add a part to the long message; return the message once it is complete."""
        if self._long is None:
            self._long = bytearray()
        self._long += part
        if not last:
            return None
        message, self._long = bytes(self._long), None
        return message
