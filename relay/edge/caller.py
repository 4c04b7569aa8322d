"""The caller of a request, as agents are told of it in tickets."""

from __future__ import annotations

from typing import NamedTuple

from relay.auth.policy import Rights
from relay.model import Principal


class Caller(NamedTuple):
    """The principal that a request is sent for, and what it may do there."""

    principal: Principal
    rights: Rights
    """The granted rights, without those that make no difference to the request."""
    max_kernels: int | None = None
    """How many kernels the principal may have on the cluster; ``None`` for no limit."""
