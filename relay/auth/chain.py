"""Ask the configured authenticators in order who a credential belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from relay.errors import Unauthorized
from relay.model import Identity, Principal


class Authenticator(Protocol):
    """Something that can tell whose a credential is, though it may have to ask elsewhere."""

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return whom ``credential`` stands for at ``now`` (Unix seconds).

        ``None`` passes it on to the next authenticator; ``Unauthorized`` refuses it for good.
        """
        ...


class Chain:
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
                    return self.known_as(identity)
        raise Unauthorized("a valid token is required")

    def known_as(self, identity: Identity) -> Identity:
        """``identity`` as the principal that it is in truth."""
        principal = self._aliases.get(identity.principal, identity.principal)
        return msgspec.structs.replace(identity, principal=principal)
