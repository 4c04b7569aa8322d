from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import BadRequest
from relay.routing.heads import check_head

HOST = (b"Host", b"relay:8443")
V11 = (1, 1)


def length(value: bytes) -> tuple[bytes, bytes]:
    return (b"Content-Length", value)


def coding(value: bytes) -> tuple[bytes, bytes]:
    return (b"Transfer-Encoding", value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"relay", "relay"),
        (b"Relay.Example:8443", "relay.example:8443"),
        (b"127.0.0.1:1", "127.0.0.1:1"),
        (b"[::1]:8443", "[::1]:8443"),
        (b"my_lab", "my_lab"),
        (b"relay.", "relay."),
    ],
)
def test_whom_a_request_is_for(host: bytes, expected: str) -> None:
    assert check_head(V11, [(b"A", b"b"), (b"hOST", host)]) == expected


def test_http_1_0_may_name_no_host() -> None:
    assert check_head((1, 0), []) == ""
    assert check_head((1, 0), [HOST]) == "relay:8443"


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b" ",
        b"relay relay",
        b"relay:",
        b"relay:x",
        b"relay:123456",
        b"relay:1:2",
        b"relay/",
        b"relay/alpha",
        b"relay?x",
        b"relay#x",
        b"user@relay",
        b"http://relay",
        b"relay,other",
        b"relay;other",
        b"relay\\other",
        b"relay%00",
        b"rel\x00ay",
        b"rel\xe4y",
        b"::1",
        b"[::1",
        b"[::1]x",
        b"[relay]",
        b"x" * 254,
        b"'relay'",
        b"$(relay)",
        b"<relay>",
    ],
)
def test_a_strange_host(host: bytes) -> None:
    for version in (V11, (1, 0)):
        with pytest.raises(BadRequest, match="one Host"):
            check_head(version, [(b"Host", host)])


@pytest.mark.parametrize("hosts", [[], [HOST, HOST], [HOST, (b"HOST", b"other")]])
def test_no_host_and_several(hosts: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadRequest, match="one Host"):
        check_head(V11, hosts)


@pytest.mark.parametrize("version", [(0, 9), (1, 2), (2, 0), (3, 0), (0, 0), (11, 1)])
def test_another_version(version: tuple[int, int]) -> None:
    with pytest.raises(BadRequest, match=r"HTTP/1\.1"):
        check_head(version, [HOST])


@pytest.mark.parametrize(
    "headers",
    [[], [length(b"0")], [length(b"10")], [coding(b"chunked")], [coding(b"Chunked")]],
)
def test_a_body_with_one_length(headers: list[tuple[bytes, bytes]]) -> None:
    assert check_head(V11, [HOST, *headers])


@pytest.mark.parametrize(
    "headers",
    [
        [length(b"5"), length(b"5")],
        [length(b"5"), length(b"6")],
        [length(b"5"), (b"content-length", b"6")],
        [length(b"5"), coding(b"chunked")],
        [coding(b"chunked"), length(b"5")],
        [length(b"5"), coding(b"")],
        [length(b"0"), coding(b"chunked")],
        [coding(b"chunked"), coding(b"chunked")],
        [coding(b"chunked"), coding(b"identity")],
        [coding(b"")],
        [coding(b"identity")],
        [coding(b"gzip")],
        [coding(b"gzip, chunked")],
        [coding(b"chunked, chunked")],
        [coding(b"chunked, identity")],
        [coding(b"chunked;q=1")],
        [coding(b"xchunked")],
        [coding(b"chunked ")],
        [coding(b"\x0bchunked")],
        [coding(b'"chunked"')],
        [length(b"")],
        [length(b"+5")],
        [length(b"-5")],
        [length(b"0x5")],
        [length(b"5,5")],
        [length(b"5 5")],
        [length(b"5.0")],
        [length(b"1_0")],
        [length(b"\xd9\xa5")],
        [length(b"9" * 16)],
    ],
)
def test_a_body_whose_length_could_be_read_in_two_ways(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadRequest):
        check_head(V11, [HOST, *headers])


def test_http_1_0_has_no_chunks() -> None:
    with pytest.raises(BadRequest, match="chunked"):
        check_head((1, 0), [HOST, coding(b"chunked")])


@pytest.mark.parametrize("body", [length(b"1"), length(b"100"), coding(b"chunked")])
@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"relay-records", b""])
def test_nothing_lies_between_a_head_and_another_protocol(
    body: tuple[bytes, bytes], protocol: bytes
) -> None:
    with pytest.raises(BadRequest, match="no body"):
        check_head(V11, [HOST, (b"Upgrade", protocol), body])
    assert check_head(V11, [HOST, (b"Upgrade", protocol), length(b"0")])


names = st.sampled_from(
    [b"Host", b"host", b"Content-Length", b"Transfer-Encoding", b"Upgrade", b"Content_Length", b"X"]
)
values = st.sampled_from(
    [b"relay", b"relay:1", b"5", b"05", b"0", b"chunked", b"CHUNKED", b"", b"x, y", b"websocket"]
)


@given(st.lists(st.tuples(names, values), max_size=6))
def test_what_passes_has_one_host_and_one_length_at_most(
    headers: list[tuple[bytes, bytes]],
) -> None:
    try:
        check_head(V11, headers)
    except BadRequest:
        return
    found = [name.lower() for name, _ in headers]
    assert found.count(b"host") == 1
    assert found.count(b"content-length") + found.count(b"transfer-encoding") <= 1
    for name, value in headers:
        if name.lower() == b"transfer-encoding":
            assert value.lower() == b"chunked"
            assert b"upgrade" not in found
        if name.lower() == b"content-length":
            assert value.isdigit()
            assert b"upgrade" not in found or int(value) == 0
