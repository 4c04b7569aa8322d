"""The authenticators that are configured, with what they read and ask elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from relay.auth.chain import Authenticator, Chain
from relay.auth.tokens import AUTHENTICATOR, TokenStore
from relay.config import AuthenticationSettings
from relay.model import Identity, Principal


class TokenFile:
    """The static tokens of a file."""

    def __init__(self, path: Path) -> None:
        """Raise ``OSError`` and ``ValueError`` for a file that cannot be used."""
        self._store = TokenStore.parse(path.read_bytes())

    async def authenticate(self, credential: str, now: float, /) -> Identity | None:
        """Return whose token this is at ``now`` (Unix seconds), or ``None``."""
        return self._store.authenticate(credential, now)


def build(settings: AuthenticationSettings) -> Chain:
    """Raises ``ValueError``, which names the setting."""
    known: dict[str, Authenticator] = {}
    if settings.tokens is not None:
        try:
            known[AUTHENTICATOR] = TokenFile(Path(settings.tokens.file))
        except (OSError, ValueError) as error:
            raise ValueError(f"authentication.tokens.file: {error}") from error
    names = settings.chain or settings.names
    return Chain([known[name] for name in names], _aliases(settings.aliases))


def _aliases(written: Mapping[str, str]) -> dict[Principal, Principal]:
    return {Principal.parse(one): Principal.parse(other) for one, other in written.items()}
