"""Tickets, which the edge sends to an agent in place of the user's own token.

A ticket is a JWT (RFC 7519) of one fixed form: EdDSA over Ed25519, one issuer, one cluster, a
lifetime of seconds. Both ends are the relay's, so everything that does not have exactly that form
is refused, known attack or not (RFC 8725). PyJWT checks the signature; the claims are checked here,
against the ``now`` that is passed in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Annotated, Literal

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from relay.auth.base64url import decode, is_canonical
from relay.auth.policy import Action, Rights
from relay.errors import Forbidden, Unauthorized
from relay.model import Principal

ISSUER = "relay-edge"
ALGORITHM: Literal["EdDSA"] = "EdDSA"
TYPE: Literal["relay-ticket+jwt"] = "relay-ticket+jwt"
"""Explicit typing (RFC 8725 §3.11): no other JWT passes for a ticket."""
MAX_LIFETIME = 120.0
"""Seconds between ``iat`` and ``exp`` that are signed or accepted, at most."""
LEEWAY = 5.0
"""Seconds by which the clocks of edge and agent may differ."""
MAX_TICKET = 7168
"""Characters of the longest accepted ticket."""

# An Ed25519 signature is 64 bytes, hence 86 characters.
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})")
_JWS = jwt.PyJWS(algorithms=[ALGORITHM])


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """The client and its request, as far as an agent needs to know the client."""

    principal: Principal
    cluster: str
    kernel: str | None
    """The one kernel that the request is about; ``None`` for requests about no kernel."""
    rights: Rights
    """The client's rights, restricted to those that matter for this request."""
    max_kernels: int | None = None
    """Number of kernels that the client may have on this cluster; ``None`` means no limit."""
    request_id: str

    @property
    def is_admin(self) -> bool:
        """Whether the client may do to everybody's kernels what others may do to their own."""
        return Action.ADMIN in self.rights.kernelspecs

    def require(self, actions: Collection[Action], kernel: str | None) -> None:
        """Raise ``Forbidden`` unless the ticket is for one of ``actions`` on this ``kernel``.

        ``None`` is not a wildcard: a ticket without a kernel is not valid for any kernel, and one
        for a kernel is not valid for requests about none.
        """
        if not self.rights.restricted_to(actions) or kernel != self.kernel:
            raise Forbidden("the ticket is not for this request")


# Unknown fields are refused in both parts of a ticket: crit, b64, jwk, jku, x5u and nbf are among
# them, and a claim that a newer edge adds may be a restriction.
class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: Literal["EdDSA"]
    typ: Literal["relay-ticket+jwt"]
    kid: str


class _Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    iss: str
    aud: str
    sub: str
    iat: float
    exp: float
    kernel: str | None
    rights: dict[Action, frozenset[str] | None]
    max_kernels: Annotated[int, msgspec.Meta(ge=0)] | None
    request_id: str


class TicketSigner:
    """Signs tickets with the edge's private key."""

    def __init__(self, private_pem: bytes, issuer: str = ISSUER) -> None:
        """Raise ``ValueError`` unless ``private_pem`` is an unencrypted Ed25519 key."""
        self._key = _private_key(private_pem)
        self._issuer = issuer
        self.kid = _fingerprint(self._key.public_key())
        """First 16 hex digits of the SHA-256 of the public key's SubjectPublicKeyInfo in DER."""

    def sign(self, ticket: Ticket, now: float, lifetime: float) -> str:
        """Sign ``ticket``, valid from ``now`` (Unix seconds) for ``lifetime`` seconds.

        Raises ``ValueError`` for a lifetime outside 0 to ``MAX_LIFETIME``, for a principal that
        would be read back as another one, and for a ticket over ``MAX_TICKET`` characters.
        """
        if not 0 < lifetime <= MAX_LIFETIME:
            raise ValueError(f"a ticket's lifetime is between 0 and {MAX_LIFETIME:g} seconds")
        subject = str(ticket.principal)
        # Principal("a:b", "c") and Principal("a", "b:c") have the same text.
        if Principal.parse(subject) != ticket.principal:
            raise ValueError("an authenticator's name contains no colon")
        claims = _Claims(
            iss=self._issuer,
            aud=ticket.cluster,
            sub=subject,
            iat=now,
            exp=now + lifetime,
            kernel=ticket.kernel,
            rights=ticket.rights.kernelspecs,
            max_kernels=ticket.max_kernels,
            request_id=ticket.request_id,
        )
        payload = msgspec.json.encode(claims, order="deterministic")
        headers = {"kid": self.kid, "typ": TYPE}
        text = _JWS.encode(payload, self._key, algorithm=ALGORITHM, headers=headers)
        if len(text) > MAX_TICKET:
            raise ValueError("the names of kernelspecs in the rules are too many for a ticket")
        return text


class TicketVerifier:
    """Verifies tickets for one cluster, signed with one of the configured keys."""

    def __init__(self, public_pems: Sequence[bytes], cluster: str, issuer: str = ISSUER) -> None:
        """Raise ``ValueError`` without a key, and for a key that is not a public Ed25519 key."""
        keys = [_public_key(pem) for pem in public_pems]
        if not keys:
            raise ValueError("an agent needs at least one ticket key")
        self._keys = {_fingerprint(key): key for key in keys}
        self._cluster = cluster
        self._issuer = issuer

    @property
    def kids(self) -> frozenset[str]:
        """The names of the configured keys, as `TicketSigner.kid`."""
        return frozenset(self._keys)

    def verify(self, text: str, now: float) -> Ticket:
        """Return the ticket in ``text`` if it is valid at ``now`` (Unix seconds).

        Raises ``Unauthorized`` for everything else, whatever ``text`` contains.
        """
        claims = self._signed_claims(text)
        if claims.iss != self._issuer or claims.aud != self._cluster:
            raise _refused("it is for another cluster, or from another issuer")
        _check_times(claims.iat, claims.exp, now)
        try:
            principal = Principal.parse(claims.sub)
        except ValueError:
            raise _refused("its subject is malformed") from None
        return Ticket(
            principal=principal,
            cluster=claims.aud,
            kernel=claims.kernel,
            rights=Rights(claims.rights),
            max_kernels=claims.max_kernels,
            request_id=claims.request_id,
        )

    def _signed_claims(self, text: str) -> _Claims:
        """Return the claims of a ticket whose form and signature are valid."""
        header = _header(text)
        key = self._keys.get(header.kid)
        if key is None:
            raise _refused("its key is unknown")
        try:
            payload = _JWS.decode_complete(text, key, algorithms=[ALGORITHM])["payload"]
            return msgspec.json.decode(payload, type=_Claims)
        except (jwt.PyJWTError, ValueError):  # msgspec's errors are ValueErrors
            raise _refused("its signature or its claims are wrong") from None


def _header(text: str) -> _Header:
    """Return the header, not verified yet, of a ticket in the one canonical encoding."""
    found = _COMPACT.fullmatch(text) if len(text) <= MAX_TICKET else None
    if found is None or not all(map(is_canonical, found.groups())):
        raise _refused("it is malformed")
    try:
        return msgspec.json.decode(decode(found[1]), type=_Header)
    except ValueError:
        raise _refused("its header is not a ticket's") from None


def _check_times(issued: float, expires: float, now: float) -> None:
    # Each condition states what must hold: with a NaN every comparison is false.
    if not 0 < expires - issued <= MAX_LIFETIME:
        raise _refused("its lifetime is too long")
    if not issued - LEEWAY <= now < expires + LEEWAY:
        raise _refused("it has expired, or the clocks of edge and agent disagree")


def _refused(why: str) -> Unauthorized:
    return Unauthorized(f"the ticket was refused: {why}")


def _fingerprint(key: Ed25519PublicKey) -> str:
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()[:16]


def _private_key(pem: bytes) -> Ed25519PrivateKey:
    key: object = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = serialization.load_pem_private_key(pem, password=None)
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise ValueError("the ticket key is not an unencrypted Ed25519 private key in PEM")


def _public_key(pem: bytes) -> Ed25519PublicKey:
    key: object = None
    with suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_pem_public_key(pem)
    if isinstance(key, Ed25519PublicKey):
        return key
    raise ValueError("a ticket key is not an Ed25519 public key in PEM")
