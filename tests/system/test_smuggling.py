"""Requests that two servers could cut in two ways, and names that nobody is to be called by.

A raw connection on this side, an agent that writes down every byte on the other, the edge between
them. What is smuggled shows no token: whoever sees it behind the edge has found a hole.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterable
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.system.recorder import Watched, edge
from tests.system.wire import HANDSHAKE, Wire, refusal

__all__ = ["edge"]

KERNELS: Final = "/alpha/api/kernels"
SMUGGLED: Final = b"GET /alpha/api/sessions HTTP/1.1\r\nHost: relay\r\n\r\n"
BODY: Final = b'{"name": "python3"}'
ALLOWED: Final = {"host", "authorization", "content-type", "content-length"}
BUILT: Final = {"host", "authorization", "content-type"}


def wire_to(edge: Watched) -> Wire:
    return Wire(edge.url, edge.tls, timeout=5.0)


def request(
    edge: Watched,
    *lines: bytes,
    method: str = "POST",
    target: str = KERNELS,
    body: bytes = b"",
    token: str | None = None,
) -> bytes:
    """A request that may do what it asks for, but for these lines of its head."""
    shown = edge.token if token is None else token
    head = [
        f"{method} {target} HTTP/1.1".encode(),
        b"Host: relay",
        f"Authorization: Bearer {shown}".encode(),
        *lines,
    ]
    return b"\r\n".join([*head, b"", b""]) + body


def chunks(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def answers(wire: Wire, *methods: str) -> list[int]:
    """The statuses of as many answers, and whether it hangs up then is for `Wire.rest`."""
    return [wire.answer(method).status for method in methods]


def smuggled(seen: Iterable[object]) -> bool:
    return any("sessions" in str(each) for each in seen)


# What is good, so that the rest shows something.


@pytest.mark.parametrize(
    "sent",
    [
        (b"Content-Length: 19", BODY),
        (b"Transfer-Encoding: chunked", chunks(BODY)),
        (b"transfer-encoding:   CHUNKED  ", chunks(BODY[:5], BODY[5:])),
        (b"Transfer-Encoding: chunked", chunks(BODY, end=b"0\r\nX-Trailer: 1\r\n\r\n")),
        (b"Transfer-Encoding: chunked", b"13;name=value\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ],
)
def test_a_body_arrives_in_one_form(edge: Watched, sent: tuple[bytes, bytes]) -> None:
    line, body = sent
    with wire_to(edge) as wire:
        wire.send(request(edge, line, body=body))
        assert answers(wire, "POST") == [200]
    (seen,) = edge.agent.take()
    assert seen.body == BODY
    assert seen.headers["content-length"] == "19"
    assert seen.headers.keys() == ALLOWED


# What could be cut in two ways.

LENGTH = b"Content-Length: %d" % len(BODY)
WHOLE = b"Content-Length: %d" % len(SMUGGLED)
CHUNKED = b"Transfer-Encoding: chunked"
TWO_BODIES = chunks(end=b"0\r\n\r\n") + SMUGGLED
AMBIGUOUS: dict[str, tuple[list[bytes], bytes]] = {
    "CL.TE": ([b"Content-Length: %d" % len(TWO_BODIES), CHUNKED], TWO_BODIES),
    "TE.CL": ([CHUNKED, b"Content-Length: 4"], chunks(SMUGGLED)),
    "CL.TE, empty": ([LENGTH, b"Transfer-Encoding:"], BODY + SMUGGLED),
    "TE, empty": ([b"Transfer-Encoding:"], SMUGGLED),
    "CL 0, TE empty": ([b"Content-Length: 0", b"Transfer-Encoding:"], SMUGGLED),
    "TE.TE": ([CHUNKED, b"Transfer-Encoding: identity"], TWO_BODIES),
    "TE.TE, twice the same": ([CHUNKED, CHUNKED], TWO_BODIES),
    "TE.TE, other case": ([CHUNKED, b"transfer-encoding: x"], TWO_BODIES),
    "TE, a list": ([b"Transfer-Encoding: chunked, identity"], TWO_BODIES),
    "TE, another before": ([b"Transfer-Encoding: gzip, chunked"], TWO_BODIES),
    "TE, twice": ([b"Transfer-Encoding: chunked, chunked"], TWO_BODIES),
    "TE, a tab": ([b"Transfer-Encoding:\tchunked\x0b"], TWO_BODIES),
    "TE, a parameter": ([b"Transfer-Encoding: chunked;x=1"], TWO_BODIES),
    "TE, quoted": ([b'Transfer-Encoding: "chunked"'], TWO_BODIES),
    "TE, nearly": ([b"Transfer-Encoding: xchunked"], TWO_BODIES),
    "TE, identity": ([b"Transfer-Encoding: identity", LENGTH], BODY + SMUGGLED),
    "TE, a space before the colon": ([b"Transfer-Encoding : chunked", LENGTH], TWO_BODIES),
    "TE, a tab before the colon": ([b"Transfer-Encoding\t: chunked", LENGTH], TWO_BODIES),
    "TE, a space first": ([b" Transfer-Encoding: chunked", LENGTH], TWO_BODIES),
    "TE, folded": ([b"Transfer-Encoding:\r\n chunked", LENGTH], TWO_BODIES),
    "TE behind a folded line": ([b"X: 1\r\n Transfer-Encoding: chunked", LENGTH], TWO_BODIES),
    "TE behind a bare CR": ([b"X: 1\rTransfer-Encoding: chunked", LENGTH], TWO_BODIES),
    "TE behind a bare LF": ([b"X: 1\nTransfer-Encoding: chunked", LENGTH], TWO_BODIES),
    "TE with a NUL": ([b"Transfer-Encoding: chunked\0", LENGTH], TWO_BODIES),
    "TE with a NUL in its name": ([b"Transfer\0-Encoding: chunked", LENGTH], TWO_BODIES),
    "CL.CL": ([LENGTH, b"Content-Length: 0"], BODY + SMUGGLED),
    "CL.CL, the same": ([LENGTH, LENGTH], BODY),
    "CL, a list": ([b"Content-Length: 19, 19"], BODY),
    "CL, a list of two": ([b"Content-Length: 0, 19"], BODY),
    "CL, a sign": ([b"Content-Length: +19"], BODY),
    "CL, negative": ([b"Content-Length: -19"], BODY),
    "CL, hexadecimal": ([b"Content-Length: 0x13"], BODY),
    "CL, a fraction": ([b"Content-Length: 19.0"], BODY),
    "CL, an underscore": ([b"Content-Length: 1_9"], BODY),
    "CL, a space inside": ([b"Content-Length: 1 9"], BODY),
    "CL, empty": ([b"Content-Length:"], BODY),
    "CL, past 64 bits": ([b"Content-Length: 18446744073709551635"], BODY),
    "CL, another script's digits": ([b"Content-Length: \xd9\xa1\xd9\xa9"], BODY),
    "CL, a space before the colon": ([b"Content-Length : 19"], BODY),
    "CL, folded": ([b"Content-Length:\r\n 19"], BODY),
    "a chunk's size with a sign": ([CHUNKED], b"+13\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size with 0x": ([CHUNKED], b"0x13\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size with a space first": ([CHUNKED], b" 13\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size with an underscore": ([CHUNKED], b"1_3\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size past 64 bits": ([CHUNKED], b"10000000000000013\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk without a size": ([CHUNKED], b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size ended by LF": ([CHUNKED], b"13\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's extension with LF": ([CHUNKED], b"13;x=\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk longer than it says": ([CHUNKED], b"12\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk shorter than it says": ([CHUNKED], b"14\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a trailer that is no field": ([CHUNKED], chunks(BODY, end=b"0\r\nno colon\r\n\r\n")),
    "a bare LF at the end of the head": ([LENGTH + b"\n"], BODY),
    "an upgrade with a body": ([HANDSHAKE.strip(), WHOLE], SMUGGLED),
    "an upgrade with chunks": ([HANDSHAKE.strip(), CHUNKED], chunks(SMUGGLED)),
    "another upgrade with a body": (
        [b"Connection: Upgrade", b"Upgrade: h2c", WHOLE],
        SMUGGLED,
    ),
    "no name": ([b": 1"], b""),
    "a name with a bracket": ([b"X(): 1"], b""),
    "a name that is not ASCII": ([b"X\xe4: 1"], b""),
    "a NUL in a value": ([b"X: 1\x002"], b""),
    "a CR in a value": ([b"X: 1\r2"], b""),
    "an empty host": ([b"Host:"], b""),
    "a second host": ([b"Host: other"], b""),
    "the same host twice": ([b"Host: relay"], b""),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_cut_in_two_ways(edge: Watched, name: str) -> None:
    lines, body = AMBIGUOUS[name]
    with wire_to(edge) as wire:
        wire.send(request(edge, *lines, body=body + SMUGGLED))
        refusal(wire.answer(), 400, "Bad request")
        # One answer, and no more.
        assert wire.rest() == b""
    assert edge.agent.take() == []


@pytest.mark.parametrize(
    "host",
    [
        b"a b",
        b"a/b",
        b"a@b",
        b"a,b",
        b"http://a",
        b"a:b",
        b"a:1:2",
        b"[::1",
        b"a?b",
        b"\xe4",
        b"a#",
    ],
)
def test_a_strange_host(edge: Watched, host: bytes) -> None:
    for target in (KERNELS, "/healthz", "/alpha/tree"):
        sent = request(edge, method="GET", target=target).replace(b"Host: relay", b"Host: " + host)
        with wire_to(edge) as wire:
            wire.send(sent + SMUGGLED)
            refusal(wire.answer(), 400, "Bad request")
            assert wire.rest() == b""
    assert edge.agent.take() == []


@pytest.mark.parametrize(
    "line",
    [
        b"GET /alpha/api/kernels",
        b"GET /alpha/api/kernels HTTP/0.9",
        b"GET /alpha/api/kernels HTTP/1.2",
        b"GET /alpha/api/kernels HTTP/2.0",
        b"GET /alpha/api/kernels HTTP/1.1 ",
        b"GET /alpha/api/kernels HTTP/1.10",
        b"GET /alpha/api/kernels HTTP/01.1",
        b"GET /alpha/api/kernels http/1.1",
        b"GET\t/alpha/api/kernels HTTP/1.1",
        b" GET /alpha/api/kernels HTTP/1.1",
        b"GET https://relay/alpha/api/kernels HTTP/1.1",
        b"GET http://other/alpha/api/kernels HTTP/1.1",
        b"GET relay:443 HTTP/1.1",
        b"CONNECT relay:443 HTTP/1.1",
        b"GET * HTTP/1.1",
        b"G\0T /alpha/api/kernels HTTP/1.1",
        b"G(T /alpha/api/kernels HTTP/1.1",
    ],
)
def test_a_strange_request_line(edge: Watched, line: bytes) -> None:
    sent = request(edge, method="GET").partition(b"\r\n")[2]
    with wire_to(edge) as wire:
        wire.send(line + b"\r\n" + sent + SMUGGLED)
        refusal(wire.answer(), 400, "Bad request")
        assert wire.rest() == b""
    assert edge.agent.take() == []


def test_a_compressed_body(edge: Watched) -> None:
    for coding in (b"gzip", b"deflate", b"br", b"x", b"identity, gzip"):
        with wire_to(edge) as wire:
            wire.send(request(edge, b"Content-Encoding: " + coding, LENGTH, body=BODY))
            refusal(wire.answer(), 415, "Unsupported media type")
    assert edge.agent.take() == []


# Several requests on one connection.


def test_each_request_is_judged_alone(edge: Watched) -> None:
    good = request(edge, LENGTH, body=BODY)
    bad = request(edge, LENGTH, body=BODY, token="relay_wrong")
    with wire_to(edge) as wire:
        wire.send(good + bad + SMUGGLED + good + bad)
        assert answers(wire, *["POST"] * 5) == [200, 401, 401, 200, 401]
    assert [seen.body for seen in edge.agent.take()] == [BODY, BODY]
    with wire_to(edge) as wire:
        wire.send(bad + good + SMUGGLED)
        assert answers(wire, *["POST"] * 3) == [401, 200, 401]
    assert not smuggled(edge.agent.take())


def test_a_refused_requests_body_is_no_request(edge: Watched) -> None:
    for status, refused in (
        (401, request(edge, WHOLE, body=SMUGGLED, token="relay_wrong")),
        (401, request(edge, CHUNKED, body=chunks(SMUGGLED), token="relay_wrong")),
        (404, request(edge, WHOLE, body=SMUGGLED, target="/absent/api")),
        (405, request(edge, WHOLE, body=SMUGGLED, method="PUT")),
        (200, request(edge, WHOLE, body=SMUGGLED, target="/healthz")),
        (403, request(edge, WHOLE, b"Origin: null", body=SMUGGLED)),
        (413, request(edge, b"Content-Length: 1048577", body=SMUGGLED)),
        (415, request(edge, WHOLE, b"Content-Encoding: x", body=SMUGGLED)),
    ):
        # A server reads for a while what it does not want, so that its answer arrives.
        with Wire(edge.url, edge.tls, timeout=60.0) as wire:
            wire.send(refused + request(edge, b"Connection: close", method="GET"))
            assert wire.answer().status == status
            rest = wire.rest()
            # The next one is answered, or nothing is: its body never is.
            assert rest.count(b"HTTP/1.1 ") == rest.count(b"HTTP/1.1 200") <= 1, rest
        assert not smuggled(edge.agent.take())


# What reaches an agent.

IDENTITIES = {
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Uri",
    "X-Original-Url",
    "X-Rewrite-Url",
    "X-Real-Ip",
    "Forwarded",
    "X-Remote-User",
    "X-Remote-Group",
    "Remote-User",
    "X-Auth-Request-User",
    "X-Authenticated-User",
    "X-User",
    "X-Webauth-User",
    "X-Jupyterhub-User",
    "X-Request-Id",
    "X-Http-Method-Override",
    "KERNEL_USERNAME",
    "Kernel-Username",
    "X_Forwarded_User",
    "X_Remote_User",
    "Remote_User",
    "Content_Length",
    "Transfer_Encoding",
    "Content_Type",
    "Authorization_",
    "X-Authorization",
    "Proxy-Authorization",
    "Cookie",
    "Via",
    "TE",
    "Trailer",
    "Keep-Alive",
    "Proxy-Connection",
    "Referer",
    "User-Agent",
    "Accept-Encoding",
    "Range",
    "If-None-Match",
    "Expect-CT",
}


def claims(ticket: str) -> dict[str, object]:
    payload = ticket.removeprefix("Bearer ").split(".")[1]
    read = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert isinstance(read, dict)
    return read


@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_no_header_says_who_it_is(edge: Watched, name: str) -> None:
    line = f"{name}: root".encode()
    with wire_to(edge) as wire:
        wire.send(request(edge, line, LENGTH, body=BODY) + request(edge, line, method="GET"))
        assert answers(wire, "POST", "GET") == [200, 200]
    posted, got = edge.agent.take()
    assert posted.headers.keys() == ALLOWED
    assert got.headers.keys() == BUILT
    for seen in (posted, got):
        assert "root" not in str(seen)
        assert seen.target == "/api/kernels"
        assert str(claims(seen.headers["authorization"])["sub"]).startswith("token:")


@pytest.mark.parametrize(
    "listed",
    ["Authorization", "authorization, close", "Host", "X, Content-Length", "keep-alive, Host"],
)
def test_connection_takes_nothing_away(edge: Watched, listed: str) -> None:
    with wire_to(edge) as wire:
        wire.send(request(edge, f"Connection: {listed}".encode(), LENGTH, body=BODY))
        assert answers(wire, "POST") == [200]
    (seen,) = edge.agent.take()
    assert seen.headers.keys() == ALLOWED
    assert seen.body == BODY
    # Nor does it take the credential of one that has none for that of one that has.
    with wire_to(edge) as wire:
        bare = request(edge, f"Connection: {listed}".encode(), token="relay_wrong", method="GET")
        wire.send(bare)
        assert answers(wire, "GET") == [401]


def test_no_query_says_who_it_is(edge: Watched) -> None:
    for query in (
        "user=root&principal=root&owner=root",
        "token=root&ticket=root&access_token=root",
        "X-Forwarded-User=root&sub=root",
        "user=root;principal=root",
    ):
        with wire_to(edge) as wire:
            for target in (f"{KERNELS}?{query}", f"/alpha/api/me?{query}"):
                wire.send(request(edge, method="GET", target=target))
                assert answers(wire, "GET") == [200]
        for seen in edge.agent.take():
            assert "root" not in str(seen)
            assert "?" not in seen.target


def test_two_credentials_are_none(edge: Watched) -> None:
    for line in (b"Authorization: Bearer x", b"authorization: token x", b"AUTHORIZATION: x"):
        with wire_to(edge) as wire:
            wire.send(request(edge, line, method="GET"))
            assert answers(wire, "GET") == [401]
    assert edge.agent.take() == []


# What nobody thought of.

spaces = st.sampled_from(
    [b"", b" ", b"\t", b"  ", b"\x0b", b"\x0c", b"\x00", b"\x1f", b"\x85", b"\xa0"]
)
ends = st.sampled_from(
    [b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\r\r\n", b"\0\r\n"]
)
names = st.sampled_from(
    [
        b"Content-Length",
        b"content-length",
        b"Transfer-Encoding",
        b"TRANSFER-ENCODING",
        b"Transfer_Encoding",
        b"Content_Length",
        b"Connection",
        b"Upgrade",
        b"Expect",
        b"Trailer",
        b"X",
        b"",
    ]
)
values = st.sampled_from(
    [
        b"0",
        b"19",
        b"68",
        b"49",
        b"chunked",
        b"Chunked",
        b"identity",
        b"chunked, identity",
        b"x, chunked",
        b"close",
        b"keep-alive",
        b"Upgrade",
        b"websocket",
        b"100-continue",
        b"",
    ]
)
fields = st.tuples(names, spaces, st.just(b":"), spaces, values, spaces, ends).map(b"".join)
bodies = st.sampled_from(
    [
        b"",
        BODY,
        SMUGGLED,
        chunks(BODY),
        chunks(SMUGGLED),
        chunks(),
        b"0\r\n\r\n" + SMUGGLED,
        b"0\r\n",
    ]
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.lists(fields, min_size=1, max_size=4), bodies, st.booleans())
def test_nothing_is_smuggled(edge: Watched, fields: list[bytes], body: bytes, bare: bool) -> None:
    """Whatever the head says: an agent sees no more requests than were answered, none of them
    without a token, and each in the one form that edges build."""
    head = b"\r\n".join(request(edge).split(b"\r\n")[:3]) + b"\r\n"
    end = b"\r\n" if not bare else b"\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"
    with Wire(edge.url, edge.tls, timeout=0.3) as wire:
        wire.send(head + b"".join(fields) + end + body + SMUGGLED + last)
        read = b""
        # Else it waits for the rest of a body.
        with contextlib.suppress(TimeoutError):
            read = wire.rest()
    seen = edge.agent.take()
    assert len(seen) <= 1
    assert not smuggled(seen)
    for each in seen:
        assert each.headers.keys() in (ALLOWED, BUILT)
        assert each.target == "/api/kernels"
    statuses = re.findall(rb"HTTP/1\.1 (\d\d\d) ", read)
    assert b"500" not in statuses
    # Nothing follows a refusal.
    assert b"400" not in statuses[:-1]


targets = st.lists(
    st.sampled_from(
        [
            "/",
            "//",
            "..",
            ".",
            "%2e",
            "%2f",
            "%5c",
            "\\",
            ";",
            "alpha",
            "api",
            "kernels",
            "%00",
            "@",
            "#",
            "?",
            "%",
            "%25",
            "beta",
            "http:",
            "*",
            "me",
            "\t",
            "%0d%0a",
            "~",
            "&",
            "token=x",
        ]
    ),
    min_size=1,
    max_size=8,
).map("".join)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(targets)
def test_the_path_that_was_judged_is_the_path_that_is_asked_for(edge: Watched, target: str) -> None:
    with wire_to(edge) as wire:
        wire.send(request(edge, method="GET", target=target))
        status = wire.answer().status
    seen = edge.agent.take()
    assert (status == 200 and not target.startswith(("/healthz", "/readyz"))) == (len(seen) == 1)
    for each in seen:
        path = target.partition("?")[0]
        assert path == f"/alpha{each.target.partition('?')[0]}"
    assert status in {200, 400, 404, 405}


def test_the_edge_says_the_same_of_itself_everywhere(edge: Watched) -> None:
    for sent in (
        request(edge, method="GET"),
        request(edge, method="GET", target="/healthz"),
        request(edge, method="GET", target="/alpha/tree"),
        request(edge, method="PUT"),
        request(edge, method="OPTIONS"),
        request(edge, method="GET", token="relay_wrong"),
        b"x\r\n\r\n",
    ):
        with wire_to(edge) as wire:
            wire.send(sent)
            answer = wire.answer()
        assert answer.headers.get_all("Server") == ["relay"]
        assert "X-Powered-By" not in answer.headers
        assert "Location" not in answer.headers
        assert "Set-Cookie" not in answer.headers
        if answer.status >= 400:
            assert answer.json.keys() == {"message", "reason", "request_id"}
            assert re.search(r"Traceback|/home|/tmp|\.py|aiohttp", answer.body.decode()) is None
