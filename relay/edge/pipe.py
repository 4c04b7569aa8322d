"""The hot path: bytes between one client's WebSocket and its link.

Towards the client a record is written as it came: complete frames, at whose end the client's
position is known. From the client frames are parsed, since they are masked and few. Neither side
is read faster than the other side takes it.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import math
import struct
from collections import deque
from typing import Final

import structlog
from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

from relay.bridge.messages import Buffer
from relay.bridge.records import (
    BUSY,
    Close,
    Detach,
    Disconnect,
    Position,
    RecordKind,
    message_record,
    number_record,
    read_frames,
    read_number,
    read_struct,
    struct_record,
)
from relay.config import EdgeLimits, WebSocketSettings
from relay.edge.upstream.link import Link
from relay.limits import record
from relay.metrics import Traffic

log = structlog.get_logger(__name__)

_CLOSE_TIMEOUT: Final = 5.0
"""Seconds for a client to answer a close frame."""
_REASON_BYTES: Final = 123
"""What a close frame holds beside its code (RFC 6455 §5.5)."""
_MOMENT: Final = 0.01
"""Seconds past a deadline at which it has certainly passed."""
_PROOF: Final = struct.Struct("<Q")
_PIECE: Final = 65536
"""Bytes of text that are looked at together: decoded they may take four times as much."""
_SLICE: Final = 8192
"""Bytes that are parsed before it is looked at what they held: over a thousand frames, perhaps."""
_PONG: Final = 0x80 | Opcode.PONG
_COMPLAINTS: Final = frozenset(
    {
        CloseCode.PROTOCOL_ERROR,
        CloseCode.UNSUPPORTED_DATA,
        CloseCode.INVALID_DATA,
        CloseCode.POLICY_VIOLATION,
        CloseCode.MESSAGE_TOO_BIG,
        CloseCode.INTERNAL_ERROR,
    }
)
"""With these a client closes because of what it was sent (RFC 6455 §7.4.1)."""


class Pipe(asyncio.Protocol):
    """One client's WebSocket, and the link that feeds it, one after the other.

    ``finished`` is set when the client is gone; ``unlinked`` then too, and while a link is lost.
    Text frames hold UTF-8 (RFC 6455 §8.1), but with ``any_text``: Jupyter Server in gateway mode
    sends buffers in them, whatever these are.
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
        self._client = client
        self._settings = settings
        self._traffic = traffic
        self._limits = limits
        self._frames = Protocol(Side.SERVER, state=OPEN, max_size=limits.message_bytes)
        self._pieces = bytearray()
        """Frames so far of a message that comes in several; one buffer, however small they are."""
        self._pieces_count = 0
        self._text = False
        self._any_text = any_text
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._controls = 0
        """Control frames of the client since ``_controls_since``."""
        self._controls_since = -math.inf
        self._late_pong = b""
        """The newest that had to wait for a client that does not read."""
        self._failed = False
        """Whether what it sent ended it: nothing of it is looked at any more."""
        self._closed_here = False
        """Whether the client was sent away: what it says is not heard any more."""
        self._link: Link | None = None
        self._number = 0
        self._kept: deque[tuple[int, bytes]] = deque()
        """Client messages that no holder has acknowledged."""
        self._kept_bytes = 0
        self._link_full = False
        self._client_full = False
        self._client_paused = False
        self._proved = 0
        self._ping: tuple[bytes, float] | None = None
        """The one ping in flight and when it was sent, in seconds of the loop."""
        self._pinged = -math.inf
        """When the last one was sent."""
        self._ended_here = False
        """Whether it was this side that cut the connection."""
        self._last_heard = self._loop.time()
        self._timer = self._loop.call_later(settings.ping_interval, self._on_timer)
        self._timer_is_for_proof = False
        self.last_activity = self._last_heard
        """When something last went to or fro, or the kernel was busy, in seconds of the loop."""
        self.position: Position | None = None
        """How far the client has been sent the journal; None before the first link."""
        self.finished = asyncio.Event()
        self.unlinked = asyncio.Event()

    # The link.

    def bind(self, link: Link) -> None:
        """Go on with this link: what it has not seen of the client's messages is sent again."""
        self._link = link
        self.unlinked.clear()
        if self.finished.is_set() or self._frames.state is not OPEN:
            # The client left, or was sent away, while the link was being opened.
            self._drop_link(self._disconnect)
            return
        attached = link.attached
        before = self.position
        if before is not None and before.fragment and attached.position != before:
            self.close(1011, "the rest of a message is lost")
            return
        self.position = attached.position
        if before is None or before.epoch != attached.position.epoch:
            # A seq means something within its epoch only.
            self._proved, self._ping = attached.position.seq, None
        else:
            # The lost link may have taken the last proof along.
            link.write(number_record(RecordKind.PROVED, self._proved))
        self._forget_kept(attached.acknowledged)
        self._link_full = False
        for _, kept in self._kept:
            link.write(kept)
        link.bind(self._on_record, self._on_link_lost, self._on_link_writable)
        if self._client_full:
            link.pause()
        self._balance()

    def relink(self) -> None:
        """Do without the link, as if it were lost: the next one comes with other rights."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
            self.unlinked.set()

    def _on_link_lost(self) -> None:
        self._link = None
        self.unlinked.set()

    def _on_link_writable(self, writable: bool) -> None:
        self._link_full = not writable
        self._balance()

    def _on_record(self, kind: RecordKind, payload: bytes) -> None:
        if self._said_goodbye:
            # The client listens no more.
            return
        if kind is RecordKind.FRAMES:
            seq, fragment, frames = read_frames(payload)
            self._client.write(frames)
            self._traffic.sent(len(frames))
            self.last_activity = self._loop.time()
            self.position = Position(self._epoch, seq, fragment)
            self._want_proof()
        elif kind is RecordKind.ACK:
            self._forget_kept(read_number(payload))
            self._balance()
        elif kind is RecordKind.CLOSE:
            close = read_struct(payload, Close)
            log.info("closing", code=close.code, reason=close.reason)
            self.close(close.code, close.reason)
        elif kind is RecordKind.PONG:
            if payload == BUSY:
                self.last_activity = self._loop.time()
        else:
            log.error("bad_record", kind=kind.name)

    def _forget_kept(self, number: int) -> None:
        while self._kept and self._kept[0][0] <= number:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def _balance(self) -> None:
        """Read from the client only while there is room for what it sends."""
        pause = self._link_full or self._kept_bytes > self._limits.unacknowledged_bytes
        if pause == self._client_paused or self._client.is_closing():
            return
        self._client_paused = pause
        if pause:
            if not self._link_full:
                record("limits.unacknowledged_bytes")
            self._client.pause_reading()
        else:
            # It could not be heard until now.
            self._last_heard = self._loop.time()
            self._client.resume_reading()

    @property
    def _epoch(self) -> str:
        return self.position.epoch if self.position else ""

    @property
    def _seq(self) -> int:
        return self.position.seq if self.position else 0

    # The client.

    def close(self, code: int, reason: str) -> None:
        """Close the client's WebSocket, and the connection once it has answered."""
        self._closed_here = True
        self._pieces = bytearray()
        if self._client_paused and not self._client.is_closing():
            # Its answer to the close frame is still to be read.
            self._client.resume_reading()
        if self._frames.state is OPEN:
            short = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
            self._frames.send_close(code, short)
            self._flush()
        self._drop_link(self._disconnect)
        self._loop.call_later(_CLOSE_TIMEOUT, self.abort)

    def abort(self) -> None:
        """Cut the client's connection."""
        self._ended_here = True
        self._client.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._last_heard = self._loop.time()
        for start in range(0, len(data), _SLICE):
            self._frames.receive_data(data[start : start + _SLICE])
            for event in self._frames.events_received():
                if isinstance(event, Frame):
                    self._on_frame(event)
            if self._failed:
                break
        if self._said_goodbye:
            self._drop_link(self._disconnect)
        self._flush()
        if self._frames.parser_exc is not None:
            self._log_bad_frame(self._frames.parser_exc)

    @property
    def _said_goodbye(self) -> bool:
        return self._frames.close_rcvd is not None and self._frames.parser_exc is None

    @property
    def _disconnect(self) -> Disconnect | None:
        """How the client leaves; None where it is sent away."""
        close = self._frames.close_rcvd
        if self._frames.close_sent is not None and not self._frames.close_rcvd_then_sent:
            return None
        if close is None:
            return None if self._ended_here else Disconnect.ABNORMAL
        return Disconnect.ABNORMAL if close.code in _COMPLAINTS else Disconnect.CLEAN

    def _log_bad_frame(self, problem: Exception) -> None:
        if isinstance(problem, PayloadTooBig):
            log.info("message_too_large", setting="limits.message_bytes", problem=str(problem))
            record("limits.message_bytes")
        else:
            log.info("bad_frame", problem=str(problem))

    def _flush(self) -> None:
        for data in self._frames.data_to_send():
            if data and data[0] == _PONG and self._client_full:
                # Of several pings the newest may be answered alone (RFC 6455 §5.5.3).
                self._late_pong = bytes(data)
            elif data:
                self._client.write(data)
            else:
                self._client.close()

    def _on_frame(self, frame: Frame) -> None:
        if self._closed_here:
            return
        if frame.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            self._on_piece(frame)
            return
        # The library answers pings and close frames.
        if frame.opcode is Opcode.PONG:
            self._on_pong(bytes(frame.data))
        self._count_control()

    def _on_piece(self, frame: Frame) -> None:
        """Take a frame of a message."""
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
            self._pieces_count = 0
            self._utf8.reset()
        self._pieces_count += 1
        if self._pieces_count > self._limits.message_frames:
            most = self._limits.message_frames
            self._refuse(1009, f"a message in more than {most} frames", "limits.message_frames")
        elif self._text and not self._any_text and not self._is_text(frame):
            log.info("bad_frame", problem="a text that is not UTF-8")
            self._fail(1007, "a text that is not UTF-8")
        elif frame.fin and not self._pieces:
            self._on_message(bytes(frame.data))
        else:
            self._pieces += frame.data
            if frame.fin:
                pieces, self._pieces = self._pieces, bytearray()
                self._on_message(memoryview(pieces))

    def _is_text(self, frame: Frame) -> bool:
        view, position = memoryview(frame.data), 0
        try:
            while position < len(view):
                self._utf8.decode(view[position : position + _PIECE])
                position += _PIECE
            if frame.fin:
                self._utf8.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
        return True

    def _count_control(self) -> None:
        now = self._loop.time()
        if now - self._controls_since >= 1.0:
            self._controls, self._controls_since = 0, now
        self._controls += 1
        if self._controls > self._limits.control_frames:
            most = self._limits.control_frames
            self._refuse(1008, f"more than {most} control frames a second", "limits.control_frames")

    def _refuse(self, code: int, reason: str, setting: str) -> None:
        """Send the client away for a limit that it hit."""
        log.info("too_much", setting=setting, problem=reason)
        record(setting)
        self._fail(code, f"{reason} ({setting})")

    def _fail(self, code: int, reason: str) -> None:
        """Fail the WebSocket (RFC 6455 §7.1.7): its answer is not waited for."""
        self._failed = True
        self._frames.fail(code, reason)
        self.close(code, reason)
        self._flush()

    def _on_message(self, payload: Buffer) -> None:
        self._number += 1
        self._traffic.received(len(payload))
        self.last_activity = self._last_heard
        record = message_record(self._number, text=self._text, payload=payload)
        self._kept.append((self._number, record))
        self._kept_bytes += len(record)
        if self._link is not None:
            self._link.write(record)
        self._balance()

    def eof_received(self) -> bool:
        """A client that closes its half is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        del exc
        self._timer.cancel()
        self._drop_link(self._disconnect)
        self.finished.set()
        self.unlinked.set()

    def _drop_link(self, disconnect: Disconnect | None) -> None:
        link, self._link = self._link, None
        if link is not None:
            fragment = self.position.fragment if self.position else 0
            detach = Detach(disconnect=disconnect, seq=self._seq, fragment=fragment)
            with contextlib.suppress(OSError):
                link.write(struct_record(RecordKind.DETACH, detach))
            link.close()

    def pause_writing(self) -> None:
        """The client reads slower than the kernel prints: the rest waits in the journal."""
        self._client_full = True
        if self._link is not None:
            self._link.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._client_full = False
        pong, self._late_pong = self._late_pong, b""
        if pong:
            self._client.write(pong)
        if self._link is not None:
            self._link.resume()

    # Pings: whether the client lives, and how far it has come for certain.

    def _want_proof(self) -> None:
        """Ask for one: right behind the first output after a pause, then now and again."""
        if self._ping is not None or self._seq <= self._proved:
            return
        wait = self._pinged + self._settings.proof_interval - self._loop.time()
        if wait <= 0:
            self._on_timer()
        elif not self._timer_is_for_proof:
            self._schedule(wait, for_proof=True)

    def _schedule(self, seconds: float, *, for_proof: bool) -> None:
        self._timer.cancel()
        self._timer_is_for_proof = for_proof
        self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        behind = self._seq > self._proved
        if self._ping is None:
            # A timer that was set for a proof may find that it has come.
            if behind or not self._timer_is_for_proof:
                self._send_ping(now)
        elif not self._client_paused and self._silent_for(now) > self._settings.pong_timeout:
            log.info("client_silent", setting="websocket.pong_timeout")
            record("websocket.pong_timeout")
            self.abort()
            return
        interval = self._settings.proof_interval if behind else self._settings.ping_interval
        if self._ping is not None:
            # Looks again when the answer is due, not a whole interval later.
            left = self._settings.pong_timeout - self._silent_for(now)
            interval = min(interval, max(left, 0) + _MOMENT)
        self._schedule(interval, for_proof=behind)

    def _send_ping(self, now: float) -> None:
        payload = _PROOF.pack(self._seq)
        self._ping = payload, now
        self._pinged = now
        if self._frames.state is OPEN:
            self._frames.send_ping(payload)
            self._traffic.pinged()
            self._flush()

    def _silent_for(self, now: float) -> float:
        return now - max(self._ping[1] if self._ping else now, self._last_heard)

    def _on_pong(self, payload: bytes) -> None:
        if self._ping is None or payload != self._ping[0]:
            return
        self._ping = None
        (seq,) = _PROOF.unpack(payload)
        if seq > self._proved:
            self._proved = seq
            self._traffic.proved()
            if self._link is not None:
                self._link.write(number_record(RecordKind.PROVED, seq))
        self._want_proof()
