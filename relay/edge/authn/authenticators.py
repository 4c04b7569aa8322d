"""The authenticators that are configured, with what they read and ask elsewhere."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    contextmanager,
)
from typing import Protocol, Self, runtime_checkable

import msgspec

from relay.auth.chain import TOKEN_REQUIRED, Authenticator, AuthenticatorChain
from relay.auth.credentials import CONFLICTING_CREDENTIALS, PresentedCredentials
from relay.auth.tokens import AUTHENTICATOR
from relay.config import AuthenticationSettings
from relay.edge.authn import jupyterhub
from relay.edge.authn.jupyterhub_activity import WatchedSocket
from relay.edge.authn.jwt import Jwt
from relay.edge.authn.token_file import PathTokens, TokenFile
from relay.errors import Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal


@runtime_checkable
class WatchingAuthenticator(Protocol):
    """What an `Authenticator` may be besides."""

    async def watch(self, changed: Callable[[], None]) -> None:
        """Run as long as the edge does; ``changed`` where answers may be others now."""
        ...


@runtime_checkable
class FollowingAuthenticator(Protocol):
    """What an `Authenticator` may be besides."""

    def follow(self, identity: Identity, socket: WatchedSocket) -> AbstractContextManager[None]:
        """Inside it ``socket``, a WebSocket of ``identity``'s, is open."""
        ...


class Authenticators:
    """Tells who somebody is by all that they show; a context, since some authenticators are."""

    def __init__(
        self,
        chain: AuthenticatorChain,
        path_tokens: AuthenticatorChain | None = None,
        authenticators: Iterable[Authenticator] = (),
    ) -> None:
        """``path_tokens`` knows path tokens; without it there are none."""
        self._chain = chain
        self._path_tokens = path_tokens
        known = tuple(authenticators)
        self._watchers = [each for each in known if isinstance(each, WatchingAuthenticator)]
        self._followers = [each for each in known if isinstance(each, FollowingAuthenticator)]
        self._contexts = [each for each in known if isinstance(each, AbstractAsyncContextManager)]
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start those authenticators that keep tasks and connections."""
        async with AsyncExitStack() as exits:
            for each in self._contexts:
                await exits.enter_async_context(each)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End them."""
        await self._exits.aclose()

    @property
    def path_tokens(self) -> bool:
        """Whether a token may stand in a URL's path."""
        return self._path_tokens is not None

    async def identify(self, shown: PresentedCredentials, now: float) -> Identity:
        """Return who shows this at ``now`` (Unix seconds).

        Raises ``Unauthorized``, also where two things that are shown speak of two people; and
        whatever an authenticator raises that cannot tell.
        """
        known: list[Identity] = []
        if shown.path_token is not None:
            if self._path_tokens is None:
                raise Unauthorized(TOKEN_REQUIRED)
            known.append(await self._path_tokens.authenticate(shown.path_token, now))
        if shown.credential is not None:
            known.append(await self._chain.authenticate(shown.credential, now))
        if shown.certificate_identity is not None:
            if shown.certificate_identity.expires <= now:
                raise Unauthorized("the certificate has expired")
            known.append(self._chain.resolve_alias(shown.certificate_identity))
        if not known:
            raise Unauthorized(TOKEN_REQUIRED)
        if len({identity.principal for identity in known}) > 1:
            raise Unauthorized(CONFLICTING_CREDENTIALS)
        # The first, which its bearer chose for this request, says what may be done; all say for
        # how long.
        return msgspec.structs.replace(
            known[0],
            expires=min(identity.expires for identity in known),
            recheck=min(identity.recheck for identity in known),
        )

    @contextmanager
    def follow(self, identity: Identity, socket: WatchedSocket) -> Iterator[None]:
        """Tell those authenticators that want to know what goes on on an open WebSocket."""
        with ExitStack() as exits:
            for each in self._followers:
                exits.enter_context(each.follow(identity, socket))
            yield

    async def watch(self, changed: Callable[[], None]) -> None:
        """Run what the authenticators want to run; ``changed`` as for theirs."""
        async with asyncio.TaskGroup() as tasks:
            for each in self._watchers:
                tasks.create_task(each.watch(changed), name=f"watch {type(each).__name__}")


def build(settings: AuthenticationSettings, metrics: EdgeMetrics) -> Authenticators:
    """Raises ``ValueError``, which names the setting."""
    known: dict[str, Authenticator] = {}
    aliases = _aliases(settings.aliases)
    path_tokens: AuthenticatorChain | None = None
    if settings.tokens is not None:
        try:
            known[AUTHENTICATOR] = tokens = TokenFile(settings.tokens, metrics)
        except (OSError, ValueError) as error:
            raise ValueError(f"authentication.tokens.file: {error}") from error
        if settings.path_tokens is not None:
            path_tokens = AuthenticatorChain(
                [PathTokens(tokens, settings.path_tokens.max_lifetime)], aliases
            )
    for name, each in settings.jwt.items():
        try:
            known[name] = Jwt(name, each, metrics)
        except (OSError, ValueError) as error:
            raise ValueError(f"authentication.jwt.{name}.keys: {error}") from error
    if settings.jupyterhub is not None:
        try:
            known[jupyterhub.AUTHENTICATOR] = jupyterhub.JupyterHub(
                settings.jupyterhub, os.environ, metrics
            )
        except ValueError as error:
            raise ValueError(f"{jupyterhub.SETTINGS}.{error}") from error
    names = settings.chain or settings.chainable
    chain = AuthenticatorChain([known[name] for name in names], aliases)
    return Authenticators(chain, path_tokens, (known[name] for name in names))


def _aliases(written: Mapping[str, str]) -> dict[Principal, Principal]:
    return {Principal.parse(one): Principal.parse(other) for one, other in written.items()}
