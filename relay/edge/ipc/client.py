"""A worker's end of the IPC: typed calls to the services of its parent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar, cast

import msgspec
import structlog
from msgspec import Struct

from relay.edge.ipc.protocol import (
    BAD_MESSAGE,
    CallRefusal,
    CallResult,
    MessageReader,
    MessageWriter,
    Notification,
    ParentMessage,
    Refusal,
    Release,
    ServiceCall,
    encode,
)
from relay.edge.ipc.service import CallRequest, PermitRequest, Request, answers_of
from relay.peer_credentials import PeerCredentials, peer_credentials

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")

_DECODER: Final = msgspec.msgpack.Decoder[ParentMessage](ParentMessage)


class CallError(Exception):
    """A call that has no answer of its type."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message


class Refused(CallError):
    """The service refused the call."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code, refusal.message)
        self.refusal = refusal


class Permit(Generic[Answer]):
    """Something that the parent granted, with its answer; it lasts until it is released."""

    def __init__(self, answer: Answer, release: Callable[[], None]) -> None:
        self.answer = answer
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the permit back; the second time nothing happens."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class ParentClient(asyncio.Protocol):
    """A worker's connection to its parent; nothing is granted any more once that is ``gone``."""

    def __init__(self, on_parent_gone: Callable[[], None]) -> None:
        """Use `connect`."""
        self._on_parent_gone = on_parent_gone
        self._reader = MessageReader()
        self._pending: dict[int, tuple[asyncio.Future[Any], msgspec.msgpack.Decoder[Any]]] = {}
        """The calls that wait for an answer, and what decodes it."""
        self._last = 0
        self._transport: asyncio.Transport
        self._writer: MessageWriter
        self.gone = False

    @classmethod
    async def connect(cls, path: Path, parent: int, on_parent_gone: Callable[[], None]) -> Self:
        """Connect to the socket at ``path`` of the process ``parent``, which is of this user.

        ``on_parent_gone`` is called when the connection ends.

        Raises:
            ConnectionError: another process listens there.
            OSError: no process listens there.
        """
        loop = asyncio.get_running_loop()
        transport, client = await loop.create_unix_connection(
            lambda: cls(on_parent_gone), str(path)
        )
        if peer_credentials(transport.get_extra_info("socket")) != PeerCredentials(
            parent, os.geteuid()
        ):
            transport.abort()
            raise ConnectionError("the IPC socket is not the parent's")
        return client

    async def call(self, request: CallRequest[Answer]) -> Answer:
        """Return the service's answer to ``request``.

        Raises:
            Refused: the service refused.
            CallError: the service is unknown, failed, or has too large an answer.
            MessageTooLarge: the request is too large.
            ConnectionError: the parent is gone.
        """
        return await self._call(self._next_number(), request)

    async def acquire(self, request: PermitRequest[Answer]) -> Permit[Answer]:
        """Return a permit. Raises as `call`."""
        number = self._next_number()
        try:
            answer = await self._call(number, request)
        except asyncio.CancelledError:
            # It may be granted yet, and nobody would know. A long request is still on its way.
            self._send(Release(number), behind_all=True)
            raise
        return Permit(answer, partial(self._send, Release(number)))

    def notify(self, request: CallRequest[None]) -> None:
        """Send ``request`` without waiting for an answer; it is lost if the parent is gone.

        Raises:
            MessageTooLarge: the request is too large.
        """
        self._send(Notification(request.service, request))

    def close(self) -> None:
        """Leave: every permit is released."""
        self._transport.close()

    def _next_number(self) -> int:
        self._last += 1
        return self._last

    async def _call(self, number: int, request: Request[Answer]) -> Answer:
        if self.gone:
            raise _parent_gone()
        decoder = answers_of(type(request))
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._send(ServiceCall(number, request.service, request))
        self._pending[number] = future, decoder
        try:
            return await future
        finally:
            del self._pending[number]

    def _send(self, message: Struct, *, behind_all: bool = False) -> None:
        if not self.gone:
            self._writer.send(encode(message), behind_all=behind_all)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._writer = MessageWriter(self._transport.write)

    def data_received(self, data: bytes) -> None:
        """Give answers to the calls that wait for them."""
        self._reader.feed(data)
        try:
            while (message := self._reader.next()) is not None:
                self._on_answer(_DECODER.decode(message))
        except BAD_MESSAGE as error:
            log.error("ipc_malformed_message", problem=str(error))  # noqa: TRY400 - one line says it all
            self._transport.abort()

    def pause_writing(self) -> None:
        """Keep requests back: the parent reads slowly."""
        self._writer.pause()

    def resume_writing(self) -> None:
        """Send what waits."""
        self._writer.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended: no call will be answered."""
        del exc
        self.gone = True
        for future, _ in self._pending.values():
            if not future.done():
                future.set_exception(_parent_gone())
        self._on_parent_gone()

    def _on_answer(self, message: ParentMessage) -> None:
        """Take the answer to a call. Raises `BAD_MESSAGE`."""
        pending = self._pending.get(message.number)
        if pending is None or pending[0].done():
            # Its caller was cancelled.
            return
        future, decoder = pending
        if isinstance(message, CallResult):
            future.set_result(decoder.decode(message.answer))
        elif isinstance(message, CallRefusal):
            future.set_exception(Refused(message.refusal))
        else:
            future.set_exception(CallError(message.code, message.message))


def _parent_gone() -> ConnectionError:
    return ConnectionError("the edge's parent is gone")
