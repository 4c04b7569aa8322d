"""An issuer's JWTs as an authenticator: who believes them, and where the keys come from."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from relay.auth.jwt import Issuer, JwtVerifier
from relay.config import JwtSettings
from relay.edge.authn.jwks_client import FetchedKeys, FileKeys, JwksEndpoint, Keys
from relay.metrics import EdgeMetrics
from relay.model import Identity


class Jwt:
    """The JWTs of one issuer; a context, inside which its keys are kept fresh."""

    def __init__(self, name: str, settings: JwtSettings, metrics: EdgeMetrics) -> None:
        """Raise ``OSError`` and ``ValueError``, which name the key that cannot be used."""
        claims = settings.claims
        self._verifier = JwtVerifier(
            Issuer(
                name=name,
                issuer=settings.issuer,
                audiences=frozenset(settings.audiences),
                algorithms=frozenset(settings.algorithms),
                types=frozenset(each.lower() for each in settings.types),
                required=frozenset(settings.required),
                leeway=settings.leeway,
                user=claims.user,
                groups=claims.groups,
                scopes=claims.scopes,
            )
        )
        self._exits = AsyncExitStack()
        self._keys: Keys
        if settings.keys.discovery or settings.keys.jwks_url:
            self._keys = FetchedKeys(name, settings, JwksEndpoint(settings).fetch, metrics)
        else:
            self._keys = FileKeys.read(settings.keys, settings.algorithms)

    async def __aenter__(self) -> Self:
        if isinstance(self._keys, FetchedKeys):
            await self._exits.enter_async_context(self._keys)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return whose token this is at ``now`` (Unix seconds), or ``None`` for no JWT of its own.

        Raises `Unauthorized` for one that is wrong, and `AuthenticatorUnavailable` while it has
        no keys.
        """
        token = self._verifier.read(credential)
        if token is None:
            return None
        key = await self._keys.find(token.kid, token.algorithm)
        return self._verifier.verify(token, key, now)
