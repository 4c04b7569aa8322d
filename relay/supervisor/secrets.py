"""Fills the state directory with certificates, keys and a first token."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from pathlib import Path

from relay import files, pki, tokenfile
from relay.auth.tokens import TokenRecord, TokenStore, generate
from relay.config import UpConfig
from relay.model import is_name
from relay.processes import StartError
from relay.supervisor.state import StateFolder

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - recognised, not listened on


def provide(folder: StateFolder, config: UpConfig, now: float) -> str:
    """Make what is missing, and renew what expires soon; return the token to show.

    ``now`` is Unix time in seconds. Raises `StartError` for a damaged token file, which must not
    be replaced without the operator's knowledge.
    """
    authority = _pair(
        folder.authority,
        is_usable=lambda pair: pki.authority_is_usable(pair, now),
        make=lambda: pki.new_authority(now),
    )
    names = server_names(config)
    _pair(
        folder.server,
        is_usable=lambda pair: pki.server_is_usable(pair, authority, names, now),
        make=lambda: pki.new_server(authority, names, now),
    )
    _pair(folder.ticket_keys, is_usable=pki.ticket_keys_are_usable, make=pki.new_ticket_keys)
    return _first_token(folder, now)


def server_names(config: UpConfig) -> tuple[str, ...]:
    """Return this machine's names for clients: loopback, host name, configured addresses."""
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    names += [each.host for each in (config.https, config.wss) if each.host not in _EVERYWHERE]
    return tuple(dict.fromkeys(name for name in names if name and name.isascii()))


def _pair(
    paths: tuple[Path, Path],
    *,
    is_usable: Callable[[pki.PemPair], bool],
    make: Callable[[], pki.PemPair],
) -> pki.PemPair:
    """Return the pair in the two files; it is made anew unless it is usable."""
    public, private = paths
    try:
        pair = pki.PemPair(public.read_bytes(), private.read_bytes())
    except FileNotFoundError:
        pass
    else:
        if is_usable(pair):
            return pair
    pair = make()
    # After a kill between the two the halves do not match, and the next start makes both again.
    files.write_atomic(private, pair.private)
    files.write_atomic(public, pair.public)
    return pair


def _first_token(folder: StateFolder, now: float) -> str:
    with tokenfile.locked(folder.tokens):
        try:
            store = tokenfile.read(folder.tokens)
        except FileNotFoundError:
            store = TokenStore()
        except ValueError as error:
            raise StartError(f"{folder.tokens} is damaged: {error}") from error
        token = _shown_before(folder)
        if token and store.authenticate(token, now):
            return token
        token, record = generate(user_name(), now, note="made by relay up")
        _add(folder, store, token, record)
    return token


def _add(folder: StateFolder, store: TokenStore, token: str, record: TokenRecord) -> None:
    # The token first: after a kill in between it is invalid and made anew, and no hash remains.
    files.write_atomic(folder.first_token, f"{token}\n".encode())
    tokenfile.write(folder.tokens, TokenStore((*store.records, record)))


def _shown_before(folder: StateFolder) -> str:
    try:
        return folder.first_token.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def user_name() -> str:
    """Return the operating system's name of this user; "relay" where it has none."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's uid without an entry in passwd
        return "relay"
    return name if is_name(name) else "relay"
