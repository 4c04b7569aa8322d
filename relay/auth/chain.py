"""Asks the configured authenticators in order who a credential belongs to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from relay.errors import Unauthorized
from relay.model import Identity, Principal

TOKEN_REQUIRED = "a valid token is required"  # noqa: S105 - a message
"""The message for no credential, and for an unknown one."""


class Authenticator(Protocol):
    """Checks credentials, possibly by asking another service.

    A credential is checked again while something is open that it opened: at `Identity.expires`,
    and when its authenticator asks for it by one of two optional members:

    ``recheck: float``
        Seconds after which the credential is to be checked again. Without it a result holds until
        the credential expires, or until the next change.
    ``async def watch(self, changed: Callable[[], None]) -> None``
        Runs for as long as the edge does, and calls ``changed`` whenever earlier results may be
        wrong; all credentials that have something open are then checked at once.
    """

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return the identity that ``credential`` proves at ``now`` (Unix seconds).

        ``None`` passes the credential on to the next authenticator; ``Unauthorized`` refuses it
        finally. Any other error means that it cannot be checked just now: a request fails with the
        error, and what is open stays open until the check succeeds or the identity expires.
        """
        ...


class AuthenticatorChain:
    """The authenticators in their configured order; the first that knows a credential decides."""

    def __init__(
        self,
        authenticators: Iterable[Authenticator],
        aliases: Mapping[Principal, Principal] | None = None,
    ) -> None:
        """Take the authenticators in order; without any, every credential is refused.

        ``aliases`` maps principals to those whose identity they share.
        """
        self._authenticators = tuple(authenticators)
        self._aliases = dict(aliases or {})

    async def authenticate(self, credential: str | None, now: float) -> Identity:
        """Return the identity that ``credential`` proves at ``now`` (Unix seconds).

        Raises ``Unauthorized``, with one message for no credential and for a wrong one. Other
        errors of an authenticator are passed on: one that fails must not be skipped in favour of a
        less strict one.
        """
        if credential:
            for authenticator in self._authenticators:
                identity = await authenticator.authenticate(credential, now)
                if identity is not None:
                    return self.resolve_alias(identity, getattr(authenticator, "recheck", math.inf))
        raise Unauthorized(TOKEN_REQUIRED)

    def resolve_alias(self, identity: Identity, recheck: float = math.inf) -> Identity:
        """Return ``identity`` with its principal's alias applied, and ``recheck`` as its bound."""
        return msgspec.structs.replace(
            identity,
            principal=self._aliases.get(identity.principal, identity.principal),
            recheck=min(identity.recheck, recheck),
        )
