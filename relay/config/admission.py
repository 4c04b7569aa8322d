"""Settings of the edge's admission control: connections, quotas, failed logins, proxies."""

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
    """Limits on open TCP connections of all workers together, and on a client's time."""

    total: Count = 4096
    """Connections in all; beyond, a new one is closed as soon as it is accepted."""
    per_address: Count = 256
    """Connections of one client address (of an IPv6 address, its /64); beyond, closed at once."""
    tls_timeout: Seconds = 10.0
    """Seconds for a TLS handshake."""
    head_timeout: Seconds = 10.0
    """Seconds for a request's head, from its first byte to its last; also until the first request
    begins."""
    body_timeout: Seconds = 30.0
    """Seconds for a request's body, from the end of its head to its last byte."""
    write_timeout: Seconds = 30.0
    """Seconds that a client may leave data unread before its connection is cut."""
    idle_timeout: Seconds = 75.0
    """Seconds that a connection may wait for its next request."""


class ProxySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Proxies that are trusted to name the client's address; none by default."""

    proxy_protocol: list[Network] = []
    """Networks whose connections must begin with the PROXY protocol, version 1 or 2; without it
    they are closed."""
    forwarded: list[Network] = []
    """Networks whose requests name the client's address in ``header``."""
    header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    """The header with the client's address; the other one is ignored."""


class QuotaSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits for one user and for one cluster, exact over all workers."""

    user_kernels: Count | None = 20
    """Kernels of one user on each cluster; beyond, a start is refused (403). ``None``: no limit but
    the cluster's."""
    user_sockets: Count = 64
    """Open WebSockets of one user; beyond, refused (403)."""
    user_requests: PerSecond | None = 100.0
    """Requests of one user per second on average; beyond: 429. ``None``: no limit."""
    user_burst: Count = 500
    """Requests that one user may send at once after a pause."""
    cluster_sockets: Count | None = None
    """Open WebSockets to one cluster; ``None``: no limit."""
    cluster_requests: PerSecond | None = None
    """Requests to one cluster per second on average; beyond: 429. ``None``: no limit."""
    cluster_burst: Count = 5000
    """Requests to one cluster that may come at once after a pause."""


class LoginSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Wrong credentials that one address may send before it gets 429 instead of 401.

    A valid credential is accepted all the same.
    """

    failures: Count = 20
    """Wrong credentials from one address (of an IPv6 address, its /64) within ``window``."""
    window: Seconds = 10.0
    """Seconds."""
