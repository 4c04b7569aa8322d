from __future__ import annotations

import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from relay import pki
from relay.cli.checks import findings_of
from tests.cli.checks.conftest import Place

DAY = 86_400.0
# On sect283r1, which no library makes any more (`openssl ecparam -name sect283r1 -genkey`).
STRANGE = b"""\
-----BEGIN CERTIFICATE-----
MIIBizCCASqgAwIBAgIUH7KrU9MHCG7J+qaIzJQLdDYRIWYwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzE3MDkzOVoYDzIxMjYxMDMw
MTcwOTM5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwXjAQBgcqhkjOPQIBBgUrgQQA
EQNKAAQG0K1xILrk/cEvcCAtvtqgto2g3HgqkwAI5eyZU1MDf/QZkpAEOSS4BtLK
tKLjfU34Jm3oeESaFiyLDuKsFJGgNbK9q+pUfIijUzBRMB0GA1UdDgQWBBRtNCfs
d4x8ZfCv60vIOqykx43FCzAfBgNVHSMEGDAWgBRtNCfsd4x8ZfCv60vIOqykx43F
CzAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA08AMEwCJAGTBPQEfOn4IE+/
y4cj/n04n3benWCllkg6Tk72t/v9H392ZAIkAZOGzL0RoDUF+XBQMGEW7DWfky5b
haLwtA1jVCJLie/iMRn2
-----END CERTIFICATE-----
"""


def test_good_files(place: Place, look: Any) -> None:
    place.with_tls()
    assert look(place.edge_config()) == look(place.agent_config()) == []


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("edge.pem", ["tls.certificate"]),
        ("edge.key", ["tls.key"]),
        ("ticket.key", ["ticket_key"]),
        ("tokens.json", ["authentication.tokens.file"]),
    ],
)
@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\xff\xfe"])
def test_files_that_cannot_be_used(
    place: Place, look: Any, name: str, paths: list[str], content: bytes | None
) -> None:
    if content is None:
        (place.folder / name).unlink()
    else:
        place.write(name, content)
    assert look(place.edge_config()) == [("error", path) for path in paths]


def test_an_expired_certificate(place: Place, look: Any) -> None:
    then = time.time() - 400 * DAY
    place.write_pair("edge", pki.new_server(place.authority, ["localhost"], then))
    assert look(place.edge_config()) == [("error", "tls.certificate")]


def test_a_certificate_of_tomorrow(place: Place, look: Any) -> None:
    then = time.time() + 2 * DAY
    place.write_pair("edge", pki.new_server(place.authority, ["localhost"], then))
    assert look(place.edge_config()) == [("error", "tls.certificate")]


def test_a_certificate_that_expires_soon(place: Place, look: Any) -> None:
    then = time.time() - 340 * DAY
    place.write_pair("edge", pki.new_server(place.authority, ["localhost"], then))
    assert look(place.edge_config()) == [("warning", "tls.certificate")]


def test_a_key_of_another_certificate(place: Place, look: Any) -> None:
    place.edge["tls"]["key"] = "agent.key"
    assert look(place.edge_config()) == [("error", "tls.key")]


def test_a_key_with_a_passphrase(place: Place, look: Any) -> None:
    key = load_pem_private_key((place.folder / "edge.key").read_bytes(), None)
    encrypted = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
    )
    place.write("edge.key", encrypted)
    (found,) = findings_of(place.edge_config())
    assert (found.severity, found.path) == ("error", "tls.key")
    assert "passphrase" in found.text


def test_weak_keys(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def weak(_curve: object) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point

    authority = place.authority
    monkeypatch.setattr(ec, "generate_private_key", weak)
    place.write_pair("edge", pki.new_server(authority, ["localhost"], time.time()))
    texts = [each.text for each in findings_of(place.edge_config())]
    assert [text for text in texts if "RSA with 1024 bits" in text]


def test_a_key_that_no_library_knows(place: Place) -> None:
    place.write("edge.pem", STRANGE)
    found = findings_of(place.edge_config())
    assert [each[:2] for each in found] == [("error", "tls.certificate"), ("error", "tls.key")]
    assert "edge.pem has a key of a kind that should not be used" in found[0].text
    assert "is not the key of" in found[1].text


@pytest.mark.parametrize("name", ["edge.key", "ticket.key", "tokens.json"])
@pytest.mark.parametrize(("mode", "warnings"), [(0o640, 0), (0o644, 1), (0o660, 1), (0o666, 2)])
def test_secrets_of_others(place: Place, look: Any, name: str, mode: int, warnings: int) -> None:
    (place.folder / name).chmod(mode)
    found = findings_of(place.edge_config())
    assert [each.severity for each in found] == ["warning"] * warnings
    assert all(name in each.text for each in found)


def test_secrets_in_a_folder_of_everybody(place: Place) -> None:
    place.folder.chmod(0o777)
    try:
        found = findings_of(place.edge_config())
    finally:
        place.folder.chmod(0o700)
    assert {each.path for each in found} == {
        *("tls.key", "ticket_key", "authentication.tokens.file"),
    }


def test_a_ticket_key_of_another_kind(place: Place, look: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    place.write("ticket.key", pem)
    assert look(place.edge_config()) == [("error", "ticket_key")]
