"""Clients that prove who they are by a certificate (mTLS), by the name that they connect to.

Under every other name no certificate is asked for: a request for one makes browsers ask people, and
some clients fail.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.config import MtlsSettings, TlsSettings
from relay.model import Identity, Principal, is_name

log = structlog.get_logger(__name__)

AUTHENTICATOR: Final = "mtls"
"""The name under which policies know it."""


class ClientCertificates:
    """The names under which certificates are asked for."""

    def __init__(self, tls: TlsSettings, names: Mapping[str, MtlsSettings]) -> None:
        """Raise ``OSError`` and ``ValueError`` for an authority that cannot be read."""
        self._settings = dict(names)
        self._contexts = {name: _context(tls, settings) for name, settings in names.items()}

    def __bool__(self) -> bool:
        return bool(self._contexts)

    def context(self, name: str | None) -> ssl.SSLContext | None:
        """How to speak to a client that asked for ``name``; ``None``: as to everybody."""
        return None if name is None else self._contexts.get(name)

    def identify(self, name: str, certificate: bytes) -> Identity | None:
        """Who a verified certificate (DER) says it is, under ``name``; ``None``: nobody we know."""
        settings = self._settings[name]
        found = x509.load_der_x509_certificate(certificate)
        values = _READERS[settings.user_from](found)
        if len(values) != 1:
            log.info(
                "client_certificate_without_user", user_from=settings.user_from, values=len(values)
            )
            return None
        (user,) = values
        if settings.users is not None:
            user = settings.users.get(user, "")
        if not is_name(user):
            log.info("client_certificate_without_user", user_from=settings.user_from)
            return None
        return Identity(
            principal=Principal(AUTHENTICATOR, user),
            via=AUTHENTICATOR,
            expires=found.not_valid_after_utc.timestamp(),
            credential=f"certificate {found.serial_number:x}",
        )


def _context(tls: TlsSettings, settings: MtlsSettings) -> ssl.SSLContext:
    context = server_context(tls)
    context.load_verify_locations(settings.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    # A session that is resumed shows its certificate no more: without tickets there are none.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    return context


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """TLS as the edge speaks it. Raises ``OSError`` and ``ValueError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(Path(settings.certificate), Path(settings.key))
    return context


def _common_names(found: x509.Certificate) -> list[str]:
    return [str(each.value) for each in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def _whole_name(found: x509.Certificate) -> list[str]:
    return [found.subject.rfc4514_string()]


def _alternatives(
    kind: type[x509.UniformResourceIdentifier | x509.RFC822Name | x509.DNSName],
) -> Callable[[x509.Certificate], list[str]]:
    def values(found: x509.Certificate) -> list[str]:
        try:
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return []
        return names.value.get_values_for_type(kind)

    return values


_READERS: Final[Mapping[str, Callable[[x509.Certificate], list[str]]]] = {
    "subject-cn": _common_names,
    "subject-dn": _whole_name,
    "san-uri": _alternatives(x509.UniformResourceIdentifier),
    "san-email": _alternatives(x509.RFC822Name),
    "san-dns": _alternatives(x509.DNSName),
}
