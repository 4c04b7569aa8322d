"""Checks of keys, certificates and other files: that they exist, are valid, and are private."""

from __future__ import annotations

import ssl
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from relay.cli.checks.finding import Finding, error, warning

_SOON: Final = timedelta(days=30)
_RSA_BITS: Final = 2048
_CURVE_BITS: Final = 256
_BROKEN: Final = (ValueError, TypeError, UnsupportedAlgorithm)


def read(path: str, name: str) -> tuple[bytes, list[Finding]]:
    """Return a file's content, or the finding that it cannot be read."""
    try:
        return Path(name).read_bytes(), []
    except OSError as problem:
        return b"", [error(path, f"{name}: {problem.strerror}")]


def secret(path: str, name: str) -> Iterator[Finding]:
    """Warn of a secret that other users may read or replace."""
    file = Path(name)
    try:
        mode, folder = file.stat().st_mode, file.absolute().parent.stat().st_mode
    except OSError:
        # Reported by the check that reads the file.
        return
    if not stat.S_ISREG(mode):
        return
    if mode & stat.S_IROTH:
        yield warning(path, f"{name} can be read by every user of this machine: chmod 600")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield warning(path, f"{name} can be changed by other users: chmod 600")
    if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:
        yield warning(path, f"every user can replace {name}, since its directory is open to all")


def pair(section: str, certificate: str, key: str) -> Iterator[Finding]:
    """Check a certificate with its private key."""
    chain, findings = _certificates(f"{section}.certificate", certificate)
    yield from findings
    data, findings = read(f"{section}.key", key)
    yield from findings
    if chain:
        yield from _validity(f"{section}.certificate", certificate, chain[0])
        yield from _strength(f"{section}.certificate", certificate, chain[0])
    if findings:
        return
    try:
        private = load_pem_private_key(data, password=None)
    except TypeError:
        yield error(f"{section}.key", f"{key} has a passphrase, which is not supported")
        return
    except _BROKEN as problem:
        yield error(f"{section}.key", f"{key} does not hold a private key in PEM: {problem}")
        return
    if chain and _public_key(chain[0]) != private.public_key():
        yield error(f"{section}.key", f"{key} is not the key of {certificate}")
    elif chain:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        except (OSError, ValueError) as problem:
            yield error(section, f"OpenSSL refuses certificate and key: {problem}")


def authorities(path: str, name: str) -> Iterator[Finding]:
    """Check a file of certificate authorities."""
    found, findings = _certificates(path, name)
    yield from findings
    for each in found:
        yield from _validity(path, name, each)


def issued(certificate: str, authority: str) -> bool:
    """Whether a certificate, with its chain, was issued by one of these authorities."""
    chain, _ = _certificates("", certificate)
    trusted, _ = _certificates("", authority)
    if not chain or not trusted:
        # Unreadable files are reported by other checks.
        return True
    current, others = chain[0], chain[1:]
    for _ in chain:
        if current in trusted or any(_issued_by(current, each) for each in trusted):
            return True
        following = next((each for each in others if _issued_by(current, each)), None)
        if following is None:
            return False
        current = following
    return False


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_BROKEN):
        return False
    return True


def _certificates(path: str, name: str) -> tuple[list[x509.Certificate], list[Finding]]:
    data, findings = read(path, name)
    if findings:
        return [], findings
    try:
        return x509.load_pem_x509_certificates(data), []
    except _BROKEN as problem:
        return [], [error(path, f"{name} does not hold a certificate in PEM: {problem}")]


def _validity(path: str, name: str, certificate: x509.Certificate) -> Iterator[Finding]:
    now = datetime.fromtimestamp(time.time(), UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if ends <= now:
        yield error(path, f"{name} has expired: {ends:%Y-%m-%d}")
    elif begins > now:
        yield error(path, f"{name} is not valid before {begins:%Y-%m-%d}")
    elif ends - now < _SOON:
        yield warning(path, f"{name} expires soon: {ends:%Y-%m-%d}")


def _public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    """Return the public key; ``None`` for obsolete kinds such as curves over binary fields."""
    try:
        return certificate.public_key()
    except _BROKEN:
        return None


def _strength(path: str, name: str, certificate: x509.Certificate) -> Iterator[Finding]:
    key = _public_key(certificate)
    if key is None:
        yield error(path, f"{name} has a key of a kind that should not be used")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_BITS:
        yield error(path, f"{name} is weak: RSA with {key.key_size} bits; at least {_RSA_BITS}")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < _CURVE_BITS:
        yield error(path, f"{name} is weak: a curve of {key.curve.key_size} bits")
    if isinstance(certificate.signature_hash_algorithm, hashes.MD5 | hashes.SHA1):
        yield error(path, f"{name} is signed with {certificate.signature_hash_algorithm.name}")
