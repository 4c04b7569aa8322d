"""Keys that verify JWTs: their algorithms, and how a token's key is found.

A key serves one family of algorithms, which its type and the configuration decide, never a token
(RFC 8725 §3.1): a public key cannot serve as an HMAC secret, nor a key for RS256 verify PS256.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

SYMMETRIC: Final = ("HS256", "HS384", "HS512")
ASYMMETRIC: Final = (
    *("RS256", "RS384", "RS512"),
    *("PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512"),
    "EdDSA",
)
MIN_RSA: Final = 2048
MAX_RSA: Final = 8192
"""Bits of the longest accepted RSA key; a longer one costs too much at each use."""

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_JWS: Final = jwt.PyJWS(algorithms=[*SYMMETRIC, *ASYMMETRIC])
_TYPES: Final = {"oct": "HS256", "RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
"""For each ``kty`` (RFC 7518 §6.1) an algorithm of PyJWT that reads its keys."""

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey


@dataclass(frozen=True)
class Key:
    """One key, and the algorithms of one family that it may be used with."""

    kid: str | None
    algorithms: frozenset[str]
    material: PublicKey | bytes = field(repr=False)

    def verifies(self, text: str, algorithm: str) -> bool:
        """Whether this key signed ``text``, a JWS in compact form, with ``algorithm``."""
        if algorithm not in self.algorithms:
            return False
        try:
            _JWS.decode_complete(text, self.material, algorithms=[algorithm])
        except (jwt.PyJWTError, ValueError, TypeError):
            return False
        return True


class KeySet:
    """The keys of one issuer."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.keys = tuple(keys)

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key for a token with this ``kid``; ``None`` where there is none, or several.

        A key without a ``kid`` serves every ``kid`` that no other key has. A token without ``kid``
        needs the set to have exactly one key for its algorithm: keys are not tried in turn.
        """
        fitting = [key for key in self.keys if algorithm in key.algorithms]
        if kid is not None:
            named = [key for key in fitting if key.kid == kid]
            fitting = named or [key for key in fitting if key.kid is None]
        return fitting[0] if len(fitting) == 1 else None


def parse(
    document: bytes, algorithms: Collection[str], *, secrets: bool = False
) -> tuple[KeySet, list[str]]:
    """Read a JWK Set (RFC 7517 §5): its usable keys, and a message for each of the others.

    ``secrets`` allows HMAC secrets; a published set must not hold any. Raises ``ValueError`` where
    the document is not a JWK Set.
    """
    entries = read_object(document).get("keys")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it is not a JWK Set: it has no list of keys")
    keys: list[Key] = []
    problems: list[str] = []
    for number, entry in enumerate(entries):
        try:
            keys.append(_from_jwk(entry, algorithms, secrets=secrets))
        except ValueError as error:
            name = str(entry.get("kid", ""))[:64]
            problems.append(f"key {number} ({name!r}): {error}")
    return KeySet(keys), problems


def from_pem(pem: bytes, algorithms: Collection[str], kid: str | None) -> Key:
    """Read one public key in PEM. Raises ``ValueError`` for anything else, and for a weak key."""
    if pem.count(b"-----BEGIN ") != 1:
        raise ValueError("it is not one public key in PEM")
    try:
        material = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it is not one public key in PEM") from None
    return _bound(material, algorithms, kid, None)


def from_secret(secret: bytes, algorithms: Collection[str]) -> Key:
    """Make a key of an HMAC secret. Raises ``ValueError`` for a short one, or a key's text."""
    return _bound(secret, algorithms, None, None)


def read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object that every reader reads alike: UTF-8, no name twice, no NaN.

    All numbers become floats. Raises ``ValueError``. The standard library's decoder is used since
    it reports repeated names (their danger: RFC 8725 §2.4).
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=float,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if isinstance(value, dict):
        return value
    raise ValueError("it is not a JSON object")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice in it")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _from_jwk(entry: dict[str, Any], algorithms: Collection[str], *, secrets: bool) -> Key:
    kid, stated, operations = entry.get("kid"), entry.get("alg"), entry.get("key_ops", ["verify"])
    if not isinstance(kid, str | None) or not isinstance(stated, str | None):
        raise ValueError("its kid or its alg is not text")  # noqa: TRY004 - of the document
    if entry.get("use", "sig") != "sig" or not _holds(operations, "verify"):
        raise ValueError("it is not for signatures")
    kind = entry.get("kty")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError("its type is unknown")
    if kind == "oct" and not secrets:
        raise ValueError("it is a secret, and must not be published")
    if "d" in entry:
        raise ValueError("it is a private key")
    try:
        material = _JWS.get_algorithm_by_name(_TYPES[kind]).from_jwk(entry)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        raise ValueError("it is malformed") from None
    return _bound(material, algorithms, kid, stated)


def _holds(value: object, member: str) -> bool:
    return isinstance(value, list) and member in value


def _bound(
    material: object, configured: Collection[str], kid: str | None, stated: str | None
) -> Key:
    """Make a key with the configured algorithms that suit it. Raises ``ValueError``."""
    suitable = _suitable(material).intersection(configured)
    if stated is not None:
        suitable &= {stated}
    if not suitable:
        raise ValueError("it is for none of the algorithms that are configured")
    if len({algorithm[:2] for algorithm in suitable}) > 1:
        raise ValueError("it has no alg, and both RS and PS, which it fits, are configured")
    if isinstance(material, bytes):
        _check_secret(material, suitable)
    return Key(kid, suitable, material)  # type: ignore[arg-type]  # _suitable knows no others


def _suitable(material: object) -> frozenset[str]:
    """Return the algorithms for a key of this type and strength. Raises ``ValueError``."""
    match material:
        case bytes():
            return frozenset(SYMMETRIC)
        case RSAPublicKey():
            if not MIN_RSA <= material.key_size <= MAX_RSA:
                raise ValueError(f"it has {material.key_size} bits, not {MIN_RSA} to {MAX_RSA}")
            return frozenset(name for name in ASYMMETRIC if name[:2] in {"RS", "PS"})
        case EllipticCurvePublicKey() if material.curve.name in _CURVES:
            return frozenset({_CURVES[material.curve.name]})
        case Ed25519PublicKey() | Ed448PublicKey():
            return frozenset({"EdDSA"})
    raise ValueError("it is not RSA, nor on the curves P-256, P-384, P-521, Ed25519 or Ed448")


def _check_secret(secret: bytes, algorithms: Collection[str]) -> None:
    try:
        _JWS.get_algorithm_by_name("HS256").prepare_key(secret)
    except jwt.PyJWTError:
        raise ValueError("it is empty, or the text of another kind of key") from None
    # At least as long as the hash (RFC 7518 §3.2).
    needed = max(int(algorithm[2:]) // 8 for algorithm in algorithms)
    if len(secret) < needed:
        raise ValueError(f"it has {len(secret)} bytes; {max(algorithms)} needs {needed} or more")
