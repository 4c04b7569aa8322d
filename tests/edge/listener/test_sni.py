from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.edge.listener.sni import record_length, server_name


def client_hello(name: str | None, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = maximum
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


REAL = client_hello("relay.example")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["relay.example", "Relay.Example", "a" * 63 + ".example"])
def test_a_real_clients_name(name: str, version: ssl.TLSVersion) -> None:
    hello = client_hello(name, version)
    assert record_length(hello[:5]) == len(hello)
    assert server_name(hello) == name.lower()


@pytest.mark.parametrize("name", [None, "127.0.0.1", "::1"])
def test_who_asks_for_no_name(name: str | None) -> None:
    assert server_name(client_hello(name)) is None


def test_a_hello_in_two_records_has_no_name() -> None:
    """None where a certificate would be asked for: it comes in as everybody does."""
    half = REAL[5:100]
    assert server_name(REAL[:3] + len(half).to_bytes(2) + half) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x16\x03\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x17\x03\x03\x00\x20" + bytes(32),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x01\x01",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    ],
)
def test_what_is_no_hello(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        server_name(data)


@given(st.integers(0, len(REAL) - 1), st.binary(max_size=8))
def test_a_changed_hello_is_read_or_refused(at: int, new: bytes) -> None:
    changed = REAL[:at] + new + REAL[at + len(new) :]
    try:
        name = server_name(changed)
    except ValueError:
        return
    assert name is None or name == name.lower()
