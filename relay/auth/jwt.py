"""JWTs of configured issuers (RFC 7519): verification, and the identity that a token proves.

The configuration alone decides what a token may be; a token's header only selects among the
configured keys (RFC 8725). ``jwk``, ``jku``, ``x5u`` and ``x5c`` are ignored. PyJWT checks the
signature; everything else is checked here, against the ``now`` that is passed in.

    token = verifier.read(text)              # None: not a token of this issuer
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
from relay.errors import Unauthorized
from relay.model import Identity, Principal, is_name

MAX_TOKEN: Final = 8192
"""Characters of the longest accepted token."""
MAX_LEEWAY: Final = 60.0
"""Seconds by which an issuer's clock may differ from ours, at most."""

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_HARMLESS_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_MAX_KID: Final = 255


class Issuer(msgspec.Struct, frozen=True, kw_only=True):
    """The requirements on one issuer's tokens."""

    name: str
    """The authenticator's name in the configuration, and of its principals."""
    issuer: str
    """The value of ``iss``, compared exactly."""
    audiences: frozenset[str]
    """One of them must be in ``aud``, compared exactly."""
    algorithms: frozenset[str]
    types: frozenset[str]
    """Accepted values of ``typ``, in lower case without ``application/``; a missing one is ``jwt``.
    """
    required: frozenset[str]
    """Claims that a token must have besides ``iss``, ``aud`` and ``exp``."""
    leeway: float
    """Seconds by which its clock may differ from ours; at most ``MAX_LEEWAY``."""
    user: str
    """The claim with the user's name; dots lead into objects."""
    groups: str | None
    """The claim with the groups: a list, or one text. ``None``: there are no groups."""
    scopes: str | None
    """The claim with the scopes: a list, or a text with spaces. ``None``: tokens are not limited.
    """

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where tokens for other services would be accepted."""
        if not (self.audiences and self.algorithms and self.types):
            raise ValueError("an issuer needs an audience, an algorithm and a type")
        if not 0 <= self.leeway <= MAX_LEEWAY:
            raise ValueError(f"leeway is at most {MAX_LEEWAY:g} seconds")


class ParsedJwt(NamedTuple):
    """A token in the one accepted form; its signature and its claims are not verified yet."""

    text: str
    kid: str | None
    algorithm: str
    claims: dict[str, Any]


class JwtVerifier:
    """Verifies the tokens of one issuer."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    def read(self, text: str) -> ParsedJwt | None:
        """Parse the token in ``text``; ``None`` where it does not name this issuer.

        Raises ``Unauthorized`` where it names this issuer but cannot be accepted.
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
        return ParsedJwt(text, self._kid(header), self._algorithm(header), claims)

    def verify(self, token: ParsedJwt, key: Key | None, now: float) -> Identity:
        """Return the identity that ``token``, signed with ``key``, proves at ``now`` (Unix time).

        Raises ``Unauthorized`` where any check fails. The identity expires with the token, the
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
            # Its sender would have to prove that it holds a key too (RFC 7800, RFC 9449 §6).
            raise _refused("it is bound to a key")
        expires = self._check_times(claims, now)
        user = _claim(claims, self._issuer.user)
        if not isinstance(user, str) or not is_name(user):
            raise _refused("its user claim is missing or malformed")
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
        """Check exp, nbf and iat; return the Unix time at which the token expires."""
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
        """Return the token's scopes; a token without the scopes that it should have is refused."""
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
    """Whether any reader, however lenient, could find ``issuer`` in ``text``."""
    _, _, rest = text.partition(".")
    segment = rest.partition(".")[0].rstrip("=")
    try:
        # Objects become lists of pairs, so that repeated names are seen; pairs are the only tuples.
        members = json.loads(decode(segment), object_pairs_hook=list, parse_int=float)
    except (ValueError, RecursionError):
        return False
    return isinstance(members, list) and ("iss", issuer) in members


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Return a NumericDate (RFC 7519 §2) if there is one; all numbers are floats here."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if not isinstance(value, float) or not math.isfinite(value):
        raise _refused(f"its {name} is not a time")
    return value


def _claim(claims: dict[str, Any], path: str) -> object:
    """Return the claim with exactly this name, else what its dots lead to; ``None`` if absent."""
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
    """Read a list of names, or one name. Raises ``Unauthorized`` for what no rule could name."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and is_name(each) for each in values):
        raise _refused(f"its {what} are malformed")
    return frozenset(values)


def _name(token: ParsedJwt) -> str:
    """Name the token for logs: by its id where that is harmless, else by a hash.

    The hash is of what was signed, not of the signature, which some algorithms let anyone rewrite.
    """
    own = token.claims.get("jti")
    if isinstance(own, str) and _HARMLESS_ID.fullmatch(own):
        return own
    return hashlib.sha256(token.text.rpartition(".")[0].encode()).hexdigest()[:16]


def _refused(why: str) -> Unauthorized:
    return Unauthorized(f"the token was refused: {why}")
