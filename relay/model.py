"""The nouns every room shares: who asks, for what, and which kernel.

Nothing here does I/O, reads a clock or imports another room.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Literal, Self

import msgspec

ExecutionState = Literal["starting", "idle", "busy", "restarting", "terminating", "dead", "unknown"]


class Principal(msgspec.Struct, frozen=True):
    """Who is asking: an authenticator and its subject together.

    Two authenticators that both know an "alice" speak of two people.
    """

    authenticator: str
    subject: str

    def __str__(self) -> str:
        return f"{self.authenticator}:{self.subject}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str()`` wrote. Raises ``ValueError`` where a half is missing."""
        authenticator, separator, subject = text.partition(":")
        if not (authenticator and separator and subject):
            msg = "a principal is written authenticator:subject"
            raise ValueError(msg)
        return cls(authenticator, subject)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What an authenticator says of whoever shows a credential."""

    principal: Principal
    via: str
    """The authenticator that says so: ``groups`` and ``scopes`` are names of its own. It is the
    principal's too, unless the configuration says that two principals are one person."""
    groups: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    """What the credential is limited to; without any it is good for all that its bearer may do."""
    clusters: frozenset[str] | None = None
    """The clusters that the credential is good for; ``None`` for all."""
    expires: float = math.inf
    """Unix time in seconds at which the credential ends, and what was opened with it."""
    recheck: float = math.inf
    """Seconds after which whoever vouches for it wants to be asked again, while something is open
    that was opened with it."""
    credential: str = ""
    """Names the credential in logs and lists, and is no secret."""


class KernelModel(msgspec.Struct, frozen=True):
    """A kernel as Jupyter's REST API shows it (jupyter_server's ``Kernel`` schema).

    ``last_activity`` is ``%Y-%m-%dT%H:%M:%S.%fZ`` in UTC; the gateway client parses exactly that.
    """

    id: str
    name: str
    last_activity: str
    execution_state: ExecutionState
    connections: int


def jupyter_time(seconds: float) -> str:
    """Seconds since the epoch as ``%Y-%m-%dT%H:%M:%S.%fZ``, fraction and Z always there."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
