"""The pages in browsers that may use the relay: those of its own origin, and of a list.

A browser sends ``Origin`` with each WebSocket handshake, and with each request that could change
something; the page cannot change the header. Requests without it do not come from a page.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

_NAME: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NO_ORIGIN: Final = "expected an origin as browsers write it, https://host or https://host:port"


class OriginMatch(enum.Enum):
    """The page that made a request, by its ``Origin``."""

    NONE = "none"
    """No page: a program, or a browser that does not show the response to a page."""
    OWN = "own"
    LISTED = "listed"
    FOREIGN = "foreign"
    """Any other page, and every ``Origin`` that cannot be read."""


class Origins:
    """The pages that may use the relay; origins have one form and are compared exactly."""

    def __init__(self, listed: Iterable[str] = ()) -> None:
        """Raise ``ValueError`` for an origin that no browser would send."""
        self.listed: Final = frozenset(listed)
        for each in self.listed:
            check_origin(each)

    def classify(self, origins: Sequence[str], host: str) -> OriginMatch:
        """Classify a request by its ``Origin`` headers and its ``Host``, which was checked."""
        if not origins:
            return OriginMatch.NONE
        if len(origins) > 1:
            return OriginMatch.FOREIGN
        (origin,) = origins
        if origin in self.listed:
            return OriginMatch.LISTED
        # The relay is reached over TLS only. websocket-client, not a browser, sends this too.
        if host and origin == f"https://{host.lower().removesuffix(':443')}":
            return OriginMatch.OWN
        return OriginMatch.FOREIGN


def check_origin(text: str) -> None:
    """Raise ``ValueError`` unless ``text`` is an origin as browsers write it (RFC 6454 §6.2)."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(_NO_ORIGIN) from None
    if parts.scheme not in _DEFAULT_PORTS or port == 0 or not _is_host(host):
        raise ValueError(_NO_ORIGIN)
    written = f"[{host}]" if ":" in host else host
    suffix = "" if port is None else f":{port}"
    if text != f"{parts.scheme}://{written}{suffix}":
        raise ValueError(_NO_ORIGIN)
    if port == _DEFAULT_PORTS[parts.scheme]:
        raise ValueError(f"browsers leave out :{port}, the default port of {parts.scheme}")


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host)) == host
        except ValueError:
            return False
    return all(_NAME.fullmatch(label) for label in host.split("."))
