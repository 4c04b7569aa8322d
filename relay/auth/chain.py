"""Ask the configured authenticators in order who a credential belongs to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from relay.errors import Unauthorized
from relay.model import Identity, Principal

WHO = "a valid token is required"
"""Said of no credential, and of one that nobody knows."""


class Authenticator(Protocol):
    """Something that can tell whose a credential is, though it may have to ask elsewhere.

    What a credential has opened is judged again while it is open, by asking about the same
    credential again: at `Identity.expires`, and when an authenticator wants that. Two members,
    both optional, say so:

    ``recheck: float``
        Seconds after which it wants to be asked again. Without it an answer holds until it
        expires, or until the next change.
    ``async def watch(self, changed: Callable[[], None]) -> None``
        Runs for as long as the edge does, and calls ``changed`` whenever answers that were given
        may be others now; all credentials that have something open are then asked about at once.
    """

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return whom ``credential`` stands for at ``now`` (Unix seconds).

        ``None`` passes it on to the next authenticator; ``Unauthorized`` refuses it for good. Any
        other error says that it cannot tell just now: a request fails with it, and what is open
        stays open until it can tell, or until the identity that it gave expires.
        """
        ...


class AuthenticatorChain:
    """Authenticators in their configured order; the first that knows a credential decides."""

    def __init__(
        self,
        authenticators: Iterable[Authenticator],
        aliases: Mapping[Principal, Principal] | None = None,
    ) -> None:
        """Take the authenticators in order; with none, everybody is refused.

        ``aliases`` says who is another authenticator's principal in truth.
        """
        self._authenticators = tuple(authenticators)
        self._aliases = dict(aliases or {})

    async def authenticate(self, credential: str | None, now: float) -> Identity:
        """Return who shows ``credential`` at ``now`` (Unix seconds).

        Raises ``Unauthorized``, in the same words for no credential and a wrong one. Whatever else
        an authenticator raises goes up: a broken one must not be skipped in favour of a laxer one.
        """
        if credential:
            for authenticator in self._authenticators:
                identity = await authenticator.authenticate(credential, now)
                if identity is not None:
                    return self.known_as(identity, getattr(authenticator, "recheck", math.inf))
        raise Unauthorized(WHO)

    def known_as(self, identity: Identity, recheck: float = math.inf) -> Identity:
        """``identity`` as the principal that it is in truth, to be asked about again by then."""
        return msgspec.structs.replace(
            identity,
            principal=self._aliases.get(identity.principal, identity.principal),
            recheck=min(identity.recheck, recheck),
        )
