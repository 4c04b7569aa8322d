"""Stand-ins for the network: transports that remember, and what hangs on them."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Iterable
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

from relay.bridge.control import Attached, Position
from relay.bridge.records import RecordKind, RecordReader, struct_record
from relay.edge.upstream.link import Link


class FakeTransport(asyncio.Transport):
    """A connection without a network: what is written to it can be read in ``written``.

    As strict as uvloop's: writing to a connection that is gone raises.
    """

    def __init__(self, protocol: asyncio.BaseProtocol | None = None) -> None:
        super().__init__()
        self.protocol: Any = protocol
        self.written = bytearray()
        self.writes = 0
        self.late = bytearray()
        """What was written to it once it was closing; nobody would ever read that."""
        self._reading = True
        self.aborted = False
        self.extra: dict[str, Any] = {}
        self.waiting = 0
        """Bytes that it says it has not written yet."""
        self.lost = False
        self.stuck = False
        """Whether the other end reads nothing: closing waits for it, aborting does not."""
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.lost:
            raise RuntimeError("the handler is closed")
        (self.late if self._closing else self.written).extend(data)
        self.writes += 1

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.extra.get(name, default)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def take(self) -> bytes:
        """What was written since the last time."""
        written = bytes(self.written)
        self.written.clear()
        return written

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self.stuck:
                asyncio.get_running_loop().call_soon(self.lose)

    def abort(self) -> None:
        self.aborted = True
        if self.stuck or not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.lose)

    def lose(self, problem: Exception | None = None) -> None:
        """The other side is gone."""
        if not self.lost:
            self._closing = True
            self.protocol.connection_lost(problem)
            self.lost = True


class FakeResponse:
    """What an HTTP client returns of an upgrade."""

    def __init__(self, transport: FakeTransport | None) -> None:
        self.connection: Any = self
        self.transport = transport
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Agent:
    """An edge's link, seen from the agent's end."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.response = FakeResponse(self.transport)
        self.link = Link(self.response)  # type: ignore[arg-type]
        self._reader = RecordReader(2**30)

    @classmethod
    def attached(cls, position: Position, acknowledged: int = 0) -> Agent:
        """A link that has been attached already."""
        agent = cls()
        agent.send(
            struct_record(
                RecordKind.ATTACHED, Attached(position=position, acknowledged=acknowledged)
            )
        )
        return agent

    def send(self, *records: bytes) -> None:
        self.link.data_received(b"".join(records))

    def received(self) -> list[tuple[RecordKind, bytes]]:
        """The records that came since the last time."""
        return self._reader.feed(self.transport.take())


class Browser:
    """The client's end of a WebSocket, after its handshake: frames to bytes and back."""

    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport
        self.protocol = Protocol(Side.CLIENT, state=OPEN, max_size=None)

    def send(self, *frames: bytes) -> None:
        self.transport.protocol.data_received(b"".join(frames))

    def received(self) -> list[Frame]:
        """The frames that came since the last time. Fails where they are not WebSocket."""
        self.protocol.receive_data(self.transport.take())
        assert self.protocol.parser_exc is None
        return [event for event in self.protocol.events_received() if isinstance(event, Frame)]


_MASK = b"\x37\xfa\x21\x3d"


def client_frame(opcode: int, data: bytes = b"", *, fin: bool = True, mask: bool = True) -> bytes:
    """One frame as a client sends it (RFC 6455 §5.2), or as it must not."""
    if len(data) < 126:
        length, extended = len(data), b""
    elif len(data) < 2**16:
        length, extended = 126, struct.pack(">H", len(data))
    else:
        length, extended = 127, struct.pack(">Q", len(data))
    head = bytes((fin << 7 | opcode, mask << 7 | length)) + extended
    if not mask:
        return head + data
    return head + _MASK + bytes(byte ^ key for byte, key in zip(data, itertools.cycle(_MASK)))


def text(*pieces: bytes) -> bytes:
    """A text message in as many fragments as there are pieces."""
    return message(Opcode.TEXT, pieces)


def binary(*pieces: bytes) -> bytes:
    """A binary message in as many fragments as there are pieces."""
    return message(Opcode.BINARY, pieces)


def message(opcode: Opcode, pieces: Iterable[bytes]) -> bytes:
    """A message in as many fragments as there are pieces."""
    *most, last = pieces
    frames = []
    for piece in most:
        frames.append(client_frame(opcode, piece, fin=False))
        opcode = Opcode.CONT
    return b"".join((*frames, client_frame(opcode, last)))
