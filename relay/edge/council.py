"""The council: what all workers share is kept by their parent, and they ask it over a unix socket.

A worker's claims are freed when its connection ends, so that one that is killed leaves nothing
behind; and a worker whose parent is gone ends. Messages are msgpack behind their length (u32le).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Generic, Self, TypeVar, cast

import msgspec
import structlog
from msgspec import Struct

from relay.edge.quotas import Claim, Lasting, Quotas, Refusal

log = structlog.get_logger(__name__)

MESSAGE_BYTES: Final = 64 * 1024
"""Bytes of the longest message."""
_LENGTH: Final = struct.Struct("<I")
_CREDENTIALS: Final = struct.Struct("3i")
_NAME: Final = "council"


class Ask(Struct, frozen=True, tag=True, array_like=True):
    """A worker asks for something; ``number`` is new for each question of its."""

    number: int
    claim: Claim


class Free(Struct, frozen=True, tag=True, array_like=True):
    """A worker gives back what it asked for, or does not wait for an answer any longer."""

    number: int


class Note(Struct, frozen=True, tag=True, array_like=True):
    """A worker has something for the parent to keep."""

    topic: str
    data: bytes
    number: int = 0
    """As of a question; 0: the worker waits for no answer."""


class Answer(Struct, frozen=True, array_like=True):
    """The parent's answer to the question of that number."""

    number: int
    refusal: Refusal | None


Said = Ask | Free | Note

T = TypeVar("T")


class _Reader(Generic[T]):
    """Messages of one type out of a stream's bytes."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """The messages that are complete now. Raises ``ValueError`` for what is none."""
        self._data += data
        start = 0
        try:
            while len(self._data) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._data, start)
                if length > MESSAGE_BYTES:
                    msg = f"a message of {length} bytes"
                    raise ValueError(msg)
                end = start + _LENGTH.size + length
                if len(self._data) < end:
                    break
                message = bytes(self._data[start + _LENGTH.size : end])
                start = end
                yield self._decoder.decode(message)
        finally:
            del self._data[:start]


def _packed(message: Said | Answer) -> bytes:
    data = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(data)) + data


class Refused(Exception):
    """The council said no."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.setting)
        self.refusal = refusal


class Lease:
    """Something that was granted and lasts until it is freed."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free: Callable[[], None] | None = free

    def free(self) -> None:
        """Give it back; the second time nothing happens."""
        free, self._free = self._free, None
        if free is not None:
            free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class Council(asyncio.Protocol):
    """A worker's side. ``gone`` tells that the parent is: nothing will be granted any more."""

    def __init__(self, on_gone: Callable[[], None]) -> None:
        """Use `join`."""
        self._on_gone = on_gone
        self._reader = _Reader(msgspec.msgpack.Decoder(Answer))
        self._waiting: dict[int, asyncio.Future[Refusal | None]] = {}
        self._last = 0
        self._transport: asyncio.Transport | None = None
        self.gone = False

    @classmethod
    async def join(cls, path: Path, parent: int, on_gone: Callable[[], None]) -> Self:
        """Connect to the socket of ``parent``, a process of this user.

        ``on_gone`` is called when the connection ends. Raises ``ConnectionError`` where somebody
        else listens there, and ``OSError`` where nobody.
        """
        loop = asyncio.get_running_loop()
        transport, council = await loop.create_unix_connection(lambda: cls(on_gone), str(path))
        if _peer(transport) != (parent, os.geteuid()):
            transport.abort()
            msg = "the council's socket is not our parent's"
            raise ConnectionError(msg)
        return council

    async def hold(self, claim: Lasting) -> Lease:
        """Ask for something that lasts. Raises `Refused`, and ``ConnectionError`` once `gone`."""
        number = await self._ask(lambda number: Ask(number, claim))
        return Lease(lambda: self._say(Free(number)))

    async def count(self, claim: Claim) -> None:
        """Ask for something that is over at once. Raises as `hold`."""
        await self._ask(lambda number: Ask(number, claim))

    def note(self, topic: str, data: bytes) -> None:
        """Have the parent keep ``data``; raises ``ValueError`` where that is too long."""
        _check(data)
        self._say(Note(topic, data))

    async def tell(self, topic: str, data: bytes) -> None:
        """Have the parent keep ``data``, and wait until it has. Raises as `note` and `hold`."""
        _check(data)
        await self._ask(lambda number: Note(topic, data, number))

    def close(self) -> None:
        """Leave: everything that was granted is freed."""
        if self._transport is not None:
            self._transport.close()

    async def _ask(self, question: Callable[[int], Ask | Note]) -> int:
        if self.gone:
            raise _gone()
        self._last += 1
        number = self._last
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._say(question(number))
        try:
            refusal = await answer
        except asyncio.CancelledError:
            # It may be granted yet, and nobody would know.
            self._say(Free(number))
            raise
        finally:
            self._waiting.pop(number, None)
        if refusal is not None:
            raise Refused(refusal)
        return number

    def _say(self, message: Said) -> None:
        if self._transport is not None and not self.gone:
            self._transport.write(_packed(message))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Take answers."""
        for answer in self._reader.feed(data):
            waiting = self._waiting.get(answer.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer.refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """The parent is gone, or we are."""
        del exc
        self.gone = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(_gone())
        self._on_gone()


def _check(data: bytes) -> None:
    if len(data) > MESSAGE_BYTES // 2:
        msg = f"a note of {len(data)} bytes"
        raise ValueError(msg)


def _gone() -> ConnectionError:
    return ConnectionError("the edge's parent is gone")


class Chair:
    """The parent's side: a socket in a folder of this user's own, for the parent's own children.

    ``welcome`` tells whether a pid is one; ``notes`` has what is done with them, by topic.
    """

    def __init__(
        self,
        path: Path,
        quotas: Quotas,
        *,
        welcome: Callable[[int], bool],
        notes: Mapping[str, Callable[[bytes], Refusal | None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._quotas = quotas
        self._welcome = welcome
        self._notes = notes
        self._clock = clock
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Serve from now on. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Seat(self), str(self._path))

    def close(self) -> None:
        """Let no more workers in."""
        if self._server is not None:
            self._server.close()

    def admits(self, transport: asyncio.Transport) -> bool:
        """Whether whoever has connected is one of the parent's workers."""
        pid, user = _peer(transport)
        return user == os.geteuid() and self._welcome(pid)

    def take(self, claim: Claim) -> Refusal | None:
        """Grant it, or say why not."""
        return self._quotas.take(claim, self._clock())

    def free(self, claim: Lasting) -> None:
        """Take back what was granted."""
        self._quotas.free(claim)

    def keep(self, note: Note) -> Refusal | None:
        """Do with a note what is done with those of its topic, or say why not."""
        keep = self._notes.get(note.topic)
        if keep is None:
            log.error("note_of_no_topic", topic=note.topic)
            return Refusal(note.topic)
        return keep(note.data)


class _Seat(asyncio.Protocol):
    """One worker's connection, and what it holds."""

    def __init__(self, chair: Chair) -> None:
        self._chair = chair
        self._reader = _Reader(msgspec.msgpack.Decoder(Said))
        self._held: dict[int, Lasting] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or not."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        if not self._chair.admits(self._transport):
            log.warning("refused_peer")
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what a worker says."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            for said in self._reader.feed(data):
                self._hear(said, self._transport)
        except ValueError as error:  # msgspec's are among them
            log.error("bad_message", problem=str(error))  # noqa: TRY400 - one line says it all
            self._transport.abort()

    def _hear(self, said: Said, transport: asyncio.Transport) -> None:
        if isinstance(said, Note):
            refusal = self._chair.keep(said)
            if said.number:
                transport.write(_packed(Answer(said.number, refusal)))
        elif isinstance(said, Free):
            claim = self._held.pop(said.number, None)
            if claim is not None:
                self._chair.free(claim)
        elif said.number in self._held:
            msg = f"question {said.number} was asked before"
            raise ValueError(msg)
        else:
            refusal = self._chair.take(said.claim)
            if refusal is None and isinstance(said.claim, Lasting):
                self._held[said.number] = said.claim
            transport.write(_packed(Answer(said.number, refusal)))

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, however: what it held is free."""
        del exc
        for claim in self._held.values():
            self._chair.free(claim)
        self._held.clear()


def council_path(folder: Path) -> Path:
    """Where the council's socket is in the parent's private folder."""
    return folder / _NAME


def _peer(transport: asyncio.Transport) -> tuple[int, int]:
    """Pid and user id of the process at the other end (``unix(7)``, SO_PEERCRED)."""
    ours: socket.socket = transport.get_extra_info("socket")
    raw = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(raw)
    return pid, user
