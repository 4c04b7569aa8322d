"""Encodes and decodes Jupyter messages as WebSocket payloads, and cuts payloads into frames.

There are two subprotocols. *v1* (``v1.kernel.websocket.jupyter.org``): a table of u64le offsets,
then the parts as they are. *Legacy*: one JSON object as text or, with buffers, a table of u32be
offsets, that object and the buffers. Both are as in jupyter_server
(``services/kernels/connection/base.py``), but counts and offsets are checked before memory is
allocated for them: eight hostile bytes make jupyter_server allocate gigabytes.

Frames are RFC 6455 §5.2, server to client, so unmasked.
"""

from __future__ import annotations

import codecs
import enum
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final

import msgspec

from relay.bridge.messages import Buffer, Channel, Message
from relay.errors import MalformedMessage, TooLarge

FRAGMENT_SIZE: Final = 131072
"""Payload bytes per frame. Agents must agree on it: one continues, at a fragment boundary, a
message that another began, so a change breaks messages that are half sent during an upgrade."""

MAX_BUFFERS: Final = 65536
"""Buffers of one message from a client. An empty buffer costs the client eight bytes and the relay
some two hundred, so their number is limited in addition to the message's size."""

_COPY_UP_TO: Final = 65536
"""Bytes up to which a payload's parts are copied, which is as fast as views and frees the payload;
parts of larger payloads are views into it."""


class Subprotocol(enum.Enum):
    """The format of messages on one WebSocket; the value is its name in the handshake."""

    V1 = "v1.kernel.websocket.jupyter.org"
    LEGACY = ""


class Payload(msgspec.Struct, frozen=True, gc=False):
    """The payload of one WebSocket message in several parts, of ``size`` bytes in all."""

    text: bool
    parts: tuple[Buffer, ...]
    size: int


def choose(offered: Sequence[str]) -> Subprotocol:
    """Choose v1 whenever the client offers it: some clients fail if it is not selected."""
    return Subprotocol.V1 if Subprotocol.V1.value in offered else Subprotocol.LEGACY


def decode(subprotocol: Subprotocol, text: bool, payload: Buffer) -> Message:
    """Split a client's payload into a message. ``payload`` must not change afterwards.

    Only the layout is checked; the four JSON parts of v1 are passed on unchanged. Raises
    ``MalformedMessage``, whose text quotes nothing of the payload.
    """
    if subprotocol is Subprotocol.V1:
        return _decode_v1(payload)
    # Jupyter Server's gateway mode sends the binary layout in text frames too. Its first byte, of
    # the count, is 0 in any message of less than 2^24 buffers, and JSON never begins with 0.
    if text and payload[:1] != b"\0":
        return _decode_json(payload, ())
    return _decode_layout(payload)


def encode(subprotocol: Subprotocol, message: Message) -> Payload:
    """Join a message into a payload; the same message always gives the same bytes.

    Raises, for legacy only, ``MalformedMessage`` where the header is not a JSON object, and
    ``TooLarge`` where the offsets exceed 32 bits.
    """
    if subprotocol is Subprotocol.V1:
        return _encode_v1(message)
    if message.buffers:
        return _encode_layout(message)
    parts = _document(message, _TEXT_TAILS[message.channel])
    return Payload(text=True, parts=parts, size=sum(map(len, parts)))


# --- v1 -------------------------------------------------------------------------------------

_U64 = struct.Struct("<Q")
_V1_FIXED: Final = 6  # offsets: of the channel, of four JSON parts, and of the end
_CHANNELS = {channel.wire.encode(): channel for channel in Channel}
_CHANNEL_NAMES = tuple(channel.wire.encode() for channel in Channel)


def _decode_v1(payload: Buffer) -> Message:
    if len(payload) < _U64.size:
        raise MalformedMessage("The message is too short for the v1 format")
    (count,) = _U64.unpack_from(payload)
    start = _U64.size * (1 + count)
    if not _V1_FIXED <= count <= _V1_FIXED + MAX_BUFFERS or start > len(payload):
        raise MalformedMessage("The message's number of offsets is not possible")
    parts = _cut(payload, start, struct.unpack_from(f"<{count}Q", payload, _U64.size))
    # Eight bytes are enough for every channel's name; a longer, hostile one is not copied.
    channel = _CHANNELS.get(bytes(parts[0][:8]))
    if channel is None:
        raise MalformedMessage("The message is for no known channel")
    return Message(channel, parts[1], parts[2], parts[3], parts[4], tuple(parts[5:]))


def _encode_v1(message: Message) -> Payload:
    name = _CHANNEL_NAMES[message.channel]
    parts = (
        message.header,
        message.parent_header,
        message.metadata,
        message.content,
        *message.buffers,
    )
    count = len(parts) + 2
    start = _U64.size * (1 + count)
    offsets = list(accumulate(map(len, parts), initial=start + len(name)))
    table = struct.pack(f"<{count + 1}Q", count, start, *offsets)
    return Payload(text=False, parts=(table + name, *parts), size=offsets[-1])


# --- legacy ---------------------------------------------------------------------------------

_U32 = struct.Struct(">I")
_MAX_U32: Final = 0xFFFF_FFFF
_EMPTY = msgspec.Raw(b"{}")
_NO_STRING = msgspec.Raw(b'""')
_TEXT_TAILS = tuple(b', "buffers": [], "channel": "%b"}' % name for name in _CHANNEL_NAMES)
_LAYOUT_TAILS = tuple(b', "channel": "%b"}' % name for name in _CHANNEL_NAMES)


class _Document(msgspec.Struct, frozen=True, gc=False):
    """A legacy message from a client; "buffers" is [], {} or absent, and is not read."""

    header: msgspec.Raw
    parent_header: msgspec.Raw = _EMPTY
    metadata: msgspec.Raw = _EMPTY
    content: msgspec.Raw = _EMPTY
    channel: str | None = None


class _Ids(msgspec.Struct, frozen=True, gc=False):
    """The header's fields that legacy repeats beside it; raw, since their types are not checked."""

    msg_id: msgspec.Raw = _NO_STRING
    msg_type: msgspec.Raw = _NO_STRING


_DOCUMENT = msgspec.json.Decoder(_Document)
_IDS = msgspec.json.Decoder(_Ids)


def _decode_json(payload: Buffer, buffers: tuple[Buffer, ...]) -> Message:
    try:
        document = _DOCUMENT.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    # msgspec does not check the strings inside raw values.
    if document is None or not _is_utf8(payload):
        raise MalformedMessage("The message is not a JSON object with a header")
    try:
        channel = Channel.SHELL if document.channel is None else Channel.from_wire(document.channel)
    except ValueError:
        raise MalformedMessage("The message is for no known channel") from None
    own = bytes if len(payload) <= _COPY_UP_TO else memoryview
    return Message(
        channel,
        own(document.header),
        own(_not_null(document.parent_header)),
        own(_not_null(document.metadata)),
        own(_not_null(document.content)),
        buffers,
    )


def _not_null(raw: msgspec.Raw) -> msgspec.Raw:
    return _EMPTY if len(raw) == len(b"null") and bytes(raw) == b"null" else raw


def _decode_layout(payload: Buffer) -> Message:
    if len(payload) < _U32.size:
        raise MalformedMessage("The message is too short for the binary format")
    (count,) = _U32.unpack_from(payload)
    start = _U32.size * (1 + count)
    if not 1 <= count <= 1 + MAX_BUFFERS or start > len(payload):
        raise MalformedMessage("The message's number of offsets is not possible")
    offsets = struct.unpack_from(f">{count}I", payload, _U32.size)
    document, *buffers = _cut(payload, start, (*offsets, len(payload)))
    return _decode_json(document, tuple(buffers))


def _encode_layout(message: Message) -> Payload:
    document = _document(message, _LAYOUT_TAILS[message.channel])
    count = 1 + len(message.buffers)
    sizes = (sum(map(len, document)), *map(len, message.buffers))
    *offsets, size = accumulate(sizes, initial=_U32.size * (1 + count))
    if offsets[-1] > _MAX_U32:
        raise TooLarge("The message is too large for the legacy WebSocket format")
    table = struct.pack(f">{1 + count}I", count, *offsets)
    return Payload(text=False, parts=(table, *document, *message.buffers), size=size)


def _document(message: Message, tail: bytes) -> tuple[Buffer, ...]:
    """Join the JSON object, with keys and spaces as in jupyter_server's ``json.dumps``."""
    header = _as_utf8(message.header)
    try:
        ids = _IDS.decode(header)
    except (msgspec.DecodeError, RecursionError):
        raise MalformedMessage("The message's header is not a Jupyter header") from None
    return (
        b'{"header": ',
        header,
        b"".join(
            (b', "msg_id": ', ids.msg_id, b', "msg_type": ', ids.msg_type, b', "parent_header": ')
        ),
        _as_utf8(message.parent_header) or b"{}",
        b', "metadata": ',
        _as_utf8(message.metadata) or b"{}",
        b', "content": ',
        _as_utf8(message.content) or b"{}",
        tail,
    )


def _as_utf8(part: Buffer) -> Buffer:
    """Replace bytes that are not UTF-8, as jupyter_client does on reading.

    ipykernel sends such bytes when a cell prints a lone surrogate such as U+DC80; in a text frame
    they would make the client close its connection (RFC 6455 §8.1).
    """
    return part if _is_utf8(part) else str(part, "utf-8", "replace").encode()


def _is_utf8(part: Buffer) -> bool:
    if isinstance(part, bytes) and part.isascii():
        return True
    view, position = memoryview(part), 0
    try:
        while position < len(view):  # in parts: decoding at once takes up to four times the size
            end = position + _COPY_UP_TO
            position += codecs.utf_8_decode(view[position:end], "strict", end >= len(view))[1]
    except UnicodeDecodeError:
        return False
    return True


def _cut(payload: Buffer, start: int, offsets: tuple[int, ...]) -> list[Buffer]:
    """Cut at ``offsets``, which must rise, and lie between ``start`` and the payload's end."""
    if offsets[0] < start or offsets[-1] > len(payload) or sorted(offsets) != list(offsets):
        raise MalformedMessage("The message's offsets do not rise within the message")
    whole = bytes(payload) if len(payload) <= _COPY_UP_TO else memoryview(payload)
    return [whole[begin:end] for begin, end in pairwise(offsets)]


# --- frames ---------------------------------------------------------------------------------

_CONTINUATION: Final = 0x0
_TEXT: Final = 0x1
_BINARY: Final = 0x2
_FIN: Final = 0x80
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127
_HEAD_16 = struct.Struct(">BBH")
_HEAD_64 = struct.Struct(">BBQ")


def fragments(payload: Payload) -> int:
    """Return the number of frames of a payload, which depends on its size only; at least one."""
    return max(1, -(-payload.size // FRAGMENT_SIZE))


def frames(payload: Payload, skip: int = 0) -> Iterator[bytes]:
    """Yield the payload's frames without the first ``skip``, which were sent already.

    A text payload may be cut inside a character, as RFC 6455 §5.6 allows.
    """
    last = fragments(payload) - 1
    kind = _TEXT if payload.text else _BINARY
    if last == 0:
        if skip == 0:
            yield b"".join((_head(_FIN | kind, payload.size), *payload.parts))
        return
    for index, pieces in enumerate(_fragment(payload.parts, skip * FRAGMENT_SIZE), skip):
        first = (_CONTINUATION if index else kind) | (_FIN if index == last else 0)
        yield b"".join((_head(first, sum(map(len, pieces))), *pieces))


def _head(first: int, size: int) -> bytes:
    if size < _LENGTH_16:
        return bytes((first, size))
    if size <= 0xFFFF:  # noqa: PLR2004  (what 16 bits hold)
        return _HEAD_16.pack(first, _LENGTH_16, size)
    return _HEAD_64.pack(first, _LENGTH_64, size)


def _fragment(parts: tuple[Buffer, ...], skip: int) -> Iterator[list[memoryview]]:
    """Regroup the bytes after the first ``skip`` into lists of ``FRAGMENT_SIZE`` bytes each."""
    pieces: list[memoryview] = []
    room = FRAGMENT_SIZE
    for part in parts:
        if skip >= len(part):
            skip -= len(part)
            continue
        rest = memoryview(part)[skip:]
        skip = 0
        while len(rest) >= room:
            yield [*pieces, rest[:room]]
            rest, pieces, room = rest[room:], [], FRAGMENT_SIZE
        pieces.append(rest)
        room -= len(rest)
    if room < FRAGMENT_SIZE:
        yield pieces
