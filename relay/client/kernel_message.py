"""Messages for scripts, encoded and decoded with `relay.bridge`'s codec. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from relay.bridge.control import Position
from relay.bridge.messages import (
    PROTOCOL_VERSION,
    Buffer,
    Channel,
    Header,
    Message,
    parse_header,
)
from relay.bridge.ws_codec import Subprotocol, decode, encode
from relay.errors import MalformedMessage

T = TypeVar("T")

_JUST_JSON: Final = msgspec.json.Decoder()


class KernelMessage(msgspec.Struct, frozen=True):
    """A message from the kernel with its headers decoded."""

    seq: Position
    """The message's number; that of the message before where it has none (``numbered``)."""
    header: Header
    parent: Header
    raw: Message
    numbered: bool = True

    @property
    def channel(self) -> str:
        """The channel's name: shell, iopub, stdin or control."""
        return self.raw.channel.wire

    @property
    def msg_type(self) -> str:
        """The message's type, such as ``stream`` or ``execute_reply``."""
        return self.header.msg_type

    @property
    def content(self) -> dict[str, Any]:
        """The content, decoded at each call."""
        return _read(self.raw.content)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata, decoded at each call; the relay's own ``relay_seq`` is in it."""
        return _read(self.raw.metadata)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The binary buffers."""
        return self.raw.buffers

    @property
    def size(self) -> int:
        """Total of all parts, in bytes."""
        return self.raw.size

    def state(self) -> str:
        """The kernel's state in a status message; empty for other messages."""
        if self.raw.channel is not Channel.IOPUB or self.msg_type != "status":
            return ""
        return str(self.content.get("execution_state", ""))


def read(payload: bytes, before: Position | None) -> KernelMessage:
    """Decode a WebSocket message; ``before`` is the number of the message before, if there is one.

    Raises `MalformedMessage`, also for a first message without a number. A relay cannot number a
    message whose metadata is not an object, against the specification.
    """
    raw = decode(Subprotocol.V1, text=False, payload=payload)
    try:
        seq, numbered = Position.parse(str(_read(raw.metadata).get("relay_seq"))), True
    except ValueError:
        if before is None:
            msg = (
                "A message came without a number: the server is not a relay that supports resuming."
            )
            raise MalformedMessage(msg) from None
        seq, numbered = before, False
    header, parent = parse_header(raw.header), _parent(raw.parent_header)
    return KernelMessage(seq, header, parent, raw, numbered)


def request(
    channel: Channel,
    msg_type: str,
    content: Mapping[str, Any],
    *,
    msg_id: str,
    session: str,
    date: str,
    parent_header: Buffer = b"{}",
) -> bytes:
    """Encode a request as a WebSocket message; repeats must send the same bytes."""
    header = {
        "msg_id": msg_id,
        "msg_type": msg_type,
        "session": session,
        "username": "",
        "date": date,
        "version": PROTOCOL_VERSION,
    }
    message = Message(
        channel,
        msgspec.json.encode(header),
        parent_header,
        b"{}",
        json.dumps(content).encode(),
    )
    return b"".join(encode(Subprotocol.V1, message).parts)


def convert(content: Mapping[str, Any], kind: type[T]) -> T | None:
    """Convert content to a struct; None where it does not match the specification."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError:
        return None


def _parent(raw: Buffer) -> Header:
    # A message without a parent has {}, or null.
    return Header() if bytes(raw[:4]) in {b"", b"null"} else parse_header(raw)


def _read(part: Buffer) -> dict[str, Any]:
    """Decode a JSON object; what is not strict JSON is read as Python's json does.

    That is NaN, lone surrogates and, in invalid UTF-8, replacement characters.
    """
    try:
        value = _JUST_JSON.decode(part)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            value = json.loads(str(part, "utf-8", "replace"))
        except (ValueError, RecursionError):
            value = None
    return value if isinstance(value, dict) else {}
