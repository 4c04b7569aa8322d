"""What an agent is asked for, and how long and how often it is asked."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from relay.edge.caller import Caller
from relay.routing.table import Retry


class CallTimeouts(NamedTuple):
    """How long a call may take, in seconds; ``None`` means no limit."""

    total: float | None
    """For the whole answer."""
    read: float | None = None
    """For the answer's next bytes."""
    retry_for: float = 0.0
    """For an agent to come back, counted from the moment the cluster went down."""
    retry_for_once_sent: float = 0.0
    """The same once an agent broke off with the request in its hands; the longer one counts."""


class UpstreamCall(msgspec.Struct, frozen=True, kw_only=True):
    """One REST request for a cluster's agents."""

    method: str
    path: str
    """As the client sent it, below the cluster."""
    query: str = ""
    body: bytes = b""
    caller: Caller
    kernel_id: str | None
    """The one kernel that the ticket is good for."""
    request_id: str
    retry: Retry
    timeouts: CallTimeouts
