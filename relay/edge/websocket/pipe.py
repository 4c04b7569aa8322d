"""The hot path: bytes between one client's WebSocket and its link.

Towards the client a record is written as it came: complete frames, at whose end the client's
position is known. From the client frames are parsed, since they are masked and few. Neither side
is read faster than the other side takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from websockets.frames import Opcode

from relay import limits
from relay.bridge.control import Close, Detach, Position
from relay.bridge.records import (
    BUSY,
    RecordKind,
    number_record,
    read_frames,
    read_number,
    read_struct,
    struct_record,
)
from relay.config import EdgeLimits, WebSocketSettings
from relay.edge.upstream.link import Link
from relay.edge.websocket.client_frames import (
    MESSAGE_BYTES,
    ClientFrames,
    ClientMessage,
    Pong,
    Violation,
)
from relay.edge.websocket.keepalive import KeepAlive
from relay.edge.websocket.resend_buffer import ResendBuffer
from relay.edge.websocket.state import State
from relay.metrics import Traffic

log = structlog.get_logger(__name__)

_CLOSE_TIMEOUT: Final = 5.0
"""Seconds for a client to answer a close frame, or to take the last bytes of a failed WebSocket."""
_PONG: Final = 0x80 | Opcode.PONG
"""First byte of a pong."""


class Pipe(asyncio.Protocol):
    """One client's WebSocket, and the links that feed it, one after the other.

    ``finished`` is set when the client is gone; ``unlinked`` then too, and while a link is lost.
    """

    def __init__(
        self,
        client: asyncio.Transport,
        limits: EdgeLimits,
        settings: WebSocketSettings,
        traffic: Traffic,
        *,
        any_text: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._client = _Client(client)
        self._traffic = traffic
        self._frames = ClientFrames(limits, any_text=any_text)
        self._unacked = ResendBuffer(limits.unacknowledged_bytes)
        self._keepalive = KeepAlive(settings, now)
        self._keepalive_timer = _Timer(self._loop, self._on_keepalive_timer)
        self._keepalive_timer.start(settings.ping_interval)
        self._abort_timer = _Timer(self._loop, self.abort)
        self._link: Link | None = None
        self._link_full = False
        self._epoch = ""
        self.last_activity = now
        """When a message last went either way, or the kernel was busy, in seconds of the loop."""
        self.position: Position | None = None
        """How far the client has been sent the journal; None before the first link."""
        self.finished = asyncio.Event()
        self.unlinked = asyncio.Event()

    # The link

    def bind(self, link: Link) -> None:
        """Go on with this link: the client's messages that it has not seen are sent again."""
        self._link = link
        self.unlinked.clear()
        if self._frames.state is not State.OPEN:
            # The WebSocket ended while the link was being opened.
            self._drop_link()
            return
        before, after = self.position, link.attached.position
        if before is not None and before.fragment and after != before:
            self.close(1011, "the rest of a message is lost")
            return
        self.position, self._epoch = after, after.epoch
        if before is None or before.epoch != after.epoch:
            # A seq means something within its epoch only.
            self._keepalive.start_epoch(after.seq)
        else:
            self._keepalive.sent = after.seq
            # The lost link may have taken the last proof along.
            link.write(number_record(RecordKind.PROVED, self._keepalive.proved))
        self._unacked.acknowledge(link.attached.acknowledged)
        self._link_full = False
        for record in self._unacked:
            link.write(record)
        link.bind(self._on_record, self._on_link_lost, self._on_link_writable)
        if self._client.full:
            link.pause()
        self._balance()

    def detach_link(self) -> None:
        """Leave the link as if it were lost: the next one is opened with other rights."""
        if self._link is not None:
            self._link.close()
            self._on_link_lost()

    def _on_link_lost(self) -> None:
        self._link = None
        self.unlinked.set()

    def _on_link_writable(self, writable: bool) -> None:
        self._link_full = not writable
        self._balance()

    def _on_record(self, kind: RecordKind, payload: bytes) -> None:
        if kind is RecordKind.FRAMES:
            seq, fragment, frames = read_frames(payload)
            self._client.write(frames)
            self._traffic.sent(len(frames))
            self.last_activity = now = self._loop.time()
            self.position = Position(self._epoch, seq, fragment)
            self._keepalive.sent = seq
            self._want_proof(now)
        elif kind is RecordKind.ACK:
            self._unacked.acknowledge(read_number(payload))
            self._balance()
        elif kind is RecordKind.CLOSE:
            close = read_struct(payload, Close)
            log.info("websocket_closing", code=close.code, reason=close.reason)
            self.close(close.code, close.reason)
        elif kind is RecordKind.PONG:
            if payload == BUSY:
                self.last_activity = self._loop.time()
        else:
            log.error("malformed_record", kind=kind.name)

    def _drop_link(self) -> None:
        """Tell the link how the client left, and hang up."""
        link, self._link = self._link, None
        if link is not None:
            at = self.position or Position("", 0)
            detach = Detach(disconnect=self._frames.disconnect, seq=at.seq, fragment=at.fragment)
            with contextlib.suppress(OSError):
                link.write(struct_record(RecordKind.DETACH, detach))
            link.close()

    # The client

    def close(self, code: int, reason: str) -> None:
        """Close the client's WebSocket, and the connection once it has answered."""
        if self._frames.close(code, reason):
            # The client's answer to the close frame is still to be read.
            self._balance()
            self._client.send(self._frames.data_to_send())
            self._drop_link()
        if self._frames.state is not State.CLOSED:
            self._abort_timer.start(_CLOSE_TIMEOUT)

    def abort(self) -> None:
        """Cut the client's connection."""
        self._frames.abort()
        self._client.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        now = self._keepalive.last_received = self._loop.time()
        for event in self._frames.receive(data, now):
            if isinstance(event, ClientMessage):
                self._on_message(event, now)
            elif isinstance(event, Pong):
                self._on_pong(event, now)
            else:
                _report(event)
                self._abort_timer.start(_CLOSE_TIMEOUT)
        if self._frames.state is not State.OPEN:
            self._drop_link()
        self._client.send(self._frames.data_to_send())

    def _on_message(self, message: ClientMessage, now: float) -> None:
        self._traffic.received(len(message.payload))
        self.last_activity = now
        record = self._unacked.add(message.payload, text=message.text)
        if self._link is not None:
            self._link.write(record)
        self._balance()

    def _on_pong(self, pong: Pong, now: float) -> None:
        proved = self._keepalive.on_pong(pong.payload)
        if proved is not None:
            self._traffic.proved()
            if self._link is not None:
                self._link.write(number_record(RecordKind.PROVED, proved))
        self._want_proof(now)

    def eof_received(self) -> bool:
        """A client that closes its half is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        del exc
        self._keepalive_timer.cancel()
        self._abort_timer.cancel()
        self._frames.connection_lost()
        self._drop_link()
        self.finished.set()
        self.unlinked.set()

    # Flow control

    def _balance(self) -> None:
        """Read from the client only while there is room for what it sends."""
        full = self._link_full or self._unacked.full
        pause = full and self._frames.state is State.OPEN
        if pause == self._client.paused or self._client.transport.is_closing():
            return
        if pause:
            if not self._link_full:
                limits.record("limits.unacknowledged_bytes")
            self._client.pause_reading()
        else:
            # The client could not be heard until now.
            self._keepalive.last_received = self._loop.time()
            self._client.resume_reading()

    def pause_writing(self) -> None:
        """The client reads slower than the kernel prints: the rest waits in the journal."""
        self._client.full = True
        if self._link is not None:
            self._link.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._client.catch_up()
        if self._link is not None:
            self._link.resume()

    # Keep-alive and proofs

    def _want_proof(self, now: float) -> None:
        wait = self._keepalive.schedule_proof(now)
        if wait is None:
            return
        if wait > 0:
            self._keepalive_timer.restart(wait)
        else:
            self._on_keepalive_timer()

    def _on_keepalive_timer(self) -> None:
        reading = not self._client.paused
        ping, wait = self._keepalive.on_timer(self._loop.time(), reading=reading)
        if wait is None:
            log.info("client_timeout", setting="websocket.pong_timeout")
            limits.record("websocket.pong_timeout")
            self.abort()
            return
        if ping is not None and self._frames.send_ping(ping):
            self._traffic.pinged()
            self._client.send(self._frames.data_to_send())
        self._keepalive_timer.restart(wait)


class _Client:
    """The client's connection, and whether it is read from and takes more."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.write = transport.write
        self.full = False
        """Whether the client reads slower than it is written to."""
        self.paused = False
        """Whether the client is not read from."""
        self._late_pong = b""
        """The newest pong that had to wait until the client reads."""

    def send(self, output: Iterable[bytes]) -> None:
        """Write what `ClientFrames.data_to_send` returned."""
        for data in output:
            if data and data[0] == _PONG and self.full:
                # Of several pings the newest may be answered alone (RFC 6455 §5.5.3).
                self._late_pong = bytes(data)
            elif data:
                self.write(data)
            else:
                self.transport.close()

    def catch_up(self) -> None:
        """Go on writing: the client reads again."""
        self.full = False
        pong, self._late_pong = self._late_pong, b""
        if pong:
            self.write(pong)

    def pause_reading(self) -> None:
        """Read no more for now."""
        self.paused = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self.paused = False
        self.transport.resume_reading()


class _Timer:
    """A call after some seconds, one at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Make the call in so many seconds, unless it was started before."""
        if self._handle is None:
            self.restart(seconds)

    def restart(self, seconds: float) -> None:
        """Make the call in so many seconds instead of when it was due."""
        self.cancel()
        self._handle = self._loop.call_later(seconds, self._callback)

    def cancel(self) -> None:
        """Do not make the call."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def _report(violation: Violation) -> None:
    """Log a violation, and count the limit that was hit."""
    if violation.setting is None:
        log.info("malformed_frame", problem=violation.problem)
        return
    if violation.setting == MESSAGE_BYTES:
        log.info("message_too_large", setting=violation.setting, problem=violation.problem)
    else:
        log.info("frame_limit_reached", setting=violation.setting, problem=violation.problem)
    limits.record(violation.setting)
