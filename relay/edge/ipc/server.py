"""The parent's end of the IPC: a socket for its own workers, and the permits that each holds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import structlog
from msgspec import Raw

from relay.edge.ipc.protocol import (
    BAD_MESSAGE,
    MESSAGE_BYTES,
    CallFailure,
    CallRefusal,
    CallResult,
    MessageReader,
    MessageTooLarge,
    MessageWriter,
    Notification,
    ProtocolError,
    Refusal,
    ServiceCall,
    WorkerMessage,
    encode,
)
from relay.edge.ipc.service import Handler, Request, Service
from relay.peer_credentials import peer_credentials

log = structlog.get_logger(__name__)

_SOCKET: Final = "parent.sock"
_DECODER: Final = msgspec.msgpack.Decoder[WorkerMessage](WorkerMessage)


class ParentServer:
    """Serves the parent's own workers on a unix socket in the parent's private directory."""

    def __init__(
        self, path: Path, services: Iterable[Service], *, is_worker: Callable[[int], bool]
    ) -> None:
        """``is_worker`` tells whether a pid is that of one of the parent's workers."""
        self._path = path
        self._services = {service.name: service for service in services}
        self._is_worker = is_worker
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Accept workers from now on. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: WorkerConnection(self._services, self.accepts), str(self._path)
        )

    def close(self) -> None:
        """Accept no more workers."""
        if self._server is not None:
            self._server.close()

    def accepts(self, pid: int, uid: int) -> bool:
        """Whether a process is one of the parent's workers."""
        return uid == os.geteuid() and self._is_worker(pid)


class WorkerConnection(asyncio.Protocol):
    """One worker's connection, and the permits that the worker holds.

    While `MESSAGE_BYTES` of answers wait for a worker to read them, no more of its calls are
    taken: a worker that does not read costs the parent no more than two long messages.
    """

    def __init__(self, services: dict[str, Service], accepts: Callable[[int, int], bool]) -> None:
        self._services = services
        self._accepts = accepts
        self._reader = MessageReader()
        self._permits: dict[int, tuple[Callable[[Any], None], Request[Any]]] = {}
        """What releases each permit, and its request, by its call's number."""
        self._transport: asyncio.Transport
        self._writer: MessageWriter

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the process at the other end, or cut it off."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._writer = MessageWriter(self._transport.write)
        peer = peer_credentials(self._transport.get_extra_info("socket"))
        if not self._accepts(peer.pid, peer.uid):
            log.warning("ipc_peer_refused", pid=peer.pid, uid=peer.uid)
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Handle the messages that are complete with ``data``, while there is room for answers."""
        self._reader.feed(data)
        self._handle_messages()
        if self._writer.waiting >= MESSAGE_BYTES and not self._transport.is_closing():
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Keep answers back: the worker reads slowly."""
        self._writer.pause()

    def resume_writing(self) -> None:
        """Send the answers that wait, and then handle the calls that waited for room."""
        self._writer.resume()
        self._handle_messages()
        if self._writer.waiting < MESSAGE_BYTES and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that the worker held."""
        del exc
        for number in list(self._permits):
            self._release(number)

    # What the worker wants

    def _handle_messages(self) -> None:
        if self._transport.is_closing():
            return
        try:
            while self._writer.waiting < MESSAGE_BYTES:
                message = self._reader.next()
                if message is None:
                    return
                self._handle(_DECODER.decode(message))
        except BAD_MESSAGE as error:
            log.error("ipc_malformed_message", problem=str(error))  # noqa: TRY400 - one line says it all
            self._transport.abort()

    def _handle(self, message: WorkerMessage) -> None:
        if isinstance(message, ServiceCall):
            self._writer.send(self._answer(message))
        elif isinstance(message, Notification):
            self._notify(message)
        else:
            self._release(message.number)

    def _answer(self, call: ServiceCall[Raw]) -> bytes:
        """Return the message that answers ``call``. Raises `BAD_MESSAGE`."""
        if call.number in self._permits:
            raise ProtocolError(f"call {call.number} was granted a permit before")
        service = self._services.get(call.service)
        if service is None:
            log.error("ipc_unknown_service", service=call.service)
            return _failure(call, "unknown_service", f"The parent has no service {call.service}.")
        request, handler = service.read(call.request)
        try:
            return self._serve(call.number, request, handler)
        except Exception as error:
            self._release(call.number)
            log.exception("ipc_call_failed", service=call.service, request=type(request).__name__)
            if isinstance(error, MessageTooLarge):
                return _failure(call, "answer_too_large", str(error))
            return _failure(call, "internal_error", f"The service {call.service} failed.")

    def _serve(self, number: int, request: Request[Any], handler: Handler) -> bytes:
        answer = handler.answer(request)
        if isinstance(answer, Refusal):
            return encode(CallRefusal(number, answer))
        if handler.release is not None:
            self._permits[number] = handler.release, request
        return encode(CallResult(number, answer))

    def _notify(self, notification: Notification[Raw]) -> None:
        """Hand a notification to its service. Raises `BAD_MESSAGE`."""
        name = notification.service
        service = self._services.get(name)
        if service is None:
            log.error("ipc_unknown_service", service=name)
            return
        request, handler = service.read(notification.request)
        if handler.release is not None:
            raise ProtocolError(f"{name}: a notification asks for a permit")
        try:
            refusal = handler.answer(request)
        except Exception:
            log.exception("ipc_notification_failed", service=name, request=type(request).__name__)
        else:
            if isinstance(refusal, Refusal):
                log.info("ipc_notification_refused", service=name, code=refusal.code)

    def _release(self, number: int) -> None:
        permit = self._permits.pop(number, None)
        if permit is None:
            return
        release, request = permit
        try:
            release(request)
        except Exception:
            # The other permits are to be released all the same.
            log.exception("ipc_release_failed", request=type(request).__name__)


def _failure(call: ServiceCall[Raw], code: str, message: str) -> bytes:
    return encode(CallFailure(call.number, code, message))


def socket_path(shared: Path) -> Path:
    """Return the path of the parent's socket in ``shared``, the parent's private directory."""
    return shared / _SOCKET
