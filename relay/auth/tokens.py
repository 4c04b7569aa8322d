"""Static tokens: shown once to the user, kept only as hashes.

A token carries 256 random bits, so a plain SHA-256 is enough: there is nothing to guess, and a
slow password hash would only be a way to keep the edge busy.

A *path token* goes into a URL's path (``/t/<token>/<cluster>/…``), for clients that can send no
header. It is no bearer token, and no bearer token is one: URLs end up in more places than headers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Iterable

import msgspec

from relay.model import Identity, Principal

AUTHENTICATOR = "token"
"""The authenticator half of every principal that a static token makes."""

PREFIX = "relay_"
"""Lets secret scanners recognise a leaked token; proves nothing."""

MAX_NAME = 255
"""Longest name of a user, group or scope, and longest note, in characters."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BYTES = 32
_PATH_TOKEN = re.compile(r"[a-z2-7]{52}")
_REWRITTEN = "http"
"""Jupyter's gateway client puts ``ws`` in its place, wherever in a URL it is."""


# An unknown field may be a restriction that a newer relay wrote: ignoring it would widen a token.
class TokenRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a token. Raises ``ValueError`` when made with impossible values."""

    id: str
    """Names the token in lists and logs; no secret."""
    hash: str
    """SHA-256 of the token, 64 lower-case hex digits."""
    user: str
    created: float
    """Unix time in seconds."""
    note: str = ""
    expires: float | None = None
    """Unix time in seconds from which on the token is refused; ``None`` for never."""
    groups: tuple[str, ...] = ()
    """The groups that its user is in when showing it."""
    scopes: tuple[str, ...] = ()
    """What it is limited to; without any it is good for all that its user may do."""
    clusters: tuple[str, ...] | None = None
    """The clusters that it is good for; ``None`` for all."""
    path: bool = False
    """Whether it is a path token."""

    def __post_init__(self) -> None:
        """Refuse what could never authenticate, or would never stop to."""
        if not self.id:
            msg = "a token needs an id"
        elif _SHA256.fullmatch(self.hash) is None:
            msg = "a token's hash is 64 lower-case hex digits"
        elif not is_name(self.user):
            msg = f"a user name is {_A_NAME}"
        elif not all(map(is_name, (*self.groups, *self.scopes, *(self.clusters or ())))):
            msg = f"a group, scope or cluster is {_A_NAME}"
        elif self.clusters == ():
            msg = "a token is good for one cluster at least"
        elif not math.isfinite(self.created) or not math.isfinite(self.expires or 0.0):
            msg = "a token's times are finite"
        elif self.path and self.expires is None:
            msg = "a path token expires"
        else:
            return
        raise ValueError(msg)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[TokenRecord, ...]


class TokenStore:
    """The tokens of a file, looked up in a time that tells nothing about them."""

    def __init__(self, records: Iterable[TokenRecord] = ()) -> None:
        """Raise ``ValueError`` when two records share an id or a hash."""
        self.records = tuple(records)
        for values in ([r.id for r in self.records], [r.hash for r in self.records]):
            if len(set(values)) != len(values):
                raise ValueError("two tokens share an id or a hash")

    @classmethod
    def parse(cls, data: bytes) -> TokenStore:
        """Read what ``dump`` wrote: ``{"tokens": [record, ...]}``.

        Raises ``ValueError`` for anything else, an empty file included: a torn write must not pass
        for a store without tokens.
        """
        return cls(msgspec.json.decode(data, type=_File).tokens)

    def dump(self) -> bytes:
        """Return the store as JSON, one indented object, to be kept private all the same."""
        return msgspec.json.format(msgspec.json.encode(_File(self.records)), indent=2) + b"\n"

    def authenticate(self, token: str, now: float) -> Identity | None:
        """Return whom the bearer token stands for at ``now`` (Unix seconds), or ``None``.

        Compares with every record to the end, each in constant time.
        """
        record = self._find(token, now)
        return None if record is None or record.path else _identity(record)

    def authenticate_path(self, token: str, now: float, max_lifetime: float) -> Identity | None:
        """As `authenticate` for a path token; one made for over ``max_lifetime`` s is none."""
        record = self._find(token, now)
        if record is None or not record.path or record.expires is None:
            return None
        return _identity(record) if record.expires - record.created <= max_lifetime else None

    def _find(self, token: str, now: float) -> TokenRecord | None:
        if not token.isascii():  # and never trip over a lone surrogate
            return None
        digest = _digest(token)
        found: TokenRecord | None = None
        for record in self.records:
            if hmac.compare_digest(record.hash, digest):
                found = record
        return found if found is not None and is_alive(found, now) else None


def _identity(record: TokenRecord) -> Identity:
    return Identity(
        principal=Principal(AUTHENTICATOR, record.user),
        via=AUTHENTICATOR,
        groups=frozenset(record.groups),
        scopes=frozenset(record.scopes),
        clusters=None if record.clusters is None else frozenset(record.clusters),
        expires=math.inf if record.expires is None else record.expires,
        credential=record.id,
    )


def generate(
    user: str,
    now: float,
    *,
    note: str = "",
    lifetime: float | None = None,
    groups: Iterable[str] = (),
    scopes: Iterable[str] = (),
    clusters: Iterable[str] | None = None,
    path: bool = False,
) -> tuple[str, TokenRecord]:
    """Make a new token for ``user``: the text to show once, and the record to keep.

    ``now`` is Unix time and ``lifetime`` a duration, both in seconds; without a lifetime the token
    does not expire. Raises ``ValueError`` for impossible names, notes and lifetimes, and for a
    path token without a lifetime.
    """
    if lifetime is not None and not 0 < lifetime < math.inf:
        raise ValueError("a token's lifetime is a positive number of seconds")
    if not note.isprintable() or len(note) > MAX_NAME:
        raise ValueError(f"a note is at most {MAX_NAME} printable characters")
    token = _path_token() if path else PREFIX + secrets.token_urlsafe(_BYTES)
    record = TokenRecord(
        id=secrets.token_hex(6),
        hash=_digest(token),
        user=user,
        created=now,
        note=note,
        expires=None if lifetime is None else now + lifetime,
        groups=tuple(dict.fromkeys(groups)),
        scopes=tuple(dict.fromkeys(scopes)),
        clusters=None if clusters is None else tuple(dict.fromkeys(clusters)),
        path=path,
    )
    return token, record


_A_NAME = f"1 to {MAX_NAME} printable characters, no space at its ends"


def is_name(name: str) -> bool:
    """Tell whether ``name`` can be shown in logs and lists without misleading anybody."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()


def is_path_token(text: str) -> bool:
    """Tell whether ``text`` looks like a path token."""
    return _PATH_TOKEN.fullmatch(text) is not None


def is_alive(record: TokenRecord, now: float) -> bool:
    """Tell whether a token has not expired at ``now`` (Unix seconds)."""
    return record.expires is None or now < record.expires


def _path_token() -> str:
    """Lower-case letters and digits (base32, RFC 4648 §6): clients lower-case whole URLs."""
    while True:
        token = base64.b32encode(secrets.token_bytes(_BYTES)).decode().rstrip("=").lower()
        if _REWRITTEN not in token:
            return token


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
