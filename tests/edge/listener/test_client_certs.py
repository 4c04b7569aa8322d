from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from relay.config import MtlsSettings, TlsSettings
from relay.edge.listener.client_certs import ClientCertificates
from relay.model import Principal

NAME = "robots.example"
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    ca = trustme.CA()
    ca.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "junk.pem").write_text("junk")
    return folder


def certificates(files: Path, **settings: Any) -> ClientCertificates:
    server = str(files / "server.pem")
    return ClientCertificates(
        TlsSettings(certificate=server, key=server),
        {NAME: MtlsSettings(**{"ca": str(files / "ca.pem"), **settings})},
    )


def certificate(
    names: tuple[str, ...] = ("ada",), alternatives: tuple[x509.GeneralName, ...] = ()
) -> bytes:
    """What an authority would sign; nobody looks at its signature here."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(255)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


ALTERNATIVES = (
    x509.UniformResourceIdentifier("spiffe://example/ada"),
    x509.RFC822Name("ada@example"),
    x509.DNSName("ada.example"),
)


@pytest.mark.parametrize(
    ("user_from", "user"),
    [
        ("subject-cn", "ada"),
        ("subject-dn", "CN=ada"),
        ("san-uri", "spiffe://example/ada"),
        ("san-email", "ada@example"),
        ("san-dns", "ada.example"),
    ],
)
def test_what_of_a_certificate_is_the_user(files: Path, user_from: str, user: str) -> None:
    found = certificates(files, user_from=user_from).identify(
        NAME, certificate(alternatives=ALTERNATIVES)
    )
    assert found is not None
    assert (found.principal, found.via) == (Principal("mtls", user), "mtls")
    assert found.expires == (NOW + timedelta(days=1)).timestamp()
    assert found.credential == "certificate ff"


@pytest.mark.parametrize(
    ("user_from", "der"),
    [
        ("subject-cn", certificate(())),
        ("subject-cn", certificate(("ada", "root"))),
        ("subject-cn", certificate(("ada\x00root",))),
        ("subject-cn", certificate((" ada",))),
        ("subject-cn", certificate(("ada\u202eroot",))),
        ("subject-dn", certificate(())),
        ("san-uri", certificate()),
        ("san-email", certificate(alternatives=ALTERNATIVES[:1])),
        ("san-dns", certificate(alternatives=(x509.DNSName("a"), x509.DNSName("b")))),
    ],
)
def test_a_certificate_that_names_nobody_or_several(
    files: Path, user_from: str, der: bytes
) -> None:
    assert certificates(files, user_from=user_from).identify(NAME, der) is None


def test_users_by_what_their_certificates_say(files: Path) -> None:
    known = certificates(files, users={"ada": "lovelace"})
    found = known.identify(NAME, certificate())
    assert found is not None
    assert found.principal.subject == "lovelace"
    # Exactly: no case is folded, nothing is a part.
    for name in ("Ada", "ada2", "lovelace", "ad"):
        assert known.identify(NAME, certificate((name,))) is None


def test_a_certificate_is_asked_for_by_exact_name_only(files: Path) -> None:
    known = certificates(files)
    for name in (None, "", "example", "x.robots.example", "robots.example.", "robots"):
        assert known.context(name) is None
    context = known.context(NAME)
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not ClientCertificates(TlsSettings(certificate="", key=""), {})


@pytest.mark.parametrize("ca", ["absent.pem", "junk.pem"])
def test_an_authority_that_cannot_be_read(files: Path, ca: str) -> None:
    with pytest.raises(OSError, match=r".+"):
        certificates(files, ca=str(files / ca))
