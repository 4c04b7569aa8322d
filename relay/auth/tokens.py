"""Static tokens: shown once to the user, kept only as hashes.

A token carries 256 random bits, so a plain SHA-256 is enough: there is nothing to guess, and a
slow password hash would only be a way to keep the edge busy.
"""

from __future__ import annotations

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

MAX_USER = 255
"""Longest user name, in characters."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


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

    def __post_init__(self) -> None:
        """Refuse what could never authenticate, or would never stop to."""
        if not self.id:
            msg = "a token needs an id"
        elif _SHA256.fullmatch(self.hash) is None:
            msg = "a token's hash is 64 lower-case hex digits"
        elif not is_user_name(self.user):
            msg = f"a user name is 1 to {MAX_USER} printable characters, no space at its ends"
        elif not math.isfinite(self.created) or not math.isfinite(self.expires or 0.0):
            msg = "a token's times are finite"
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
        """Return whom ``token`` stands for at ``now`` (Unix seconds), or ``None``.

        Compares with every record to the end, each in constant time.
        """
        if not token.isascii():  # and never trip over a lone surrogate
            return None
        digest = _digest(token)
        found: TokenRecord | None = None
        for record in self.records:
            if hmac.compare_digest(record.hash, digest):
                found = record
        if found is None or not _is_alive(found, now):
            return None
        return Identity(
            principal=Principal(AUTHENTICATOR, found.user),
            via=AUTHENTICATOR,
            expires=math.inf if found.expires is None else found.expires,
            credential=found.id,
        )


def generate(
    user: str, now: float, *, note: str = "", lifetime: float | None = None
) -> tuple[str, TokenRecord]:
    """Make a new token for ``user``: the text to show once, and the record to keep.

    ``now`` is Unix time and ``lifetime`` a duration, both in seconds; without a lifetime the token
    does not expire. Raises ``ValueError`` for an impossible user name or lifetime.
    """
    if lifetime is not None and not 0 < lifetime < math.inf:
        raise ValueError("a token's lifetime is a positive number of seconds")
    token = PREFIX + secrets.token_urlsafe(32)
    record = TokenRecord(
        id=secrets.token_hex(6),
        hash=_digest(token),
        user=user,
        created=now,
        note=note,
        expires=None if lifetime is None else now + lifetime,
    )
    return token, record


def is_user_name(name: str) -> bool:
    """Tell whether ``name`` can be shown in logs and lists without misleading anybody."""
    return 0 < len(name) <= MAX_USER and name.isprintable() and name == name.strip()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _is_alive(record: TokenRecord, now: float) -> bool:
    return record.expires is None or now < record.expires
