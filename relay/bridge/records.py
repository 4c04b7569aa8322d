"""Records, the units of the links between edge and agent, and between agent and holder.

A record is ``u32le payload length, u8 kind, payload``. Both links use the same framing; sender and
payload of each kind are stated below. Control payloads are JSON of the structs in `control`;
payloads with messages are a fixed binary header followed by bytes that are not decoded on the way.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import msgspec

from relay.bridge.messages import Buffer, Channel, Message
from relay.errors import RelayError

HEADER: Final = struct.Struct("<IB")
_FRAMES: Final = struct.Struct("<QI")
_CLIENT: Final = struct.Struct("<QB")
_NUMBER: Final = struct.Struct("<Q")
_ENTRY: Final = struct.Struct("<QBI")
_LENGTH: Final = struct.Struct("<Q")
BUSY: Final = b"\1"
_JSON_PARTS: Final = 4
"""Parts that every message has: header, parent_header, metadata, content."""


class RecordKind(enum.IntEnum):
    """The kind of a record; the comment names its sender and payload."""

    ATTACH = 1  # edge → agent → holder: Attach
    ATTACHED = 2  # holder → agent → edge: Attached
    FRAMES = 3  # agent → edge: u64 seq, u32 fragment, complete WebSocket frames
    MESSAGE = 4  # edge → agent: u64 number, u8 1 for text, one reassembled WebSocket message
    ACK = 5  # holder → agent → edge: u64 number of the last client message the holder has
    PROVED = 6  # edge → agent → holder: u64 seq up to which the client confirmed receipt
    CLOSE = 7  # holder → agent → edge: Close
    DETACH = 8  # edge → agent → holder: Detach
    ENTRIES = 9  # holder → agent: packed journal entries
    SUBMIT = 10  # agent → holder: u64 number, u8 channel, packed parts
    CALL = 11  # agent → holder: Call
    RESULT = 12  # holder → agent: Result
    STATUS = 13  # holder → agent, unasked: Status
    PING = 14  # edge → agent: empty; answered by PONG
    PONG = 15  # agent → edge: BUSY while the kernel is busy, else empty
    READ = 16  # agent → holder: Read, as the first record
    READING = 17  # holder → agent: Reading, the answer; then ENTRIES and GAP, finally CLOSE
    GAP = 18  # holder → agent: Gap


class RecordError(RelayError):
    """The other side of a link sent something other than a record; the link cannot be used."""


class RecordTooLarge(RecordError):
    """A record over this side's limit; the link cannot be used, since its payload is not read."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a record of {size} bytes is over the limit of {limit}")
        self.size = size
        self.limit = limit
        """Both in bytes of payload."""


class Entry(NamedTuple):
    """One message from the kernel in the journal."""

    seq: int
    channel: Channel
    parts: tuple[Buffer, ...]
    """As `Message.parts`."""

    @property
    def message(self) -> Message:
        """The message that the parts are."""
        return Message.from_parts(self.channel, self.parts)


Payload = TypeVar("Payload", bound=msgspec.Struct)


def record(kind: RecordKind, payload: Buffer = b"") -> bytes:
    """Encode a record."""
    return HEADER.pack(len(payload), kind) + payload


def struct_record(kind: RecordKind, payload: msgspec.Struct) -> bytes:
    """Encode a record with a struct as JSON."""
    return record(kind, msgspec.json.encode(payload))


def read_struct(payload: Buffer, struct_type: type[Payload]) -> Payload:
    """Decode the struct in a payload. Raises `RecordError`."""
    try:
        return msgspec.json.decode(payload, type=struct_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"not a {struct_type.__name__} record"
        raise RecordError(msg) from error


def number_record(kind: RecordKind, number: int) -> bytes:
    """Encode an ACK or PROVED record."""
    return HEADER.pack(_NUMBER.size, kind) + _NUMBER.pack(number)


def read_number(payload: Buffer) -> int:
    """Decode the number in an ACK or PROVED payload. Raises `RecordError`."""
    if len(payload) != _NUMBER.size:
        msg = "a number is 8 bytes"
        raise RecordError(msg)
    number: int = _NUMBER.unpack(payload)[0]
    return number


def frames_record(seq: int, fragment: int, frames: Iterable[Buffer]) -> bytes:
    """Encode a FRAMES record; after its frames the client's position is (``seq``, ``fragment``)."""
    body = b"".join(frames)
    return b"".join(
        (
            HEADER.pack(_FRAMES.size + len(body), RecordKind.FRAMES),
            _FRAMES.pack(seq, fragment),
            body,
        )
    )


def read_frames(payload: Buffer) -> tuple[int, int, memoryview]:
    """Return (seq, fragment, frames) of a FRAMES payload. Raises `RecordError`."""
    if len(payload) < _FRAMES.size:
        msg = "a FRAMES record is cut short"
        raise RecordError(msg)
    seq, fragment = _FRAMES.unpack_from(payload)
    return seq, fragment, memoryview(payload)[_FRAMES.size :]


def message_record(number: int, *, text: bool, payload: Buffer) -> bytes:
    """Encode a MESSAGE record with the client's message ``number`` on this link."""
    head = HEADER.pack(_CLIENT.size + len(payload), RecordKind.MESSAGE)
    return b"".join((head, _CLIENT.pack(number, text), payload))


def read_message(payload: Buffer) -> tuple[int, bool, memoryview]:
    """Return (number, text, message) of a MESSAGE payload. Raises `RecordError`."""
    if len(payload) < _CLIENT.size:
        msg = "a MESSAGE record is cut short"
        raise RecordError(msg)
    number, text = _CLIENT.unpack_from(payload)
    return number, bool(text), memoryview(payload)[_CLIENT.size :]


def submit_record(number: int, message: Message) -> bytes:
    """Encode a SUBMIT record with the parts of the client's message ``number``."""
    body = _pack_parts(message.parts)
    head = HEADER.pack(_CLIENT.size + sum(map(len, body)), RecordKind.SUBMIT)
    return b"".join((head, _CLIENT.pack(number, message.channel), *body))


def read_submit(payload: Buffer) -> tuple[int, Channel, tuple[memoryview, ...]]:
    """Return (number, channel, parts) of a SUBMIT payload. Raises `RecordError`."""
    try:
        number, channel = _CLIENT.unpack_from(payload)
        parts, end = _unpack_parts(memoryview(payload), _CLIENT.size)
        if end != len(payload) or len(parts) < _JSON_PARTS:
            msg = "a SUBMIT record does not add up"
            raise RecordError(msg)
        return number, Channel(channel), parts
    except (struct.error, ValueError) as error:
        msg = "a SUBMIT record is malformed"
        raise RecordError(msg) from error


def entries_record(entries: Iterable[Entry]) -> bytes:
    """Encode an ENTRIES record."""
    body: list[Buffer] = []
    for entry in entries:
        parts = _pack_parts(entry.parts)
        body.append(_ENTRY.pack(entry.seq, entry.channel, sum(map(len, parts))))
        body += parts
    return b"".join((HEADER.pack(sum(map(len, body)), RecordKind.ENTRIES), *body))


def read_entries(payload: Buffer) -> Iterator[Entry]:
    """Yield the entries of an ENTRIES payload, as views into it. Raises `RecordError`."""
    view = memoryview(payload)
    offset = 0
    while offset < len(view):
        try:
            seq, channel, length = _ENTRY.unpack_from(view, offset)
            offset += _ENTRY.size
            parts, end = _unpack_parts(view, offset)
            if end != offset + length or len(parts) < _JSON_PARTS:
                msg = "an entry does not add up"
                raise RecordError(msg)
            yield Entry(seq, Channel(channel), parts)
        except (struct.error, ValueError) as error:
            msg = "an ENTRIES record is malformed"
            raise RecordError(msg) from error
        offset = end


def _pack_parts(parts: tuple[Buffer, ...]) -> list[Buffer]:
    lengths = struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts))
    return [lengths, *parts]


def _unpack_parts(view: memoryview, offset: int) -> tuple[tuple[memoryview, ...], int]:
    (count,) = struct.unpack_from("<I", view, offset)
    offset += 4
    if count * _LENGTH.size > len(view) - offset:
        msg = "more parts than bytes"
        raise RecordError(msg)
    lengths = struct.unpack_from(f"<{count}Q", view, offset)
    offset += count * _LENGTH.size
    if sum(lengths) > len(view) - offset:
        msg = "parts are longer than their record"
        raise RecordError(msg)
    parts = []
    for length in lengths:
        parts.append(view[offset : offset + length])
        offset += length
    return tuple(parts), offset


class RecordReader:
    """Splits a byte stream into records, sans I/O.

    ``max_payload`` is the largest accepted payload in bytes.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._buffer = bytearray()

    def feed(self, data: Buffer) -> list[tuple[RecordKind, bytes]]:
        """Return the records that ``data`` completes. Raises `RecordError`."""
        self._buffer += data
        found: list[tuple[RecordKind, bytes]] = []
        offset = 0
        while (header := self._header(offset)) is not None:
            length, kind = header
            start = offset + HEADER.size
            if len(self._buffer) - start < length:
                break
            offset = start + length
            found.append((kind, bytes(memoryview(self._buffer)[start:offset])))
        if offset:
            del self._buffer[:offset]
        return found

    def _header(self, offset: int) -> tuple[int, RecordKind] | None:
        if len(self._buffer) - offset < HEADER.size:
            return None
        length, kind = HEADER.unpack_from(self._buffer, offset)
        return check_header(length, kind, self._max_payload)


def check_header(length: int, kind: int, max_payload: int) -> tuple[int, RecordKind]:
    """Check a record's length and kind. Raises `RecordError`."""
    try:
        known = RecordKind(kind)
    except ValueError as error:
        msg = f"no record is of kind {kind}"
        raise RecordError(msg) from error
    if length > max_payload:
        raise RecordTooLarge(length, max_payload)
    return length, known
