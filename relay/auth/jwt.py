"""JWTs of other issuers (RFC 7519): whose they are, as far as the configuration says so.

What a token may be is decided by the configuration alone; its header chooses among the keys that
are there, and says nothing else (RFC 8725). ``jwk``, ``jku``, ``x5u`` and ``x5c`` are never looked
at. PyJWT checks the signature; everything else is checked here, against the ``now`` that is passed
in.

    token = verifier.read(text)              # None: nothing of this issuer's
    key = keys.find(token.kid, token.algorithm)
    identity = verifier.verify(token, key, now)
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, Final, NamedTuple

import msgspec

from relay.auth.base64url import decode, is_canonical
from relay.auth.jwks import Key, read_object
from relay.auth.tokens import is_name
from relay.errors import Unauthorized
from relay.model import Identity, Principal

MAX_TOKEN: Final = 8192
"""Longest token that is looked at, in characters."""
MAX_LEEWAY: Final = 60.0
"""How far an issuer's clock and ours may be apart at the most, in seconds."""

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_HARMLESS_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_MAX_KID: Final = 255


class Issuer(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of one issuer's tokens."""

    name: str
    """What the configuration calls it; the authenticator of its principals."""
    issuer: str
    """``iss``, exactly."""
    audiences: frozenset[str]
    """One of them has to be in ``aud``, exactly."""
    algorithms: frozenset[str]
    types: frozenset[str]
    """What ``typ`` may be, in lower case and without ``application/``; none at all is ``jwt``."""
    required: frozenset[str]
    """Claims that must be there besides ``iss``, ``aud`` and ``exp``."""
    leeway: float
    """How far its clock may be from ours, in seconds; at most ``MAX_LEEWAY``."""
    user: str
    """The claim that names the user; dots lead into objects."""
    groups: str | None
    """The claim with the groups: a list, or one text. ``None``: it has none."""
    scopes: str | None
    """The claim with the scopes: a list, or a text with spaces. ``None``: tokens are not limited.
    """

    def __post_init__(self) -> None:
        """Refuse what would let in too much."""
        if not (self.audiences and self.algorithms and self.types):
            raise ValueError("an issuer needs an audience, an algorithm and a type")
        if not 0 <= self.leeway <= MAX_LEEWAY:
            raise ValueError(f"leeway is at most {MAX_LEEWAY:g} seconds")


class VerifiedJwt(NamedTuple):
    """A token in the one form that is accepted. Nobody has looked at its signature yet."""

    text: str
    kid: str | None
    algorithm: str
    claims: dict[str, Any]


class JwtVerifier:
    """Believes the tokens of one issuer."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    def read(self, text: str) -> VerifiedJwt | None:
        """Return the token in ``text``, or ``None`` for what does not claim to be this issuer's.

        Raises ``Unauthorized`` for what does and cannot be accepted, whatever is wrong with it.
        """
        if len(text) > MAX_TOKEN or not _claims_issuer(text, self._issuer.issuer):
            return None
        found = _COMPACT.fullmatch(text)
        if found is None or not all(map(is_canonical, found.groups())):
            raise _refused("it is malformed")
        try:
            header, claims = read_object(decode(found[1])), read_object(decode(found[2]))
        except ValueError:
            raise _refused("its header or its claims are malformed") from None
        return VerifiedJwt(text, self._kid(header), self._algorithm(header), claims)

    def verify(self, token: VerifiedJwt, key: Key | None, now: float) -> Identity:
        """Return who shows ``token``, signed with ``key``, at ``now`` (Unix seconds).

        Raises ``Unauthorized`` where anything is wrong. The identity ends when the token does, the
        leeway included.
        """
        if key is None:
            raise _refused("its key is unknown")
        if not key.verifies(token.text, token.algorithm):
            raise _refused("its signature is wrong")
        claims = token.claims
        if claims.get("iss") != self._issuer.issuer:
            raise _refused("it is from another issuer")
        if not self._issuer.audiences.intersection(_texts(claims.get("aud"))):
            raise _refused("it is for another audience")
        if "cnf" in claims:
            # Who shows it would have to prove that they hold a key too (RFC 7800, RFC 9449 §6).
            raise _refused("it is bound to a key")
        expires = self._check_times(claims, now)
        user = _claim(claims, self._issuer.user)
        if not isinstance(user, str) or not is_name(user):
            raise _refused("it names no user")
        return Identity(
            principal=Principal(self._issuer.name, user),
            via=self._issuer.name,
            groups=self._groups(claims),
            scopes=self._scopes(claims),
            expires=expires,
            credential=f"jwt:{_name(token)}",
        )

    def _algorithm(self, header: dict[str, Any]) -> str:
        algorithm, kind = header.get("alg"), header.get("typ", "JWT")
        if not isinstance(algorithm, str) or algorithm not in self._issuer.algorithms:
            raise _refused("its algorithm is not accepted")
        # A media type, hence without regard to case (RFC 7515 §4.1.9).
        if (
            not isinstance(kind, str)
            or kind.lower().removeprefix("application/") not in self._issuer.types
        ):
            raise _refused("its type is not accepted")
        if "crit" in header or "b64" in header:
            raise _refused("its header asks for an extension")
        return algorithm

    @staticmethod
    def _kid(header: dict[str, Any]) -> str | None:
        kid = header.get("kid")
        if kid is None and "kid" not in header:
            return None
        if not isinstance(kid, str) or len(kid) > _MAX_KID:
            raise _refused("its kid is malformed")
        return kid

    def _check_times(self, claims: dict[str, Any], now: float) -> float:
        """When it ends."""
        leeway = self._issuer.leeway
        times = {name: _time(claims, name) for name in ("exp", "nbf", "iat")}
        missing = {name for name in self._issuer.required if claims.get(name) is None}
        expires = times["exp"]
        if expires is None or missing:
            raise _refused(f"it lacks {', '.join(sorted(missing)) or 'exp'}")
        if not now < expires + leeway:
            raise _refused("it has expired")
        for name in ("nbf", "iat"):
            begins = times[name]
            if begins is not None and not begins - leeway <= now:
                raise _refused("it is not valid yet")
        return expires + leeway

    def _groups(self, claims: dict[str, Any]) -> frozenset[str]:
        if self._issuer.groups is None:
            return frozenset()
        return _names(_claim(claims, self._issuer.groups), "groups")

    def _scopes(self, claims: dict[str, Any]) -> frozenset[str]:
        """What it is limited to. Where there should be scopes and are none, it is for nothing."""
        if self._issuer.scopes is None:
            return frozenset()
        value = _claim(claims, self._issuer.scopes)
        if isinstance(value, str):
            value = [scope for scope in value.split(" ") if scope]
        scopes = _names(value, "scopes")
        if not scopes:
            raise _refused("it has no scopes")
        return scopes


def _claims_issuer(text: str, issuer: str) -> bool:
    """Tell whether any reader could find ``issuer`` in ``text``, as laxly as it may read."""
    _, _, rest = text.partition(".")
    segment = rest.partition(".")[0].rstrip("=")
    try:
        # Objects as lists of pairs, so that a repeated name is seen; pairs are the only tuples.
        members = json.loads(decode(segment), object_pairs_hook=list, parse_int=float)
    except (ValueError, RecursionError):
        return False
    return isinstance(members, list) and ("iss", issuer) in members


def _time(claims: dict[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 §2) if there is one; all numbers are floats here."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if not isinstance(value, float) or not math.isfinite(value):
        raise _refused(f"its {name} is no time")
    return value


def _claim(claims: dict[str, Any], path: str) -> object:
    """The claim of this very name, else what is where its dots lead; ``None`` for nothing."""
    if path in claims:
        return claims[path]
    found: object = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def _names(value: object, what: str) -> frozenset[str]:
    """A list of names, or one name. Raises ``Unauthorized`` for what could not be in a rule."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and is_name(each) for each in values):
        raise _refused(f"its {what} are malformed")
    return frozenset(values)


def _name(token: VerifiedJwt) -> str:
    """Names it in logs: its own id where that can be shown, else a hash.

    Of what was signed, not of the signature, which some algorithms let anybody rewrite.
    """
    own = token.claims.get("jti")
    if isinstance(own, str) and _HARMLESS_ID.fullmatch(own):
        return own
    return hashlib.sha256(token.text.rpartition(".")[0].encode()).hexdigest()[:16]


def _refused(why: str) -> Unauthorized:
    return Unauthorized(f"the token was refused: {why}")
