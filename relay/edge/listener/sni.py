"""The name that a client asks for in the first bytes of TLS, before anything is answered.

Only so much of a ClientHello (RFC 8446 §4.1.2) is read as leads to its server_name (RFC 6066 §3).
"""

from __future__ import annotations

from typing import Final

RECORD_HEAD: Final = 5
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_RECORD_BYTES: Final = 16_384
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_VERSION_AND_RANDOM: Final = 34


def record_length(head: bytes) -> int:
    """Bytes of the first record, its head of 5 included. Raises ``ValueError`` for what is none."""
    length = int.from_bytes(head[3:5])
    if len(head) < RECORD_HEAD or head[0] != _HANDSHAKE or not 0 < length <= _RECORD_BYTES:
        raise ValueError("not a TLS handshake")
    return RECORD_HEAD + length


def server_name(record: bytes) -> str | None:
    """The host name in a first record, in lower case; ``None`` where it names none in one piece.

    Raises ``ValueError`` for what is no ClientHello.
    """
    hello = _Cursor(record[RECORD_HEAD : record_length(record)])
    if hello.number(1) != _CLIENT_HELLO:
        raise ValueError("not a ClientHello")
    size = hello.number(3)
    if size > len(hello.rest):
        # It goes on in another record. No client does so but to be seen otherwise than it is.
        return None
    hello = _Cursor(hello.take(size))
    hello.take(_VERSION_AND_RANDOM)
    for width in (1, 2, 1):  # session id, cipher suites, compression
        hello.take(hello.number(width))
    if not hello.rest:
        return None
    extensions = _Cursor(hello.take(hello.number(2)))
    while extensions.rest:
        kind = extensions.number(2)
        data = extensions.take(extensions.number(2))
        if kind == _SERVER_NAME:
            return _host(_Cursor(data))
    return None


def _host(data: _Cursor) -> str | None:
    names = _Cursor(data.take(data.number(2)))
    while names.rest:
        kind = names.number(1)
        name = names.take(names.number(2))
        if kind == _HOST_NAME:
            return name.decode("ascii").lower()
    return None


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, size: int) -> bytes:
        if size > len(self.rest):
            raise ValueError("a ClientHello that is cut")
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width))
