"""A Jupyter message as its wire slices, and the few header fields that anything here reads.

The JSON parts stay the bytes they arrived as, from one wire to the other: a message is cut and
spliced, never decoded to objects and encoded again. Source:
https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeAlias

import msgspec

from relay.errors import MalformedMessage

Buffer: TypeAlias = bytes | memoryview
"""Bytes that nobody changes any more. A memoryview is contiguous and of single bytes."""

PROTOCOL_VERSION = "5.3"
"""The messaging protocol that synthetic messages state in their header."""


class Channel(enum.IntEnum):
    """The kernel's channels that clients see (the heartbeat is not one of them)."""

    SHELL = 0
    IOPUB = 1
    STDIN = 2
    CONTROL = 3

    @property
    def wire(self) -> str:
        """The channel's name in both WebSocket formats."""
        return _WIRE_NAMES[self]

    @classmethod
    def from_wire(cls, name: str) -> Channel:
        """Raises ``ValueError`` for a name that is no channel; names are lower case."""
        try:
            return _CHANNELS[name]
        except KeyError:
            raise ValueError("no such channel") from None


# Tables, because an enum's own name and lookup cost as much as encoding a message.
_WIRE_NAMES = tuple(channel.name.lower() for channel in Channel)
_CHANNELS = dict(zip(_WIRE_NAMES, Channel, strict=True))


# gc=False: these hold bytes only, so no cycle can pass through them, and there are very many.
class Message(msgspec.Struct, frozen=True, gc=False):
    """One message: four pieces of JSON (UTF-8, not checked) and raw buffers, in wire order."""

    channel: Channel
    header: Buffer
    parent_header: Buffer
    metadata: Buffer
    content: Buffer
    buffers: tuple[Buffer, ...] = ()

    @classmethod
    def from_parts(cls, channel: Channel, parts: Sequence[Buffer]) -> Self:
        """The message made of `parts`. Raises ``ValueError`` where one of the first four lacks."""
        header, parent_header, metadata, content, *buffers = parts
        return cls(channel, header, parent_header, metadata, content, tuple(buffers))

    @property
    def parts(self) -> tuple[Buffer, ...]:
        """Header, parent header, metadata, content, then the buffers: the order of every wire."""
        return (self.header, self.parent_header, self.metadata, self.content, *self.buffers)

    @property
    def size(self) -> int:
        """Total of all parts, in bytes."""
        return sum(map(len, self.parts))


class Header(msgspec.Struct, frozen=True, gc=False):
    """What the relay reads of a header. Missing fields are empty, unknown ones ignored.

    Clients in the wild leave out ``date`` or send it as a number (Jupyter Server's
    ``GatewayKernelClient``), and send an empty ``session``; what nothing here depends on may also
    be null.
    """

    msg_id: str = ""
    msg_type: str = ""
    session: str = ""
    username: str | None = ""
    version: str | None = ""
    date: str | float | None = None
    subshell_id: Any = None
    """Of the subshell that runs it (JEP 91); None for the main shell."""

    @property
    def subshell(self) -> str:
        """The subshell's name; "" for the main shell, "?" for what is no name."""
        named = self.subshell_id or ""
        return named[:_NAME] if isinstance(named, str) else "?"


_HEADER = msgspec.json.Decoder(Header)
_NAME = 1024
"""Characters of a subshell's name that are looked at."""


def parse_header(raw: Buffer) -> Header:
    """Read a header or parent header.

    Raises ``MalformedMessage`` where it is not a JSON object, or ids are not strings.
    """
    try:
        return _HEADER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # From None: the library's text may quote what the client sent.
        raise MalformedMessage("The message's header is not a Jupyter header") from None


def synthetic(
    channel: Channel,
    msg_type: str,
    content: Mapping[str, object],
    *,
    session: str,
    msg_id: str,
    date: str,
    parent_header: Buffer = b"{}",
    username: str = "",
) -> Message:
    """Build a message that no kernel sent, such as the ``restarting`` status.

    ``session`` should be the kernel's own: JupyterLab cancels its iopub handlers when it sees a
    foreign one. ``date`` is ISO 8601 in UTC; ``parent_header`` is spliced in as it is.
    """
    header = {
        "msg_id": msg_id,
        "msg_type": msg_type,
        "username": username,
        "session": session,
        "date": date,
        "version": PROTOCOL_VERSION,
    }
    encode = msgspec.json.encode
    return Message(channel, encode(header), parent_header, b"{}", encode(dict(content)))
