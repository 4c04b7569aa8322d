from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.edge.listener.proxy_headers import (
    V2_SIGNATURE,
    Header,
    Networks,
    client_of,
    counted,
    read_v1,
    read_v2,
    v2_rest,
)

PROXIES = Networks(["10.0.0.0/8", "fd00::/8", "192.0.2.7"])


def v2(
    command: int = 0x21,
    kind: int = 0x11,
    rest: bytes = bytes([192, 0, 2, 1, 10, 0, 0, 1]) + b"abcd",
) -> tuple[bytes, bytes]:
    return V2_SIGNATURE + struct.pack(">BBH", command, kind, len(rest)), rest


# --- who is believed ---


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "192.0.2.7"])
def test_a_proxy(address: str) -> None:
    assert address in PROXIES


@pytest.mark.parametrize("address", ["11.0.0.1", "192.0.2.8", "::1", "fe80::1%eth0", "", "x"])
def test_no_proxy(address: str) -> None:
    assert address not in PROXIES
    assert address not in Networks([])


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
    ],
)
def test_whom_limits_are_for(address: str, key: str) -> None:
    assert counted(address) == key


# --- the PROXY protocol ---


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n", "192.0.2.1"),
        (b"PROXY TCP6 2001:DB8::1 fd00::1 0 65535\r\n", "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    ],
)
def test_version_1(line: bytes, address: str | None) -> None:
    assert read_v1(line) == address


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r\n",
        b"PROXY\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"proxy TCP4 192.0.2.1 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2 3\r\n",
        b"PROXY TCP4  192.0.2.1 10.0.0.1 1 2\r\n",
        b" PROXY TCP4 192.0.2.1 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 -1 2\r\n",
        b"PROXY TCP4 192.0.2.256 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.01 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 fd00::1 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n",
        b"PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 localhost 10.0.0.1 1 2\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 1 \N{ARABIC-INDIC DIGIT ONE}\r\n".encode(),
        b"PROXY UNKNOWN " + b"x" * 94 + b"\r\n",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_no_version_1(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_v1(line)


def test_version_2() -> None:
    head, rest = v2()
    assert v2_rest(head) == 12
    assert read_v2(head, rest) == "192.0.2.1"
    # What follows the addresses is for others.
    assert read_v2(*v2(rest=rest + b"\x01\x00\x02h2")) == "192.0.2.1"
    six = ipaddress.ip_address("2001:db8::1").packed
    assert read_v2(*v2(kind=0x21, rest=six + six + b"abcd")) == "2001:db8::1"
    # The proxy's own, and an address of no kind that counts.
    assert read_v2(*v2(command=0x20)) is None
    assert read_v2(*v2(kind=0x00, rest=b"")) is None


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        v2(command=0x11),
        v2(command=0x22),
        v2(command=0x31),
        v2(kind=0x12),
        v2(kind=0x31, rest=bytes(216)),
        v2(kind=0x01),
        v2(rest=b""),
        v2(rest=bytes(11)),
        v2(kind=0x21),
        (v2()[0], b"short"),
        v2(rest=bytes(4097)),
        (v2()[0][:-1], v2()[1]),
        (b"\r\n\r\n\x00\r\nQUIT\r" + v2()[0][12:], v2()[1]),
    ],
)
def test_what_is_no_version_2(head: bytes, rest: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        read_v2(head, rest)


@given(st.binary(max_size=120))
def test_anything_is_read_or_refused(data: bytes) -> None:
    for line in (data, b"PROXY TCP4 " + data + b"\r\n"):
        try:
            address = read_v1(line)
        except ValueError:
            continue
        if address is not None:
            ipaddress.ip_address(address)


# --- headers ---

XFF: Header = "x-forwarded-for"


@pytest.mark.parametrize(
    ("peer", "values", "address"),
    [
        # Nobody else's word counts.
        ("198.51.100.1", ["192.0.2.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        # The last hop that is no proxy of ours; what is before it, anybody may have written.
        ("10.0.0.1", ["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["127.0.0.1, 192.0.2.1, 10.9.9.9"], "192.0.2.1"),
        ("10.0.0.1", ["203.0.113.9", "192.0.2.1 ,\t10.9.9.9"], "192.0.2.1"),
        ("10.0.0.1", ["<script>, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        # What cannot be understood is nobody, and the request that proxy's.
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1,"], "10.0.0.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1:80"], "10.0.0.1"),
        ("10.0.0.1", ["[2001:db8::1]"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1 192.0.2.2"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1, nonsense, 10.0.0.2"], "10.0.0.2"),
    ],
)
def test_x_forwarded_for(peer: str, values: list[str], address: str) -> None:
    assert client_of(peer, XFF, values, PROXIES) == address
    assert client_of(peer, XFF, values, Networks([])) == peer


@pytest.mark.parametrize(
    ("values", "address"),
    [
        (["for=192.0.2.1"], "192.0.2.1"),
        (["For=192.0.2.1;proto=https;by=10.0.0.1"], "192.0.2.1"),
        (['for="192.0.2.1:47011"'], "192.0.2.1"),
        (['for="[2001:db8:cafe::17]:4711"'], "2001:db8:cafe::17"),
        (['for="[2001:db8:cafe::17]"'], "2001:db8:cafe::17"),
        (["for=203.0.113.9, for=192.0.2.1", "for=10.0.0.3"], "192.0.2.1"),
        (["for=_hidden"], "10.0.0.1"),
        (["for=unknown"], "10.0.0.1"),
        (["proto=https"], "10.0.0.1"),
        (["for=192.0.2.1;for=192.0.2.2"], "10.0.0.1"),
        (["for = 192.0.2.1"], "10.0.0.1"),
        (["192.0.2.1"], "10.0.0.1"),
        (['for="192.0.2.1'], "10.0.0.1"),
        (["for=[2001:db8::1]"], "10.0.0.1"),
        (['for="2001:db8::1"'], "10.0.0.1"),
        (["for=192.0.2.1;"], "10.0.0.1"),
        (['for="192.0.2.1, for=192.0.2.2"'], "10.0.0.1"),
    ],
)
def test_forwarded(values: list[str], address: str) -> None:
    assert client_of("10.0.0.1", "forwarded", values, PROXIES) == address
    assert client_of("198.51.100.1", "forwarded", values, PROXIES) == "198.51.100.1"
