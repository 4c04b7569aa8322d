from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay import pki

NOW = 1_800_000_000.0
DAY = 86_400.0
NAMES = ("localhost", "127.0.0.1", "::1", "box")


@pytest.fixture(scope="module")
def authority() -> pki.PemPair:
    return pki.new_authority(NOW)


@pytest.fixture(scope="module")
def server(authority: pki.PemPair) -> pki.PemPair:
    return pki.new_server(authority, NAMES, NOW)


def read(pair: pki.PemPair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.public)


def test_the_names_are_in_the_certificate(server: pki.PemPair) -> None:
    names = read(server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "box"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]


def test_what_the_keys_are_for(authority: pki.PemPair, server: pki.PemPair) -> None:
    ca, leaf = read(authority), read(server)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == (
        x509.BasicConstraints(ca=True, path_length=0)
    )
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


def test_lifetimes(authority: pki.PemPair, server: pki.PemPair) -> None:
    ca, leaf = read(authority), read(server)
    assert ca.not_valid_after_utc.timestamp() == NOW + 3650 * DAY
    assert leaf.not_valid_after_utc.timestamp() == NOW + 365 * DAY
    assert ca.not_valid_before_utc.timestamp() < NOW


def test_a_server_does_not_outlive_its_authority(authority: pki.PemPair) -> None:
    late = pki.new_server(authority, NAMES, NOW + 3600 * DAY)
    assert read(late).not_valid_after_utc == read(authority).not_valid_after_utc


def test_ours_serve(authority: pki.PemPair, server: pki.PemPair) -> None:
    assert pki.authority_is_usable(authority, NOW)
    assert pki.server_is_usable(server, authority, NAMES, NOW)
    assert pki.server_is_usable(server, authority, reversed(NAMES), NOW)


@pytest.mark.parametrize(("days", "serves"), [(334.9, True), (335.1, False), (366, False)])
def test_a_server_is_renewed_with_30_days_to_go(
    authority: pki.PemPair, server: pki.PemPair, days: float, serves: bool
) -> None:
    assert pki.server_is_usable(server, authority, NAMES, NOW + days * DAY) is serves


def test_an_authority_runs_out(authority: pki.PemPair) -> None:
    assert pki.authority_is_usable(authority, NOW + 3619 * DAY)
    assert not pki.authority_is_usable(authority, NOW + 3621 * DAY)


def test_a_clock_set_back_is_noticed(authority: pki.PemPair, server: pki.PemPair) -> None:
    assert not pki.authority_is_usable(authority, NOW - DAY)
    assert not pki.server_is_usable(server, authority, NAMES, NOW - DAY)


@pytest.mark.parametrize("names", [NAMES[:-1], (*NAMES, "other"), ("localhost",)])
def test_other_names_need_another_certificate(
    authority: pki.PemPair, server: pki.PemPair, names: tuple[str, ...]
) -> None:
    assert not pki.server_is_usable(server, authority, names, NOW)


def test_another_authority_does_not_vouch(server: pki.PemPair) -> None:
    assert not pki.server_is_usable(server, pki.new_authority(NOW), NAMES, NOW)


def test_halves_that_do_not_match(authority: pki.PemPair, server: pki.PemPair) -> None:
    mixed = pki.PemPair(server.public, pki.new_server(authority, NAMES, NOW).private)
    assert not pki.server_is_usable(mixed, authority, NAMES, NOW)
    mixed = pki.PemPair(authority.public, pki.new_authority(NOW).private)
    assert not pki.authority_is_usable(mixed, NOW)


@pytest.mark.parametrize("junk", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_junk_does_not_serve(authority: pki.PemPair, server: pki.PemPair, junk: bytes) -> None:
    for pair in (pki.PemPair(junk, server.private), pki.PemPair(server.public, junk)):
        assert not pki.server_is_usable(pair, authority, NAMES, NOW)
        assert not pki.authority_is_usable(pair, NOW)
    keys = pki.new_ticket_keys()
    assert not pki.ticket_keys_are_usable(pki.PemPair(keys.public, junk))


def test_a_key_of_another_kind_does_not_serve(server: pki.PemPair) -> None:
    keys = pki.new_ticket_keys()
    assert not pki.authority_is_usable(pki.PemPair(server.public, keys.private), NOW)
    assert not pki.ticket_keys_are_usable(server)


def test_ticket_keys() -> None:
    one, two = pki.new_ticket_keys(), pki.new_ticket_keys()
    assert pki.ticket_keys_are_usable(one)
    assert not pki.ticket_keys_are_usable(pki.PemPair(one.public, two.private))
    assert b"BEGIN PUBLIC KEY" in one.public
    assert b"BEGIN PRIVATE KEY" in one.private


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "box"])
async def test_a_strict_client_is_satisfied(tmp_path: Path, name: str) -> None:
    now = time.time()
    authority = pki.new_authority(now)
    server = pki.new_server(authority, NAMES, now)
    pem = tmp_path / "server.pem"
    pem.write_bytes(server.private + server.public)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(pem)
    theirs = ssl.create_default_context(cadata=authority.public.decode())
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=ours) as listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=theirs, server_hostname=name
        )
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
        with pytest.raises(ssl.SSLCertVerificationError, match="match"):
            await asyncio.open_connection("127.0.0.1", port, ssl=theirs, server_hostname="other")
