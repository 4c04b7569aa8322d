"""Static tokens: shown once to the user, stored only as hashes.

A token has 256 random bits, so a plain SHA-256 is enough: it cannot be guessed, and a slow password
hash would only cost the edge time.

A *path token* is part of a URL's path (``/t/<token>/<cluster>/…``), for clients that cannot send a
header. It is not accepted in a header, nor a bearer token in a path: URLs are stored in more
places than headers.
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

from relay.model import MAX_NAME, Identity, Principal, is_name

AUTHENTICATOR = "token"
"""The authenticator of every principal of a static token."""

PREFIX = "relay_"
"""Lets secret scanners recognise a leaked token; it proves nothing."""


_SHA256 = re.compile(r"[0-9a-f]{64}")
_BYTES = 32
_PATH_TOKEN = re.compile(r"[a-z2-7]{52}")
_REWRITTEN = "http"
"""Jupyter's gateway client replaces this text by ``ws``, wherever it is in a URL."""


# An unknown field may be a restriction that a newer relay wrote; ignoring it would widen a token.
class TokenRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stored of a token. Raises ``ValueError`` for impossible values."""

    id: str
    """Names the token in lists and logs; not a secret."""
    hash: str
    """SHA-256 of the token, 64 lower-case hex digits."""
    user: str
    created: float
    """Unix time in seconds."""
    note: str = ""
    expires: float | None = None
    """Unix time in seconds from which the token is refused; ``None`` means never."""
    groups: tuple[str, ...] = ()
    """The groups that the user is a member of with this token."""
    scopes: tuple[str, ...] = ()
    """What the token is limited to; without any it is good for all that its user may do."""
    clusters: tuple[str, ...] | None = None
    """The clusters that the token is good for; ``None`` means all."""
    path: bool = False
    """Whether it is a path token."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a record that could never authenticate, or never expire."""
        if not self.id:
            msg = "a token needs an id"
        elif _SHA256.fullmatch(self.hash) is None:
            msg = "a token's hash is 64 lower-case hex digits"
        elif not is_name(self.user):
            msg = f"a user name is {_NAME_RULE}"
        elif not all(map(is_name, (*self.groups, *self.scopes, *(self.clusters or ())))):
            msg = f"a group, scope or cluster is {_NAME_RULE}"
        elif self.clusters == ():
            msg = "a token is good for at least one cluster"
        elif not math.isfinite(self.created) or not math.isfinite(self.expires or 0.0):
            msg = "a token's times are finite numbers"
        elif self.path and self.expires is None:
            msg = "a path token must expire"
        else:
            return
        raise ValueError(msg)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[TokenRecord, ...]


class TokenStore:
    """The tokens of a file; the time of a lookup reveals nothing about them."""

    def __init__(self, records: Iterable[TokenRecord] = ()) -> None:
        """Raise ``ValueError`` when two records share an id or a hash."""
        self.records = tuple(records)
        for values in ([r.id for r in self.records], [r.hash for r in self.records]):
            if len(set(values)) != len(values):
                raise ValueError("two tokens share an id or a hash")

    @classmethod
    def parse(cls, data: bytes) -> TokenStore:
        """Read what ``dump`` wrote: ``{"tokens": [record, ...]}``.

        Raises ``ValueError`` for anything else, an empty file included: a file whose writing was
        interrupted must not pass for a store without tokens.
        """
        return cls(msgspec.json.decode(data, type=_File).tokens)

    def dump(self) -> bytes:
        """Return the store as indented JSON; hashes only, but to be kept private."""
        return msgspec.json.format(msgspec.json.encode(_File(self.records)), indent=2) + b"\n"

    def authenticate(self, token: str, now: float) -> Identity | None:
        """Return the identity of a bearer token at ``now`` (Unix seconds), or ``None``.

        Compares with every record, each in constant time.
        """
        record = self._find(token, now)
        return None if record is None or record.path else _identity(record)

    def authenticate_path(self, token: str, now: float, max_lifetime: float) -> Identity | None:
        """As `authenticate`, for a path token made for at most ``max_lifetime`` seconds."""
        record = self._find(token, now)
        if record is None or not record.path or record.expires is None:
            return None
        return _identity(record) if record.expires - record.created <= max_lifetime else None

    def _find(self, token: str, now: float) -> TokenRecord | None:
        if not token.isascii():  # compare_digest and encode raise for other characters
            return None
        digest = _digest(token)
        found: TokenRecord | None = None
        for record in self.records:
            if hmac.compare_digest(record.hash, digest):
                found = record
        return found if found is not None and not has_expired(found, now) else None


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
    """Make a new token for ``user``: the text to show once, and the record to store.

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


_NAME_RULE = f"1 to {MAX_NAME} printable characters without a space at either end"


def is_path_token(text: str) -> bool:
    """Whether ``text`` has the form of a path token."""
    return _PATH_TOKEN.fullmatch(text) is not None


def has_expired(record: TokenRecord, now: float) -> bool:
    """Whether a token has expired at ``now`` (Unix seconds)."""
    # Written so that a NaN counts as expired: with it every comparison is false.
    return record.expires is not None and not now < record.expires


def _path_token() -> str:
    """Make lower-case letters and digits (base32, RFC 4648 §6): clients lower-case whole URLs."""
    while True:
        token = base64.b32encode(secrets.token_bytes(_BYTES)).decode().rstrip("=").lower()
        if _REWRITTEN not in token:
            return token


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
