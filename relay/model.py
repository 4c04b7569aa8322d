"""The nouns that all rooms share: principals, identities, kernels, names and times.

Nothing here does I/O, reads a clock or imports another room.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Final, Literal, Self

import msgspec

MAX_NAME: Final = 255
"""Characters of the longest name of a user, group or scope."""
AUTHENTICATOR_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,30}")

ExecutionState = Literal["starting", "idle", "busy", "restarting", "terminating", "dead", "unknown"]


def is_name(text: str) -> bool:
    """Whether ``text`` can name a user, group or scope; it can then be shown in logs."""
    return 0 < len(text) <= MAX_NAME and text.isprintable() and text == text.strip()


class Principal(msgspec.Struct, frozen=True):
    """The user or service that makes a request: an authenticator and its subject together.

    The subject "alice" of two authenticators is two principals.
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
    """What an authenticator states about the holder of a valid credential."""

    principal: Principal
    via: str
    """The authenticator that made the statement: ``groups`` and ``scopes`` are its names. It is
    the principal's authenticator too, unless a configured alias changed the principal."""
    groups: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    """What the credential is limited to; without any it is good for all that its user may do."""
    clusters: frozenset[str] | None = None
    """The clusters that the credential is good for; ``None`` means all."""
    expires: float = math.inf
    """Unix time in seconds at which the credential expires, and what was opened with it ends."""
    recheck: float = math.inf
    """Seconds after which the authenticator wants the credential checked again, while something is
    open that was opened with it."""
    credential: str = ""
    """A name of the credential for logs and lists; not a secret."""


class KernelModel(msgspec.Struct, frozen=True):
    """A kernel in Jupyter's REST API (jupyter_server's ``Kernel`` schema).

    ``last_activity`` is ``%Y-%m-%dT%H:%M:%S.%fZ`` in UTC; the gateway client parses exactly that.
    """

    id: str
    name: str
    last_activity: str
    execution_state: ExecutionState
    connections: int


def jupyter_time(seconds: float) -> str:
    """Format Unix seconds as ``%Y-%m-%dT%H:%M:%S.%fZ``, always with a fraction and Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
