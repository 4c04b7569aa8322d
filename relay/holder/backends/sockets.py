"""The kernel's ZMQ sockets: the only place in the relay where ZMQ exists.

Read through their raw file descriptor, without blocking, until they would block, and looked at
again after every send: a ZMQ descriptor signals changes only, and a signal missed is a kernel
that looks dead. Nothing here ever waits for a reader: the receive queue has no high-water mark,
so that the kernel's PUB socket drops nothing while this process runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog
import zmq

from relay.bridge.messages import Buffer, Channel

log = structlog.get_logger(__name__)

MultipartHandler = Callable[[Channel, list[bytes]], None]

_DRAIN_MESSAGES: Final = 500
"""Messages taken from one socket before the other sockets and the readers get their turn."""
_DRAIN_BYTES: Final = 4 * 1024 * 1024
"""The same in bytes: what is taken stays in memory until that turn, when it is written."""

_KINDS: Final = {
    Channel.SHELL: zmq.DEALER,
    Channel.CONTROL: zmq.DEALER,
    Channel.STDIN: zmq.DEALER,
    Channel.IOPUB: zmq.SUB,
}


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """Where a kernel listens: a ZMQ address per channel, its heartbeat's, and its Curve keys."""

    addresses: dict[Channel, str]
    heartbeat: str
    curve_public: bytes | None = None
    curve_secret: bytes | None = None


class KernelSockets:
    """The five sockets of one kernel process, open from its start to its end.

    ``on_multipart`` is called in the event loop for every multipart; ``heard_beat`` turns true
    with the first heartbeat. ``inherited`` are the identities of holders that died: what they
    asked for is heard as well, by sockets that send nothing. To send under an identity that the
    kernel still knows would be no use: unless its socket has ``ZMQ_ROUTER_HANDOVER``, it refuses
    a second connection of that name, and takes the next message for another name.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        identity: bytes,
        on_multipart: MultipartHandler,
        inherited: Sequence[bytes] = (),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_multipart = on_multipart
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._inherited: list[tuple[Channel, zmq.Socket[bytes]]] = []
        self.heard_beat = False
        self._heartbeat = self._connect(zmq.DEALER, endpoints.heartbeat, endpoints, identity)
        for channel, kind in _KINDS.items():
            socket = self._connect(kind, endpoints.addresses[channel], endpoints, identity)
            self._sockets[channel] = socket
        for old in inherited:
            for channel, kind in _KINDS.items():
                if kind == zmq.DEALER:
                    socket = self._connect(kind, endpoints.addresses[channel], endpoints, old)
                    self._inherited.append((channel, socket))
        for channel, socket in self._all():
            self._loop.add_reader(socket.FD, self._drain, channel, socket)
            self._loop.call_soon(self._drain, channel, socket)

    def _all(self) -> list[tuple[Channel, zmq.Socket[bytes]]]:
        return [*self._sockets.items(), *self._inherited]

    def drop_inherited(self) -> None:
        """Nothing that earlier holders asked for will be answered any more."""
        for channel, socket in self._inherited:
            self._close(channel, socket)
        self._inherited.clear()

    def _connect(
        self, kind: int, address: str, endpoints: Endpoints, identity: bytes
    ) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = 0
        socket.sndhwm = 0
        socket.reconnect_ivl = 20
        if kind == zmq.SUB:
            socket.subscribe(b"")
        else:
            # One identity on shell and stdin: the kernel asks for input where the request came
            # from.
            socket.identity = identity
        if endpoints.curve_public is not None:
            # jupyter_client gives manager and kernel one key pair.
            socket.curve_publickey = endpoints.curve_public
            socket.curve_secretkey = endpoints.curve_secret
            socket.curve_serverkey = endpoints.curve_public
        socket.connect(address)
        return socket

    def send(self, channel: Channel, parts: Sequence[Buffer]) -> None:
        """Hand a multipart to ZMQ; it waits there for a kernel that does not listen yet."""
        socket = self._sockets[channel]
        socket.send_multipart(parts, flags=zmq.NOBLOCK, copy=True)
        # Sending may swallow the signal that something came in.
        self._loop.call_soon(self._drain, channel, socket)

    def beat(self) -> None:
        """Send a heartbeat and notice the answer to an earlier one."""
        # A DEALER plays REQ's part (empty delimiter) but may send again without an answer.
        with contextlib.suppress(zmq.Again):
            self._heartbeat.send_multipart([b"", b"beat"], flags=zmq.NOBLOCK)
        with contextlib.suppress(zmq.Again):
            while True:
                self._heartbeat.recv_multipart(flags=zmq.NOBLOCK)
                self.heard_beat = True

    def _drain(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        if socket.closed:
            return
        taken = 0
        for _ in range(_DRAIN_MESSAGES):
            try:
                parts = socket.recv_multipart(flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(channel, parts)
            taken += sum(map(len, parts))
            if taken > _DRAIN_BYTES:
                break
        self._loop.call_soon(self._drain, channel, socket)

    def _take(self, channel: Channel, parts: list[bytes]) -> None:
        try:
            self._on_multipart(channel, parts)
        except Exception:
            # Whatever is wrong with one message: a socket that is not read on loses all others.
            log.exception("message_handler_failed", channel=channel.wire)

    def close(self) -> None:
        """Take what has arrived, then close. Only for a kernel process that has ended."""
        for channel, socket in self._all():
            self._close(channel, socket)
        self._sockets.clear()
        self._inherited.clear()
        self._heartbeat.close()
        self._context.term()

    def _close(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        self._loop.remove_reader(socket.FD)
        with contextlib.suppress(zmq.Again):
            while True:
                self._take(channel, socket.recv_multipart(flags=zmq.NOBLOCK))
        socket.close()
