"""Ask the configured authenticators in order who a credential belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from relay.errors import Unauthorized
from relay.model import Principal


class Authenticator(Protocol):
    """Something that can tell whose a credential is; ``TokenStore`` is one."""

    def authenticate(self, credential: str, now: float, /) -> Principal | None:
        """Return whom ``credential`` stands for at ``now`` (Unix seconds).

        ``None`` passes it on to the next authenticator; ``Unauthorized`` refuses it for good.
        """
        ...


class Chain:
    """Authenticators in their configured order; the first that knows a credential decides."""

    def __init__(self, authenticators: Iterable[Authenticator]) -> None:
        """Take the authenticators in order; with none, everybody is refused."""
        self._authenticators = tuple(authenticators)

    def authenticate(self, credential: str | None, now: float) -> Principal:
        """Return who shows ``credential`` at ``now`` (Unix seconds).

        Raises ``Unauthorized``, in the same words for no credential and a wrong one. Whatever else
        an authenticator raises goes up: a broken one must not be skipped in favour of a laxer one.
        """
        if credential:
            for authenticator in self._authenticators:
                principal = authenticator.authenticate(credential, now)
                if principal is not None:
                    return principal
        raise Unauthorized("a valid token is required")
