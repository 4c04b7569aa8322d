"""Read a request target once, strictly.

What one parser takes for a name and the next for a separator is how proxies are bypassed. So
whatever could be read in two ways is refused, and ``Target.path`` is forwarded as it was checked,
never rebuilt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_plus, unquote_to_bytes

from relay.errors import BadRequest, NotFound

MAX_TARGET = 8192
"""Longest target that is looked at, in characters."""

_VISIBLE = re.compile(r"[\x21-\x7e]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPED_CONTROL = re.compile(r"%(?:[01][0-9A-F]|7F)", re.IGNORECASE)
# RFC 3986 pchar without ";", whose parameters some servers cut off, and the "/" between segments.
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,=:@%/-]*")
# Escapes that some parser would give a meaning (% # / ; ? \), or that say in three characters what
# one can (RFC 3986 §2.3 unreserved: nobody needs them but to get past a comparison).
_ESCAPED_AMBIGUITY = re.compile(
    r"%(?:2[35F]|3[BF]|5C|2[DE]|3[0-9]|[46][1-9A-F]|[57][0-9A]|5F|7E)", re.IGNORECASE
)


class Target(NamedTuple):
    """A request target that passed ``parse_target``."""

    segments: tuple[str, ...]
    """The path's segments, decoded. A trailing slash is an empty last segment."""
    path: str
    """The path exactly as received: forward this."""
    query: str
    """What followed the first ``?``, as received, without it."""

    def below(self, *base: str) -> Target:
        """Return what is left of this target below the path with the segments ``base``.

        They are compared one by one, and whole. Raises ``NotFound`` for what is not below them.
        """
        count = len(base)
        if self.segments[:count] != base:
            msg = "There is nothing here."
            raise NotFound(msg)
        # A segment of the path is one of `segments`, however it is written.
        path = "/" + "/".join(self.path.split("/")[count + 1 :])
        return Target(self.segments[count:] or ("",), path, self.query)

    def values(self, name: str) -> tuple[str, ...]:
        """Return the decoded values of every ``name`` in the query, in order."""
        return tuple(value for key, value in _parameters(self.query) if key == name)


def parse_target(raw: str) -> Target:
    r"""Read an origin-form request target (RFC 9112 §3.2.1).

    Raises ``BadRequest`` for the absolute, authority and asterisk forms; more than ``MAX_TARGET``
    characters; anything but visible ASCII; ``#`` and backslashes; malformed escapes, escaped
    control characters and escapes that are not UTF-8; and in the path: ``//``, ``;``, dot segments,
    and escapes of ``% # / ; ? \`` or of a character that needs no escape.
    """
    if len(raw) > MAX_TARGET:
        raise BadRequest(f"the request target is longer than {MAX_TARGET} characters")
    if not raw.startswith("/"):
        raise BadRequest("the request target must begin with a slash")
    if _VISIBLE.fullmatch(raw) is None or "#" in raw or "\\" in raw:
        raise BadRequest("the request target contains a forbidden character")
    if _BAD_ESCAPE.search(raw) or _ESCAPED_CONTROL.search(raw):
        raise BadRequest("the request target contains a bad %-escape")
    path, _, query = raw.partition("?")
    _decode(query)
    return Target(_segments(path), path, query)


def _segments(path: str) -> tuple[str, ...]:
    if _PATH.fullmatch(path) is None:
        raise BadRequest("the path contains a forbidden character")
    if _ESCAPED_AMBIGUITY.search(path):
        raise BadRequest("the path contains a forbidden %-escape")
    if "//" in path:
        raise BadRequest("the path contains an empty segment")
    segments = tuple(_decode(segment) for segment in path[1:].split("/"))
    if any(segment in {".", ".."} or not segment.isprintable() for segment in segments):
        raise BadRequest("the path contains a dot segment or an invisible character")
    return segments


def _decode(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise BadRequest("the request target is not UTF-8") from None


def _parameters(query: str) -> Iterator[tuple[str, str]]:
    """Yield each parameter's decoded name and value.

    Only ``&`` separates (WHATWG URL §5.1), as in aiohttp and Tornado.
    """
    for raw in query.split("&"):
        if raw:
            name, _, value = raw.partition("=")
            yield unquote_plus(name), unquote_plus(value)
