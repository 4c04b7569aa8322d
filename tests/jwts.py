"""An issuer of JWTs that signs anything: right ones, wrong ones, and what is hardly one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

NOW: Final = 1_800_000_000.0
ISSUER: Final = "https://login.example.org/realms/one"
SECRET: Final = bytes(range(128, 192))

PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey
)
Sign: TypeAlias = Callable[[bytes], bytes]
_HASHES: Final = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES: Final = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def private_key(algorithm: str, name: str = "") -> PrivateKey:
    """A key for an algorithm; the same one for the same ``name``."""
    # Making an RSA key takes long.
    return _generate("RSA" if algorithm[:2] in {"RS", "PS"} else algorithm, name)


@cache
def _generate(kind: str, _name: str) -> PrivateKey:
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    if kind == "EdDSA":
        return Ed25519PrivateKey.generate()
    return ec.generate_private_key(_CURVES[kind])


def signer(algorithm: str, name: str = "") -> Sign:
    """What signs with ``algorithm`` and the key of that ``name``."""
    if algorithm.startswith("HS"):
        return hmac_signer(SECRET, algorithm)
    key = private_key(algorithm, name)

    def sign(message: bytes) -> bytes:
        if isinstance(key, Ed25519PrivateKey | Ed448PrivateKey):
            return key.sign(message)
        digest = _HASHES[algorithm[2:]]
        if isinstance(key, ec.EllipticCurvePrivateKey):
            size = (key.curve.key_size + 7) // 8
            r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if algorithm.startswith("PS"):
            salted = padding.PSS(padding.MGF1(digest), digest.digest_size)
            return key.sign(message, salted, digest)
        return key.sign(message, padding.PKCS1v15(), digest)

    return sign


def hmac_signer(secret: bytes, algorithm: str = "HS256") -> Sign:
    """What signs with a secret, of any length and origin."""
    digest = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}[algorithm[2:]]
    return lambda message: hmac.new(secret, message, digest).digest()


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def jwk(key: PrivateKey | bytes, **members: Any) -> dict[str, Any]:
    """The public half of a key, or a secret, as a JWK."""
    if isinstance(key, bytes):
        return {"kty": "oct", "k": b64(key), **members}
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        n, e = (b64(_bytes(number)) for number in (numbers.n, numbers.e))
        return {"kty": "RSA", "n": n, "e": e, **members}
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        point = key.public_key().public_numbers()
        x, y = (b64(number.to_bytes(size, "big")) for number in (point.x, point.y))
        return {"kty": "EC", "crv": f"P-{key.curve.key_size}", "x": x, "y": y, **members}
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    curve = "Ed25519" if isinstance(key, Ed25519PrivateKey) else "Ed448"
    return {"kty": "OKP", "crv": curve, "x": b64(raw), **members}


def jwk_set(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


def header(algorithm: str = "RS256", /, **changes: Any) -> dict[str, Any]:
    """A good header but for ``changes``; ``...`` takes a member away."""
    return _changed({"alg": algorithm, "typ": "JWT", "kid": "one"}, changes)


def claims(now: float = NOW, /, **changes: Any) -> dict[str, Any]:
    """Good claims but for ``changes``; ``...`` takes one away."""
    good = {
        "iss": ISSUER,
        "aud": "relay",
        "sub": "alice",
        "exp": now + 300,
        "nbf": now,
        "iat": now,
        "jti": "j-1",
    }
    return _changed(good, changes)


def _changed(good: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


def token(
    header: dict[str, Any] | bytes, claims: dict[str, Any] | bytes, sign: Sign | None = None
) -> str:
    """A token in compact form; by default signed with RS256."""
    parts = [
        part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)
    ]
    message = ".".join(map(b64, parts))
    return f"{message}.{b64((sign or signer('RS256'))(message.encode()))}"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
