"""Records, the units of the links between edge and agent, and between agent and holder.

A record is ``u32le payload length, u8 kind, payload``. Both links use the same framing; sender and
payload of each kind are stated below. Small control payloads are JSON of the structs in this
module; payloads with messages are a fixed binary header followed by bytes that are not decoded on
the way.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from relay.bridge.messages import Buffer, Channel
from relay.bridge.versions import Opening
from relay.errors import RelayError
from relay.model import ExecutionState

if TYPE_CHECKING:
    from relay.bridge.messages import Message

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


class Position(msgspec.Struct, frozen=True):
    """A reader's position in a kernel's journal.

    The reader has everything up to ``seq``, and ``fragment`` WebSocket frames of the next message.
    """

    epoch: str
    seq: int
    fragment: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read a position in clients' form, ``<epoch>-<seq>``. Raises ``ValueError``."""
        found = _POSITION.fullmatch(text)
        if found is None:
            raise ValueError("a position is <epoch>-<seq>, as in a message's relay_seq")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


class Attach(Opening, frozen=True, kw_only=True):
    """Attaches a client's WebSocket to a kernel.

    ``link`` is the edge's name (32 hex digits) for the WebSocket. It stays the same when the edge
    attaches again through another agent, so that repeats are recognised.
    """

    link: str
    principal: str
    session_id: str = ""
    subprotocol: str = ""
    gateway: bool = False
    """Whether the client is a Jupyter Server in gateway mode, whose WebSocket takes text only."""
    position: Position | None = None
    """The position up to which the edge has sent the journal on this WebSocket already."""
    asks: bool = False
    """Whether the client wants to hear the seq of every message, and repeats its requests."""
    last_seq: Position | None = None
    """The position that the client states for itself."""
    views_only: bool = False
    """Whether the client may read only; the agent decides it from the ticket's rights."""
    granted: bool = False
    """Whether the client has access by a grant, which the kernel's owner can revoke."""
    request_id: str = ""


class Attached(Opening, frozen=True, kw_only=True):
    """The holder's answer: where reading starts, and the last client message it has received."""

    position: Position
    acknowledged: int


class Close(Opening, frozen=True):
    """End of the client's WebSocket, with a code and a reason it may see.

    In the place of an answer: the link is refused.
    """

    code: int
    reason: str


class Disconnect(enum.StrEnum):
    """How a client's connection ended."""

    GOODBYE = "goodbye"
    """The client closed its WebSocket cleanly."""
    BROKEN = "broken"
    """The connection was lost, or the client closed it because of a message it was sent."""


class Detach(msgspec.Struct, frozen=True, kw_only=True):
    """The client's WebSocket ended; ``departure`` is None where the edge ended it.

    The client was sent everything up to ``seq``, and ``fragment`` frames of the next message.
    """

    departure: Disconnect | None = None
    seq: int = 0
    fragment: int = 0


class GrantChange(msgspec.Struct, frozen=True, kw_only=True):
    """Changes what another principal may do: ``use``, ``view``, or nothing (None)."""

    principal: str
    action: str | None


Operation: TypeAlias = Literal["status", "interrupt", "restart", "shutdown", "grant"]
"""What an agent can ask of a holder.

``status`` asks for nothing but the `Status` that the holder sends to each agent: it opens a
connection. ``grant`` changes a grant (`GrantChange`); the others are about the kernel's process.
"""


class Call(Opening, frozen=True, kw_only=True):
    """One request from an agent to a holder; a `Result` with the same id answers it."""

    id: int
    op: Operation
    grant: GrantChange | None = None
    request_id: str = ""


class Failure(msgspec.Struct, frozen=True):
    """The reason of a failure, in words that are safe to show to a client."""

    message: str
    reason: str = "Kernel error"
    http_status: int = 500


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the `Call` with the same id."""

    id: int
    failure: Failure | None = None


class Phase(enum.StrEnum):
    """A kernel's phase between its launch and its end."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    GONE = "gone"


class HolderFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A holder's counts since its start, and its measurements, for the agent's metrics."""

    journal_bytes: int = 0
    """On disk."""
    journal_problem: str | None = None
    """Why the journal cannot be written just now."""
    messages: int = 0
    """Messages written to the journal in all."""
    unsaved: int = 0
    """Messages that could not be written to disk."""
    gaps: int = 0
    gap_messages: int = 0
    sessions: int = 0
    limit_hits: dict[str, int] = {}
    """Number of times that limits were reached, by setting."""


class Status(Opening, frozen=True, kw_only=True):
    """The state of a kernel, which its holder sends to agents at once and after each change.

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
    """None from holders of an older version."""
    knows_viewers: bool = False
    """False from holders of an older version, which do not restrict clients to reading."""


class Read(Opening, frozen=True, kw_only=True):
    """Reads the messages that a kernel sent to all clients, from the journal."""

    after: int
    """The seq after which to begin."""
    limit: int | None
    """The highest number of messages; None means no limit."""
    follow: bool
    """Whether to wait for more messages until the kernel ends, or end with the newest one."""
    message_bytes: int
    """Bytes of the largest message that the agent accepts."""
    principal: str = ""
    granted: bool = False
    """As in `Attach`."""
    request_id: str = ""


class Reading(Opening, frozen=True, kw_only=True):
    """The answer to a `Read`: the journal's epoch and its newest seq."""

    epoch: str
    last_seq: int


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Messages that are missing; some may not have been for all clients.

    ``seq`` is the last one's. ``setting`` is the limit because of which they were deleted, None
    where the disk could not be written.
    """

    messages: int
    seq: int
    setting: str | None


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
    """header, parent_header, metadata, content, *buffers"""


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
    parts = message.header, message.parent_header, message.metadata, message.content
    body = _pack_parts((*parts, *message.buffers))
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
