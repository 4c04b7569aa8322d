"""Static tokens, from a file that is read again when it changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from relay.auth.tokens import TokenStore
from relay.config import TokenSettings
from relay.metrics import EdgeMetrics
from relay.model import Identity

log = structlog.get_logger(__name__)

_Version = tuple[int, int, int]


class TokenFile:
    """The authenticator for the static tokens of a file, as it is now."""

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
        """Read the file if it has changed; return whether its tokens are others now.

        A file that is damaged or gone changes nothing: the tokens of before go on to count.
        """
        try:
            if _version(self._path.stat()) == self._version:
                self._problem = None
                return False
            version, store = self._read()
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.error("token_file_invalid", problem=str(error))  # noqa: TRY400 - says it all
                self._metrics.refused_token_files.inc()
            return False
        self._version, self._problem = version, None
        if store.records == self._store.records:
            return False
        self._store = store
        log.info("token_file_reloaded", tokens=len(store.records))
        return True

    def _read(self) -> tuple[_Version, TokenStore]:
        # The version is that of the very file that is read, whatever takes its place meanwhile.
        with self._path.open("rb") as file:
            version = _version(os.fstat(file.fileno()))
            return version, TokenStore.parse(file.read())


def _version(status: os.stat_result) -> _Version:
    return status.st_ino, status.st_mtime_ns, status.st_size


class PathTokens:
    """The authenticator for the path tokens among a file's tokens."""

    def __init__(self, tokens: TokenFile, max_lifetime: float) -> None:
        self._tokens = tokens
        self._max_lifetime = max_lifetime

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return whose path token this is at ``now`` (Unix seconds), or ``None``."""
        return self._tokens.authenticate_path(credential, now, self._max_lifetime)
