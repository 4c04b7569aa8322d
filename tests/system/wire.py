"""A connection on which a test writes what it likes, byte by byte, and reads what comes."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from tests.system.running import Answer

HANDSHAKE: Final = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
"""The headers that ask for a WebSocket (RFC 6455 §1.3 has them as its example)."""
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{32}")
_SWITCHING: Final = 101


class Frame(NamedTuple):
    """A WebSocket frame of a server's."""

    opcode: int
    payload: bytes

    @property
    def close_code(self) -> int:
        assert self.opcode == 8, self
        return int.from_bytes(self.payload[:2])


class Wire:
    """A connection to ``url``'s host; TLS where there is a context."""

    def __init__(self, url: str, tls: ssl.SSLContext | None, timeout: float = 20.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout)
        if tls is not None:
            try:
                self._socket = tls.wrap_socket(self._socket, server_hostname=parts.hostname)
            except BaseException:
                self._socket.close()
                raise
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, method: str = "GET") -> Answer:
        """The next response; of a 101 only the head."""
        version, status, *_ = self._file.readline().split(b" ")
        assert version.startswith(b"HTTP/"), version
        headers = http.client.parse_headers(self._file)
        bodiless = method == "HEAD" or int(status) in {_SWITCHING, 204}
        size = 0 if bodiless else int(headers["Content-Length"])
        return Answer(int(status), headers, self._file.read(size))

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at the end."""
        return self._file.read(size)

    def frame(self) -> Frame:
        """The next WebSocket frame that is not a ping."""
        while True:
            opcode, size = self._file.read(2)
            if size >= 126:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8))
            frame = Frame(opcode & 15, self._file.read(size))
            if frame.opcode != 9:
                return frame

    def rest(self) -> bytes:
        """Everything until the other side hangs up. Raises `TimeoutError` where it does not."""
        read = bytearray()
        # A server that closes over bytes that it has not read resets the connection.
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            while data := self._file.read1():
                read += data
        return bytes(read)

    @property
    def tls_version(self) -> str | None:
        assert isinstance(self._socket, ssl.SSLSocket)
        return self._socket.version()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2)
    else:
        length = b"\xff" + size.to_bytes(8)
    return bytes([opcode | (0x80 if fin else 0)]) + length + bytes(4) + payload


def refusal(answer: Answer, status: int, reason: str) -> str:
    """What the relay says in refusing something, once everything else about it is right."""
    assert answer.status == status, answer
    assert answer.headers.get_content_type() == "application/json"
    body = answer.json
    assert body.keys() == {"message", "reason", "request_id"}
    assert body["reason"] == reason
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert _REQUEST_ID.fullmatch(body["request_id"])
    return str(body["message"])
