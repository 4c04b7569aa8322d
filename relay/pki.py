"""Keys and certificates that `relay up` makes: a CA, a server certificate, a ticket key pair.

Everything here maps bytes to bytes, with the time passed in; the supervisor writes the files.
Extensions follow RFC 5280 closely enough for OpenSSL's ``X509_V_FLAG_X509_STRICT``, which
Python 3.13 turns on for every client.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
SERVER_LIFETIME: Final = timedelta(days=365)
RENEW_BEFORE: Final = timedelta(days=30)
_CLOCK_SKEW: Final = timedelta(hours=1)

_PrivateKey = ec.EllipticCurvePrivateKey


class PemPair(msgspec.Struct, frozen=True):
    """A certificate or a bare public key, and its private key, both in PEM."""

    public: bytes
    private: bytes


def new_authority(now: float) -> PemPair:
    """Make a CA that may sign server certificates and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("kernel relay local CA")
    certificate = (
        _builder(name, name, key, now, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def new_server(authority: PemPair, names: Iterable[str], now: float) -> PemPair:
    """Make a server certificate for these host names and addresses, signed by the CA."""
    issuer, issuer_key = _read(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = min(SERVER_LIFETIME, issuer.not_valid_after_utc - _time(now))
    certificate = (
        _builder(issuer.subject, _name("kernel relay"), key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return _pair(certificate, key)


def authority_is_usable(authority: PemPair, now: float) -> bool:
    """Whether the CA is readable, complete and valid for another `RENEW_BEFORE`."""
    try:
        certificate, key = _read(authority)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return certificate.public_key() == key.public_key() and _is_valid(certificate, now)


def server_is_usable(server: PemPair, authority: PemPair, names: Iterable[str], now: float) -> bool:
    """Whether the certificate is this CA's, for exactly these names, and valid for 30 days more."""
    try:
        certificate, key = _read(server)
        certificate.verify_directly_issued_by(_read(authority)[0])
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.ExtensionNotFound,
    ):
        return False
    return (
        certificate.public_key() == key.public_key()
        and set(extension.value) == set(_alternatives(names))
        and _is_valid(certificate, now)
    )


def new_ticket_keys() -> PemPair:
    """Make an Ed25519 key pair: the edge signs tickets with it, agents verify them."""
    key = ed25519.Ed25519PrivateKey.generate()
    return PemPair(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def ticket_keys_are_usable(keys: PemPair) -> bool:
    """Whether both halves are readable and belong together."""
    try:
        private = load_pem_private_key(keys.private, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return isinstance(private, ed25519.Ed25519PrivateKey) and public == keys.public


def _builder(
    issuer: x509.Name, subject: x509.Name, key: _PrivateKey, now: float, lifetime: timedelta
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now) - _CLOCK_SKEW)
        .not_valid_after(_time(now) + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    return [_alternative(name) for name in dict.fromkeys(names)]


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _time(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)


def _is_valid(certificate: x509.Certificate, now: float) -> bool:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins <= _time(now) and ends - _time(now) >= RENEW_BEFORE


def _pair(certificate: x509.Certificate, key: _PrivateKey) -> PemPair:
    return PemPair(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _read(pair: PemPair) -> tuple[x509.Certificate, _PrivateKey]:
    """Parse a pair. Raises ``ValueError`` or ``TypeError`` where it is damaged."""
    key = load_pem_private_key(pair.private, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic curve key")
    return x509.load_pem_x509_certificate(pair.public), key
