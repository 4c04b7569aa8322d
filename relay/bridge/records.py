"""Records: what travels between edge and agent, and between agent and holder.

A record is ``u32le payload length, u8 kind, payload``. Both links use the same framing; each kind
says below who sends it and what its payload holds. Small control payloads are JSON of the structs
in this module; what carries messages is a fixed binary header and then bytes that nobody decodes
on the way.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import msgspec

from relay.bridge.messages import Buffer, Channel, Message
from relay.bridge.versions import Opening
from relay.errors import RelayError
from relay.model import ExecutionState

HEADER: Final = struct.Struct("<IB")
_FRAMES: Final = struct.Struct("<QI")
_CLIENT: Final = struct.Struct("<QB")
_NUMBER: Final = struct.Struct("<Q")
_ENTRY: Final = struct.Struct("<QBI")
_LENGTH: Final = struct.Struct("<Q")
_POSITION: Final = re.compile(r"([0-9a-f]{12})-([0-9]{1,18})", re.ASCII)
BUSY: Final = b"\1"
_JSON_PARTS: Final = 4
"""Parts that every message has: header, parent_header, metadata, content."""


class RecordKind(enum.IntEnum):
    """What a record is; the comment names sender and payload."""

    ATTACH = 1  # edge → agent → holder: Attach
    ATTACHED = 2  # holder → agent → edge: Attached
    FRAMES = 3  # agent → edge: u64 seq, u32 fragment, complete WebSocket frames
    MESSAGE = 4  # edge → agent: u64 number, u8 1 for text, one reassembled WebSocket message
    ACK = 5  # holder → agent → edge: u64 number of the last client message the holder has
    PROVED = 6  # edge → agent → holder: u64 seq the client has received for certain
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
    READING = 17  # holder → agent: Reading, the answer; then ENTRIES and GAP, at last CLOSE
    GAP = 18  # holder → agent: Gap


class Position(msgspec.Struct, frozen=True):
    """How far one reader has come in a kernel's journal.

    Everything up to ``seq`` is behind it, and ``fragment`` WebSocket frames of the message after.
    """

    epoch: str
    seq: int
    fragment: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        """A position as clients write it, ``<epoch>-<seq>``. Raises ``ValueError``."""
        found = _POSITION.fullmatch(text)
        if found is None:
            raise ValueError("a position is <epoch>-<seq>, as in a message's relay_seq")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


class Attach(Opening, frozen=True, kw_only=True):
    """A client wants a kernel's channels.

    ``link`` is the edge's own name (32 hex digits) for the client's WebSocket: it stays the same
    while the edge attaches again through another agent, so that repeats are recognised.
    """

    link: str
    principal: str
    session_id: str = ""
    subprotocol: str = ""
    gateway: bool = False
    """Whether the client is a Jupyter Server in gateway mode: its WebSocket takes text only."""
    position: Position | None = None
    """How far the edge has sent the journal on this WebSocket already."""
    resumes: bool = msgspec.field(default=False, name="asks")
    """Whether the client wants the seq of every message, and repeats its requests."""
    last_seq: Position | None = None
    """How far the client says that it has come."""
    views_only: bool = False
    """Whether the client only listens; it, too, the agent says, whatever the edge does."""
    granted: bool = False
    """Whether the kernel's owner lets the client in, who is somebody else's, and can end that."""
    request_id: str = ""


class Attached(Opening, frozen=True, kw_only=True):
    """The holder's answer: where reading starts and which client message it has last."""

    position: Position
    acknowledged: int


class Close(Opening, frozen=True):
    """End of the client's WebSocket, with a code and a reason it may see.

    In the place of an answer: the link is refused.
    """

    code: int
    reason: str


class Disconnect(enum.StrEnum):
    """How a client left."""

    CLEAN = "goodbye"
    """It closed its WebSocket in good order."""
    ABNORMAL = "broken"
    """Its connection broke, or it closed because of what it had been sent."""


class Detach(msgspec.Struct, frozen=True, kw_only=True):
    """The client's WebSocket ended; no ``disconnect`` where it was the edge that ended it.

    It had been sent everything up to ``seq``, and ``fragment`` frames of the message after.
    """

    disconnect: Disconnect | None = msgspec.field(default=None, name="departure")
    seq: int = 0
    fragment: int = 0


class GrantChange(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel's owner lets another principal do: ``use``, ``view``, nothing any more."""

    principal: str
    action: str | None


class Call(Opening, frozen=True, kw_only=True):
    """One request to a holder: ``interrupt``, ``restart``, ``shutdown`` or ``grant``."""

    id: int
    op: str
    grant: GrantChange | None = None
    request_id: str = ""


class Failure(msgspec.Struct, frozen=True):
    """Why something did not work, in words a client may see."""

    message: str
    reason: str = "Kernel error"
    http_status: int = 500


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to the `Call` of the same id."""

    id: int
    failure: Failure | None = None


class Phase(enum.StrEnum):
    """Where a kernel stands between its launch and its end."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    GONE = "gone"


class HolderFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a holder counts, since its start, and measures; for the agent's metrics."""

    journal_bytes: int = 0
    """On disk."""
    journal_problem: str | None = None
    """Why the journal cannot be written just now."""
    messages: int = 0
    """Messages in the journal, all that there were."""
    unsaved: int = 0
    """Those of them that the disk never got."""
    gaps: int = 0
    gap_messages: int = 0
    sessions: int = 0
    limit_hits: dict[str, int] = {}
    """How often limits were hit, by setting."""


class Status(Opening, frozen=True, kw_only=True):
    """What a holder tells every agent about its kernel, at once and whenever it changes.

    ``last_activity`` is in seconds since the epoch.
    """

    phase: Phase
    name: str
    owner: str
    execution_state: ExecutionState
    last_activity: float
    connections: int
    failure: Failure | None = None
    figures: HolderFigures | None = None
    """None of a holder that an older version started."""
    knows_viewers: bool = False
    """False of a holder that an older version started: whoever is let in is listened to."""


class Read(Opening, frozen=True, kw_only=True):
    """Somebody wants to read what a kernel has said to everybody, from the journal."""

    after: int
    """The seq to begin behind."""
    limit: int | None
    """How many messages at the most."""
    follow: bool
    """Whether to wait for more, until the kernel ends; else it ends with the newest message."""
    message_bytes: int
    """Bytes of the largest message that the agent takes."""
    principal: str = ""
    granted: bool = False
    """As in `Attach`."""
    request_id: str = ""


class Reading(Opening, frozen=True, kw_only=True):
    """The answer to a `Read`: which journal it is, and its newest seq."""

    epoch: str
    last_seq: int


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Messages that the reader does not get; some may not have been for everybody.

    ``seq`` is the last one's. ``setting`` is the limit that they fell to, None where the disk
    could not be written.
    """

    messages: int
    seq: int
    setting: str | None


class RecordError(RelayError):
    """The other side of a link does not speak records; the link is of no more use."""


class RecordTooLarge(RecordError):
    """A record over this side's limit; the next one cannot be found without reading it."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a record of {size} bytes is over the limit of {limit}")
        self.size = size
        self.limit = limit
        """Both in bytes of payload."""


class Entry(NamedTuple):
    """One kernel→client message as a reader gets it."""

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
    """One record in one piece."""
    return HEADER.pack(len(payload), kind) + payload


def struct_record(kind: RecordKind, payload: msgspec.Struct) -> bytes:
    """One record whose payload is a struct, as JSON."""
    return record(kind, msgspec.json.encode(payload))


def read_struct(payload: Buffer, struct_type: type[Payload]) -> Payload:
    """The struct in a payload. Raises `RecordError`."""
    try:
        return msgspec.json.decode(payload, type=struct_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"not a {struct_type.__name__} record"
        raise RecordError(msg) from error


def number_record(kind: RecordKind, number: int) -> bytes:
    """An ACK or PROVED record."""
    return HEADER.pack(_NUMBER.size, kind) + _NUMBER.pack(number)


def read_number(payload: Buffer) -> int:
    """The number in an ACK or PROVED payload. Raises `RecordError`."""
    if len(payload) != _NUMBER.size:
        msg = "a number is 8 bytes"
        raise RecordError(msg)
    number: int = _NUMBER.unpack(payload)[0]
    return number


def frames_record(seq: int, fragment: int, frames: Iterable[Buffer]) -> bytes:
    """A FRAMES record: after these frames the client stands at (``seq``, ``fragment``)."""
    body = b"".join(frames)
    return b"".join(
        (
            HEADER.pack(_FRAMES.size + len(body), RecordKind.FRAMES),
            _FRAMES.pack(seq, fragment),
            body,
        )
    )


def read_frames(payload: Buffer) -> tuple[int, int, memoryview]:
    """(seq, fragment, frames) of a FRAMES payload. Raises `RecordError`."""
    if len(payload) < _FRAMES.size:
        msg = "a FRAMES record is cut short"
        raise RecordError(msg)
    seq, fragment = _FRAMES.unpack_from(payload)
    return seq, fragment, memoryview(payload)[_FRAMES.size :]


def message_record(number: int, *, text: bool, payload: Buffer) -> bytes:
    """A MESSAGE record: the client's message ``number`` on this link."""
    head = HEADER.pack(_CLIENT.size + len(payload), RecordKind.MESSAGE)
    return b"".join((head, _CLIENT.pack(number, text), payload))


def read_message(payload: Buffer) -> tuple[int, bool, memoryview]:
    """(number, text, message) of a MESSAGE payload. Raises `RecordError`."""
    if len(payload) < _CLIENT.size:
        msg = "a MESSAGE record is cut short"
        raise RecordError(msg)
    number, text = _CLIENT.unpack_from(payload)
    return number, bool(text), memoryview(payload)[_CLIENT.size :]


def submit_record(number: int, message: Message) -> bytes:
    """A SUBMIT record: the client's message ``number``, taken apart."""
    body = _pack_parts(message.parts)
    head = HEADER.pack(_CLIENT.size + sum(map(len, body)), RecordKind.SUBMIT)
    return b"".join((head, _CLIENT.pack(number, message.channel), *body))


def read_submit(payload: Buffer) -> tuple[int, Channel, tuple[memoryview, ...]]:
    """(number, channel, parts) of a SUBMIT payload. Raises `RecordError`."""
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
    """An ENTRIES record."""
    body: list[Buffer] = []
    for entry in entries:
        parts = _pack_parts(entry.parts)
        body.append(_ENTRY.pack(entry.seq, entry.channel, sum(map(len, parts))))
        body += parts
    return b"".join((HEADER.pack(sum(map(len, body)), RecordKind.ENTRIES), *body))


def read_entries(payload: Buffer) -> Iterator[Entry]:
    """The entries of an ENTRIES payload, as views into it. Raises `RecordError`."""
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
    """Cuts a byte stream into records, sans I/O.

    ``max_payload`` in bytes bounds what one record may make this side hold.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._buffer = bytearray()

    def feed(self, data: Buffer) -> list[tuple[RecordKind, bytes]]:
        """The records that are complete with ``data``. Raises `RecordError`."""
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
    """A record header that is allowed to be. Raises `RecordError`."""
    try:
        known = RecordKind(kind)
    except ValueError as error:
        msg = f"no record is of kind {kind}"
        raise RecordError(msg) from error
    if length > max_payload:
        raise RecordTooLarge(length, max_payload)
    return length, known
