"""The authenticators that are configured, with what they read and ask elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from relay.auth.chain import Authenticator, Chain
from relay.auth.jwt import Issuer, Verifier
from relay.auth.tokens import AUTHENTICATOR, TokenStore
from relay.config import AuthenticationSettings, JwtSettings
from relay.edge.keys import FetchedKeys, FileKeys, Keys, Website
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal


class TokenFile:
    """The static tokens of a file."""

    def __init__(self, path: Path) -> None:
        """Raise ``OSError`` and ``ValueError`` for a file that cannot be used."""
        self._store = TokenStore.parse(path.read_bytes())

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return whose token this is at ``now`` (Unix seconds), or ``None``."""
        return self._store.authenticate(credential, now)


class Jwt:
    """The JWTs of one issuer; a context, inside which its keys are kept fresh."""

    def __init__(self, name: str, settings: JwtSettings, metrics: EdgeMetrics) -> None:
        """Raise ``OSError`` and ``ValueError``, which name the key that cannot be used."""
        claims = settings.claims
        self._verifier = Verifier(
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
            self._keys = FetchedKeys(name, settings, Website(settings).fetch, metrics)
        else:
            self._keys = FileKeys.read(settings.keys, settings.algorithms)

    async def __aenter__(self) -> Self:
        if isinstance(self._keys, FetchedKeys):
            await self._exits.enter_async_context(self._keys)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exits.__aexit__(kind, error, traceback)

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


class Authenticators:
    """Those that are configured, as a context: inside it they may keep tasks and connections."""

    def __init__(self, settings: AuthenticationSettings, metrics: EdgeMetrics) -> None:
        """Raise ``ValueError``, which names the setting."""
        known: dict[str, Authenticator] = {}
        if settings.tokens is not None:
            try:
                known[AUTHENTICATOR] = TokenFile(Path(settings.tokens.file))
            except (OSError, ValueError) as error:
                raise ValueError(f"authentication.tokens.file: {error}") from error
        for name, each in settings.jwt.items():
            try:
                known[name] = Jwt(name, each, metrics)
            except (OSError, ValueError) as error:
                raise ValueError(f"authentication.jwt.{name}.keys: {error}") from error
        self._known = [known[name] for name in settings.chain or settings.names]
        self.chain = Chain(self._known, _aliases(settings.aliases))
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Chain:
        """Start those that are contexts themselves."""
        async with AsyncExitStack() as exits:
            for each in self._known:
                if isinstance(each, AbstractAsyncContextManager):
                    await exits.enter_async_context(each)
            self._exits = exits.pop_all()
        return self.chain

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End them."""
        await self._exits.__aexit__(kind, error, traceback)


def _aliases(written: Mapping[str, str]) -> dict[Principal, Principal]:
    return {Principal.parse(one): Principal.parse(other) for one, other in written.items()}
