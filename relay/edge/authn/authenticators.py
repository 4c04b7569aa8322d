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
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import msgspec
import structlog

from relay.auth.chain import WHO, Authenticator, AuthenticatorChain
from relay.auth.credentials import DISAGREE, PresentedCredentials
from relay.auth.tokens import AUTHENTICATOR, TokenStore
from relay.config import AuthenticationSettings, TokenSettings
from relay.edge.authn import jupyterhub
from relay.edge.authn.jupyterhub_activity import WatchedSocket
from relay.edge.authn.jwt import Jwt
from relay.errors import Unauthorized
from relay.metrics import EdgeMetrics
from relay.model import Identity, Principal

log = structlog.get_logger(__name__)

_Version = tuple[int, int, int]


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


class TokenFile:
    """The static tokens of a file, as it is now."""

    def __init__(self, settings: TokenSettings, metrics: EdgeMetrics) -> None:
        """Raise ``OSError`` and ``ValueError`` for a file that cannot be used."""
        self._path = Path(settings.file)
        self._interval = settings.look_interval
        self._metrics = metrics
        self._version: _Version | None = None
        self._problem: str | None = None
        self._version, self._store = self._read()

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return whose token this is at ``now`` (Unix seconds), or ``None``."""
        return self._store.authenticate(credential, now)

    def authenticate_path(self, token: str, now: float, max_lifetime: float) -> Identity | None:
        """Return whose path token this is at ``now`` (Unix seconds), or ``None``."""
        return self._store.authenticate_path(token, now, max_lifetime)

    async def watch(self, changed: Callable[[], None]) -> None:
        """Look at the file again and again."""
        while True:
            await asyncio.sleep(self._interval)
            if self.look():
                changed()

    def look(self) -> bool:
        """Take the file's tokens if it has changed; whether they are others now.

        One that is damaged or gone changes nothing: who was known stays known, and nobody else.
        """
        try:
            if _version(self._path.stat()) == self._version:
                self._problem = None
                return False
            version, store = self._read()
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.error("tokens_not_read", problem=str(error))  # noqa: TRY400 - says it all
                self._metrics.refused_token_files.inc()
            return False
        self._version, self._problem = version, None
        if store.records == self._store.records:
            return False
        self._store = store
        log.info("tokens_read", tokens=len(store.records))
        return True

    def _read(self) -> tuple[_Version, TokenStore]:
        # The version is that of the very file that is read, whatever takes its place meanwhile.
        with self._path.open("rb") as file:
            version = _version(os.fstat(file.fileno()))
            return version, TokenStore.parse(file.read())


def _version(status: os.stat_result) -> _Version:
    return status.st_ino, status.st_mtime_ns, status.st_size


class _PathTokens:
    """The path tokens among the static tokens, for a chain of their own."""

    def __init__(self, tokens: TokenFile, max_lifetime: float) -> None:
        self._tokens = tokens
        self._max_lifetime = max_lifetime

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        return self._tokens.authenticate_path(credential, now, self._max_lifetime)


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
                raise Unauthorized(WHO)
            known.append(await self._path_tokens.authenticate(shown.path_token, now))
        if shown.credential is not None:
            known.append(await self._chain.authenticate(shown.credential, now))
        if shown.certified is not None:
            if shown.certified.expires <= now:
                raise Unauthorized("the certificate has expired")
            known.append(self._chain.known_as(shown.certified))
        if not known:
            raise Unauthorized(WHO)
        if len({identity.principal for identity in known}) > 1:
            raise Unauthorized(DISAGREE)
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
                [_PathTokens(tokens, settings.path_tokens.max_lifetime)], aliases
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
    names = settings.chain or settings.names
    chain = AuthenticatorChain([known[name] for name in names], aliases)
    return Authenticators(chain, path_tokens, (known[name] for name in names))


def _aliases(written: Mapping[str, str]) -> dict[Principal, Principal]:
    return {Principal.parse(one): Principal.parse(other) for one, other in written.items()}
