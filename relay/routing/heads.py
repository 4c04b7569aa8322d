"""Check a request's head once, strictly.

Where a request ends, and whom it is for, must be plain to everybody on its way. So whatever two
servers could read in two ways is refused, even where the parser would take it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from relay.errors import BadRequest

_VERSIONS: Final = frozenset({(1, 0), (1, 1)})
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")

Headers = Sequence[tuple[bytes, bytes]]


def check_head(version: tuple[int, int], headers: Headers) -> str:
    """Return the host that a request is for, in lower case; "" where HTTP/1.0 names none.

    ``headers`` are as they came. Raises ``BadRequest`` for another version than 1.0 and 1.1 (some
    parsers let 0.9, without any, and 2.0 pass), no host or a strange one (RFC 9112 §3.2), a body
    whose length is said in two ways or in a way of its own (§6.3), and for a body behind which
    another protocol would begin (RFC 9110 §7.8).
    """
    if version not in _VERSIONS:
        raise BadRequest("Only HTTP/1.1 is spoken here.")
    lengths = _values(headers, b"content-length")
    codings = _values(headers, b"transfer-encoding")
    _check_body(version, lengths, codings)
    if _values(headers, b"upgrade") and (codings or any(map(int, lengths))):
        raise BadRequest("A request that changes the protocol has no body.")
    hosts = _values(headers, b"host")
    if not hosts and version == (1, 0):
        return ""
    if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
        raise BadRequest("The request needs one Host: a name or an address, and perhaps a port.")
    return hosts[0].decode("ascii").lower()


def _check_body(version: tuple[int, int], lengths: list[bytes], codings: list[bytes]) -> None:
    if len(lengths) + len(codings) > 1:
        raise BadRequest("The request says more than once how long its body is.")
    if lengths and _LENGTH.fullmatch(lengths[0]) is None:
        raise BadRequest("The request's Content-Length is not a number.")
    if codings and (codings[0].lower() != b"chunked" or version == (1, 0)):
        raise BadRequest("The only Transfer-Encoding is chunked, and HTTP/1.1 alone has it.")


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]
