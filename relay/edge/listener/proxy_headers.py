"""What proxies say of whom they speak for, and what of that is believed.

The PROXY protocol (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt) comes before TLS,
X-Forwarded-For and Forwarded (RFC 7239) with each request. Neither is looked at unless whoever says
so is a configured proxy. No I/O here; whatever is not exactly as written down is a ``ValueError``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
V2_HEAD: Final = 16
"""Bytes of a version 2 header in front of its addresses."""
V1_LINE: Final = 107
"""Bytes of the longest version 1 header."""
_V2_REST: Final = 4096
"""Bytes of addresses and what may follow them that are taken."""
_V2_ADDRESS: Final = {0x11: 4, 0x21: 16}
"""Bytes of an address, by family and transport: TCP over IPv4 and IPv6."""
_V2_LOCAL: Final = 0x20
_V2_PROXY: Final = 0x21
_UNSPECIFIED: Final = 0x00
_V1: Final = re.compile(r"PROXY TCP([46]) (\S+) (\S+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})", re.ASCII)
_LAST_PORT: Final = 65_535
_FORWARDED: Final = re.compile(
    r"[!#$%&'*+.^_`|~\w-]+=(?:[!#$%&'*+.^_`|~\w-]+|\"[^\"\\]*\")", re.ASCII
)
_NODE: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::\d{1,5})?", re.ASCII)

Header = Literal["x-forwarded-for", "forwarded"]


class Networks:
    """Addresses of whom to believe."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Raise ``ValueError`` for what is no network."""
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __contains__(self, address: str) -> bool:
        try:
            found = _plain(address)
        except ValueError:
            return False
        return any(
            found.version == network.version and found in network for network in self._networks
        )


def counted(address: str) -> str:
    """Whom limits are for: the address, or an IPv6 one's /64, all of which one host may have."""
    try:
        found = _plain(address)
    except ValueError:
        return address
    if found.version == 4:  # noqa: PLR2004 - IPv4
        return str(found)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        # A socket for both shows IPv4 so.
        return found.ipv4_mapped
    return found


def read_v1(line: bytes) -> str | None:
    """The client's address of a version 1 header, its end included; ``None`` for the proxy's own.

    Raises ``ValueError``.
    """
    if len(line) > V1_LINE or not line.endswith(b"\r\n"):
        raise ValueError("a PROXY line has no end")
    text = line[:-2].decode("ascii")
    if text == "PROXY UNKNOWN" or text.startswith("PROXY UNKNOWN "):
        return None
    found = _V1.fullmatch(text)
    if found is None:
        raise ValueError("not a PROXY line")
    family = ipaddress.IPv4Address if found[1] == "4" else ipaddress.IPv6Address
    client, _ = family(found[2]), family(found[3])
    if max(int(found[4]), int(found[5])) > _LAST_PORT:
        raise ValueError("a PROXY line with no such port")
    return str(client)


def v2_rest(head: bytes) -> int:
    """How many bytes follow the first 16 of a version 2 header. Raises ``ValueError``."""
    length = int.from_bytes(head[14:16])
    if len(head) != V2_HEAD or not head.startswith(V2_SIGNATURE) or length > _V2_REST:
        raise ValueError("not a PROXY header")
    return length


def read_v2(head: bytes, rest: bytes) -> str | None:
    """The client's address of a version 2 header; ``None`` for the proxy's own.

    Raises ``ValueError``.
    """
    command, kind = head[12], head[13]
    if len(rest) != v2_rest(head) or command not in (_V2_LOCAL, _V2_PROXY):
        raise ValueError("not a PROXY header")
    if command == _V2_LOCAL or kind == _UNSPECIFIED:
        return None
    size = _V2_ADDRESS.get(kind)
    if size is None or len(rest) < 2 * size + 4:
        raise ValueError("a PROXY header without a TCP address")
    return str(ipaddress.ip_address(rest[:size]))


def client_of(peer: str, header: Header, values: Sequence[str], trusted: Networks) -> str:
    """Whose request it is: that of the last hop before the trusted ones.

    ``peer`` is at the other end of the connection, ``values`` has all lines of ``header``. Where a
    trusted proxy names nobody that can be understood, the request counts as that proxy's.
    """
    address = peer
    hops = _forwarded(values) if header == "forwarded" else _forwarded_for(values)
    while address in trusted:
        try:
            address = next(hops)
        except (StopIteration, ValueError):
            break
    return address


def _forwarded_for(values: Sequence[str]) -> Iterator[str]:
    """Hops from the last to the first, each when it is asked for: what is before is anybody's."""
    for hop in reversed(",".join(values).split(",")):
        yield str(ipaddress.ip_address(hop.strip(" \t")))


def _forwarded(values: Sequence[str]) -> Iterator[str]:
    for hop in reversed(",".join(values).split(",")):
        pairs = [pair.strip(" \t") for pair in hop.split(";")]
        if not all(map(_FORWARDED.fullmatch, pairs)):
            raise ValueError("not a Forwarded header")
        named = [
            value
            for name, _, value in (pair.partition("=") for pair in pairs)
            if name.lower() == "for"
        ]
        if len(named) != 1:
            raise ValueError("a hop that is for nobody")
        node = _NODE.fullmatch(named[0].strip('"'))
        if node is None:
            raise ValueError("a hop without an address")
        yield str(ipaddress.IPv6Address(node[1]) if node[1] else ipaddress.IPv4Address(node[2]))
