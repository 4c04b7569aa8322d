"""The settings of the edge's door: how much comes in, how fast, and how long it may take."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from msgspec import Meta, Struct

from relay.config.values import Count, Seconds


def check_network(text: str) -> None:
    """Raise ``ValueError`` unless ``text`` is an address, or a network as ``10.0.0.0/8``."""
    ipaddress.ip_network(text)


Network = Annotated[str, Meta(extra={"check": check_network})]
PerSecond = Annotated[float, Meta(gt=0, le=1_000_000)]


class ConnectionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Open TCP connections of all workers together, and how long a client may take."""

    total: Count = 4096
    """Connections in all; the next is closed as soon as it is accepted."""
    per_address: Count = 256
    """Connections of one client address, an IPv6 one's /64; the next is closed at once."""
    tls_timeout: Seconds = 10.0
    """Seconds for a TLS handshake, from the connection's begin to its end."""
    head_timeout: Seconds = 10.0
    """Seconds for a request's head, from its first byte to its last; the same until the first
    request begins."""
    body_timeout: Seconds = 30.0
    """Seconds for a request's body, from the end of its head to its last byte."""
    write_timeout: Seconds = 30.0
    """Seconds that a client may leave unread what waits for it, before it is cut off."""
    idle_timeout: Seconds = 75.0
    """Seconds that a connection may wait for its next request."""


class ProxySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who speaks for others; by default nobody is believed."""

    proxy_protocol: list[Network] = []
    """Networks whose connections begin with the PROXY protocol, version 1 or 2; without it they
    are closed."""
    forwarded: list[Network] = []
    """Networks whose word is taken for where a request comes from."""
    header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    """The header in which they say so; the other is not looked at."""


class QuotaSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one user, and one cluster, may have; exact over all workers."""

    user_kernels: Count | None = 20
    """Kernels of one user on each cluster; the next is refused (403). ``None``: as many as the
    cluster takes."""
    user_sockets: Count = 64
    """Open WebSockets of one user; the next is refused (403)."""
    user_requests: PerSecond | None = 100.0
    """Requests of one user per second on average; beyond: 429. ``None``: any number."""
    user_burst: Count = 500
    """Requests that one user may send at once after a pause."""
    cluster_sockets: Count | None = None
    """Open WebSockets of one cluster; ``None``: any number."""
    cluster_requests: PerSecond | None = None
    """Requests to one cluster per second on average; beyond: 429. ``None``: any number."""
    cluster_burst: Count = 5000
    """Requests that one cluster is sent at once after a pause."""


class LoginSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many wrong credentials an address may show before it hears 429 instead of 401.

    A right one comes in all the same.
    """

    failures: Count = 20
    """Wrong credentials from one address, an IPv6 one's /64, in any ``window``."""
    window: Seconds = 10.0
    """Seconds."""
