"""The edge's door: who comes in, with what, and what is said to everybody else."""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
import pytest

from tests.system.running import RunningRelay
from tests.system.wire import HANDSHAKE, Wire, masked, refusal

Port = Literal["https", "wss"]

KIB = 1024
LIMITS = {
    "limits": {
        "request_line_bytes": 2 * KIB,
        "header_bytes": KIB,
        "headers": 20,
        "body_bytes": 10 * KIB,
        "message_bytes": 64 * KIB,
    },
    "kernels": {"message_bytes": 128 * KIB},
}
ABSENT = "00000000-0000-4000-8000-000000000000"
PATHS = (
    "/",
    "/alpha",
    "/alpha/",
    "/alpha/api",
    "/alpha/api/kernels",
    f"/alpha/api/kernels/{ABSENT}",
    f"/alpha/api/kernels/{ABSENT}/interrupt",
    f"/alpha/api/kernels/{ABSENT}/restart",
    "/alpha/api/kernelspecs",
    "/alpha/api/kernelspecs/python3",
    "/alpha/kernelspecs/python3/logo-64x64.png",
    "/alpha/api/absent",
    "/absent/api/kernels",
    "/api",
    "/api/kernels",
    "/metrics",
    "/favicon.ico",
    # Nearly, but not, what answers everybody.
    "/healthz/",
    "/healthz/x",
    "/HEALTHZ",
    "/alpha/healthz",
    "/alpha/tree/x",
    "/alpha/api/tree",
    "/tree",
    "/login",
    "/hub/api",
)

both_ports = pytest.mark.parametrize("port", ["https", "wss"])


def url_of(relay: RunningRelay, port: Port) -> str:
    return relay.info.https_url if port == "https" else relay.info.wss_url


def wire_to(relay: RunningRelay, port: Port = "https") -> Wire:
    return Wire(url_of(relay, port), relay.tls)


def head(target: str | bytes, *lines: str | bytes, method: str = "GET") -> bytes:
    """A request without a body, sent as it stands."""
    encoded = [part if isinstance(part, bytes) else part.encode() for part in (target, *lines)]
    target, *rest = encoded
    line = method.encode() + b" " + target + b" HTTP/1.1"
    return b"\r\n".join([line, b"Host: relay", *(each.strip() for each in rest), b"", b""])


def bearer(relay: RunningRelay) -> str:
    return f"Authorization: Bearer {relay.info.token}"


def channels_path(kernel_id: str) -> str:
    return f"/alpha/api/kernels/{kernel_id}/channels"


# --- credentials ---


def wrong_credentials(relay: RunningRelay) -> dict[str, list[str]]:
    """Header lines that let nobody in."""
    good = relay.info.token
    return {
        "none": [],
        "empty token": ["Authorization: token "],
        "empty bearer": ["Authorization: Bearer"],
        "empty header": ["Authorization:"],
        "wrong": ["Authorization: token relay_" + secrets.token_urlsafe(32)],
        "one character more": [f"Authorization: token {good}x"],
        "one character less": [f"Authorization: token {good[:-1]}"],
        "other case": [f"Authorization: token {good.swapcase()}"],
        "its hash": [f"Authorization: token {hashlib.sha256(good.encode()).hexdigest()}"],
        "basic": ["Authorization: Basic dXNlcjpwYXNzd29yZA=="],
        "without a scheme": [f"Authorization: {good}"],
        "unknown scheme": [f"Authorization: Digest {good}"],
        "two words": [f"Authorization: token {good} {good}"],
        "too long": ["Authorization: token " + "x" * 5000],
        "conflicting": [f"Authorization: token {good}", "Authorization: token other"],
        "another header": [f"X-Authorization: token {good}", f"X-Token: {good}"],
        "a cookie": [f"Cookie: token={good}; _xsrf=1"],
        "a user's name": ["X-Forwarded-User: root", "X-Remote-User: root", "Remote-User: root"],
    }


@pytest.mark.guarantee
@both_ports
@pytest.mark.parametrize("upgrade", [False, True])
def test_nobody_comes_in_without_a_token(
    relay: RunningRelay, kernel: str, port: Port, *, upgrade: bool
) -> None:
    more = [HANDSHAKE] if upgrade else []
    for credential in wrong_credentials(relay).values():
        with wire_to(relay, port) as wire:
            for path in (*PATHS, channels_path(kernel)):
                wire.send(head(path, *credential, *more))
                refusal(wire.answer(), 401, "Unauthorized")


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "PROPFIND"]
)
def test_no_method_is_exempt(relay: RunningRelay, kernel: str, method: str) -> None:
    with wire_to(relay) as wire:
        for path in (*PATHS, channels_path(kernel)):
            wire.send(head(path, method=method))
            assert wire.answer(method).status == 401


@both_ports
def test_each_request_of_a_connection_is_judged_alone(relay: RunningRelay, port: Port) -> None:
    good, bad = head("/alpha/api", bearer(relay)), head("/alpha/api")
    with wire_to(relay, port) as wire:
        wire.send(good + bad + good + bad)
        statuses = [wire.answer().status for _ in range(4)]
    allowed = 200 if port == "https" else 404
    assert statuses == [allowed, 401, allowed, 401]


@pytest.mark.parametrize(
    "scheme", ["token", "Token", "TOKEN", "bearer", "Bearer", "BEARER", "token   "]
)
def test_a_token_in_every_spelling_of_its_header(relay: RunningRelay, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {relay.info.token}"}
    assert relay.request("GET", "/alpha/api", headers=headers).status == 200


def test_a_token_in_the_query_is_ignored_on_rest(relay: RunningRelay) -> None:
    good = relay.info.token
    for target in (f"/alpha/api?token={good}", f"/alpha/api/kernels?token={good}"):
        # An upgrade that nobody will grant makes no WebSocket of it.
        for more in ([], [HANDSHAKE]):
            with wire_to(relay) as wire:
                wire.send(head(target, *more))
                refusal(wire.answer(), 401, "Unauthorized")
    # Nor is it compared with the one that counts.
    assert relay.request("GET", "/alpha/api?token=other").status == 200


@both_ports
def test_a_token_in_the_query_opens_a_websocket(
    relay: RunningRelay, kernel: str, port: Port
) -> None:
    path, good = channels_path(kernel), relay.info.token
    for credential in ([], [bearer(relay)], [f"Authorization: token {good}"]):
        with wire_to(relay, port) as wire:
            wire.send(head(f"{path}?session_id=a&token={good}", *credential, HANDSHAKE))
            assert wire.answer().status == 101


@both_ports
def test_credentials_that_disagree_open_none(relay: RunningRelay, kernel: str, port: Port) -> None:
    path, good = channels_path(kernel), relay.info.token
    for target, *credential in (
        (f"{path}?token=other",),
        (f"{path}?token=other", bearer(relay)),
        (f"{path}?token={good}", "Authorization: token other"),
        (f"{path}?token={good}&token=other",),
        (f"{path}?token={good}&%74oken=other",),
        (f"{path}?token=",),
        (f"{path}?Token={good}",),
        (f"{path}?x=1;token={good}",),
    ):
        with wire_to(relay, port) as wire:
            wire.send(head(target, *credential, HANDSHAKE))
            refusal(wire.answer(), 401, "Unauthorized")


def test_a_body_is_not_waited_for_without_a_token(relay: RunningRelay) -> None:
    with wire_to(relay) as wire:
        wire.send(head("/alpha/api/kernels", "Content-Length: 1000", method="POST"))
        refusal(wire.answer(), 401, "Unauthorized")


# --- what answers everybody, and ports ---


@both_ports
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/healthz?x=1"])
def test_health(relay: RunningRelay, port: Port, path: str) -> None:
    for headers in ({}, {"Authorization": "Basic dTpw"}):
        answer = relay.request("GET", path, port=port, headers=headers)
        assert (answer.status, answer.body) == (200, b"")


@both_ports
@pytest.mark.parametrize("cluster", ["alpha", "absent"])
@pytest.mark.parametrize("path", ["tree", "tree?", "login", "login?", "hub/api"])
def test_what_vscode_asks_first(relay: RunningRelay, port: Port, cluster: str, path: str) -> None:
    answer = relay.request("GET", f"/{cluster}/{path}", port=port, headers={})
    refusal(answer, 404, "Not found")


def test_an_unknown_cluster(relay: RunningRelay, kernel: str) -> None:
    message = refusal(relay.request("GET", "/absent/api/kernels"), 404, "Not found")
    assert message == "no such cluster"
    with wire_to(relay) as wire:
        path = channels_path(kernel).replace("alpha", "absent")
        wire.send(head(path, bearer(relay), HANDSHAKE))
        assert refusal(wire.answer(), 404, "Not found") == message


def test_the_wss_port_serves_channels_only(relay: RunningRelay, kernel: str) -> None:
    for path in (
        "/alpha/api",
        "/alpha/api/kernels",
        f"/alpha/api/kernels/{kernel}",
        "/alpha/api/kernelspecs",
    ):
        message = refusal(relay.request("GET", path, port="wss"), 404, "Not found")
        assert message == "This port serves kernel channels only."
    answer = relay.request("POST", "/alpha/api/kernels", {"name": "python3"}, port="wss")
    refusal(answer, 404, "Not found")
    answer = relay.request("DELETE", f"/alpha/api/kernels/{kernel}", port="wss")
    refusal(answer, 404, "Not found")


@both_ports
@pytest.mark.parametrize("v1", [False, True])
def test_both_ports_serve_channels(
    relay: RunningRelay, kernel: str, port: Port, *, v1: bool
) -> None:
    with relay.connect("alpha", kernel, port=port, v1=v1) as channels:
        assert channels.execute("print(6 * 7)").stdout == "42\n"


@both_ports
@pytest.mark.parametrize(
    "lines",
    [
        [],
        [HANDSHAKE.replace(b"websocket", b"h2c")],
        [HANDSHAKE.replace(b"Connection: Upgrade", b"Connection: keep-alive")],
        [HANDSHAKE.replace(b"13", b"12")],
        [HANDSHAKE.replace(b"ZQ==", b"Z")],
        [HANDSHAKE, b"Content-Length: 5"],
        [HANDSHAKE, b"Transfer-Encoding: chunked"],
    ],
)
def test_what_is_no_handshake(
    relay: RunningRelay, kernel: str, port: Port, lines: list[bytes]
) -> None:
    with wire_to(relay, port) as wire:
        wire.send(head(channels_path(kernel), bearer(relay), *lines))
        refusal(wire.answer(), 400, "Bad request")


def test_nothing_is_smuggled_in_behind_a_handshake(relay: RunningRelay, kernel: str) -> None:
    inner = head("/alpha/api", bearer(relay))
    with wire_to(relay) as wire:
        length = f"Content-Length: {len(inner)}"
        wire.send(head(channels_path(kernel), bearer(relay), HANDSHAKE, length) + inner)
        assert wire.answer().status == 400
        assert wire.rest() == b""


def test_compression_is_not_agreed_to(relay: RunningRelay, kernel: str) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    with wire_to(relay) as wire:
        wire.send(head(channels_path(kernel), bearer(relay), HANDSHAKE, offer))
        answer = wire.answer()
        assert answer.status == 101
        assert "Sec-WebSocket-Extensions" not in answer.headers
        # A frame that is compressed all the same: one of its reserved bits is set.
        wire.send(masked(0x41, b"{}"))
        assert wire.frame().close_code == 1002


# --- targets ---

TARGETS = {
    "dot segments": b"/alpha/../beta/api",
    "a dot segment at the end": b"/alpha/api/..",
    "a single dot": b"/alpha/./api",
    "escaped dots": b"/alpha/%2e%2e/beta/api",
    "half escaped dots": b"/alpha/.%2E/beta/api",
    "an escaped dot": b"/alpha/%2e/api",
    "an escaped slash": b"/alpha%2fapi",
    "an escaped slash, upper case": b"/alpha/kernelspecs/python3/..%2F..%2Fkernel.json",
    "an escaped slash, escaped": b"/alpha/%252fapi",
    "a backslash": b"/alpha\\api",
    "a backslash to climb": b"/alpha/..\\beta/api",
    "an escaped backslash": b"/alpha%5capi",
    "an escaped backslash, upper case": b"/alpha%5Capi",
    "two slashes first": b"//alpha/api",
    "two slashes": b"/alpha//api",
    "three slashes": b"/alpha/api///kernels",
    "an escaped NUL": b"/alpha/api%00",
    "an escaped NUL in the query": b"/alpha/api?x=%00",
    "a NUL": b"/alpha/api\x00",
    "a control character": b"/alpha/\x0bapi",
    "an escaped line feed": b"/alpha/api%0a",
    "a semicolon": b"/alpha/api;x=1",
    "a semicolon to climb": b"/alpha/..;/beta/api",
    "an escaped semicolon": b"/alpha/api%3bx",
    "a fragment": b"/alpha/api#x",
    "an escaped question mark": b"/alpha/api%3fx",
    "an escaped letter": b"/alph%61/api",
    "a broken escape": b"/alpha/api%zz",
    "a cut escape": b"/alpha/api%2",
    "a space": b"/alpha/api x",
    "a tab": b"/alpha\t/api",
    "UTF-8": "/alpha/äpi".encode(),
    "Latin-1": b"/alpha/\xe4pi",
    "not UTF-8, escaped": b"/alpha/%e4pi",
    "an overlong slash": b"/alpha/%c0%afapi",
    "absolute": b"http://relay/alpha/api",
    "absolute, with another host": b"https://elsewhere/alpha/api",
    "an authority": b"relay:443",
    "an asterisk": b"*",
    "nothing": b"",
    "no slash": b"alpha/api",
    "too long": b"/alpha/api?x=" + b"x" * (8193 - 13),
}


@pytest.mark.guarantee
@both_ports
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_that_could_be_read_in_two_ways(
    relay: RunningRelay, kernel: str, port: Port, name: str, *, known: bool
) -> None:
    credential = [bearer(relay)] if known else []
    for more in ([], [HANDSHAKE]):
        with wire_to(relay, port) as wire:
            wire.send(head(TARGETS[name], *credential, *more))
            answer = wire.answer()
        # Judged first: the same for everybody.
        assert answer.status == 400
        assert answer.headers["Server"] == "relay"
        assert answer.json.keys() == {"message", "reason", "request_id"}
        assert answer.json["reason"] == "Bad request"


@pytest.mark.parametrize("method", ["CONNECT", "OPTIONS"])
def test_what_belongs_to_proxies_only(relay: RunningRelay, method: str) -> None:
    with wire_to(relay) as wire:
        target = "relay:443" if method == "CONNECT" else "*"
        wire.send(head(target, bearer(relay), method=method))
        assert wire.answer().status == 400
        assert wire.rest() == b""


def test_the_longest_target(relay: RunningRelay) -> None:
    answer = relay.request("GET", "/alpha/api?x=" + "x" * (8192 - 13))
    assert answer.status == 200


# --- what is not HTTP ---

SECRET = b"c0nf1dent1al"
JUNK = {
    "no version": b"GET /alpha/api?token=SECRET\r\nHost: relay\r\n\r\n",
    "no version, let in": b"GET /alpha/api\r\nHost: relay\r\nTOKEN\r\n\r\n",
    "version 2": b"GET /alpha/api HTTP/2.0\r\nHost: relay\r\nTOKEN\r\nX: SECRET\r\n\r\n",
    "version 9.9": b"GET /SECRET HTTP/9.9\r\nHost: relay\r\nTOKEN\r\n\r\n",
    "another protocol": b"GET /SECRET SIP/2.0\r\nHost: relay\r\n\r\n",
    "HTTP/2's first words": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "one word": b"SECRET\r\n\r\n",
    "binary": b"\x16\x03\x01\x02SECRET\r\n\r\n",
    "no colon": b"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nAuthorization token SECRET\r\n\r\n",
    "a space in a name": b"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nX SECRET: 1\r\n\r\n",
    "a space before the colon": b"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nSECRET : 1\r\n\r\n",
    "a folded header": b"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nX: 1\r\n SECRET\r\n\r\n",
    "a NUL in a header": b"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nX: \x00SECRET\r\n\r\n",
    "no host": b"GET /alpha/api HTTP/1.1\r\nTOKEN\r\nX: SECRET\r\n\r\n",
    "two hosts": b"GET /alpha/api HTTP/1.1\r\nHost: relay\r\nHost: SECRET\r\nTOKEN\r\n\r\n",
    "a negative length": b"POST /alpha/api/kernels HTTP/1.1\r\nHost: relay\r\nTOKEN\r\n"
    b"Content-Length: -1\r\n\r\nSECRET",
    "two lengths": b"POST /alpha/api/kernels HTTP/1.1\r\nHost: relay\r\nTOKEN\r\n"
    b"Content-Length: 6\r\nContent-Length: 7\r\n\r\nSECRET",
    "a length, and chunks": b"POST /alpha/api/kernels HTTP/1.1\r\nHost: relay\r\nTOKEN\r\n"
    b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSECRET",
    "a length, and no chunks": b"POST /alpha/api/kernels HTTP/1.1\r\nHost: relay\r\nTOKEN\r\n"
    b"Content-Length: 6\r\nTransfer-Encoding:\r\n\r\nSECRET",
    "an unknown coding": b"POST /alpha/api/kernels HTTP/1.1\r\nHost: relay\r\nTOKEN\r\n"
    b"Transfer-Encoding: SECRET\r\n\r\n0\r\n\r\n",
    "a bad chunk": b"POST /alpha/api/kernels HTTP/1.1\r\nHost: relay\r\nTOKEN\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nSECRET\r\n\r\n",
}


@both_ports
@pytest.mark.parametrize("name", JUNK)
def test_what_is_not_http_is_refused_and_not_quoted(
    relay: RunningRelay, port: Port, name: str
) -> None:
    sent = JUNK[name].replace(b"TOKEN", bearer(relay).encode()).replace(b"SECRET", SECRET)
    with wire_to(relay, port) as wire:
        wire.send(sent)
        answer = wire.answer()
        assert answer.status == 400
        assert answer.headers["Server"] == "relay"
        assert answer.json.keys() == {"message", "reason", "request_id"}
        # One answer, whatever else may be in what was sent, and no more.
        assert wire.rest() == b""
    said = (str(answer.headers).encode() + answer.body).lower()
    for part in (SECRET, relay.info.token.encode(), b"relay_", b"aiohttp", b"python"):
        assert part not in said
    assert SECRET.decode() not in relay.log_text()


# --- TLS ---


@both_ports
def test_tls_before_1_2_is_refused(relay: RunningRelay, port: Port) -> None:
    def handshake(version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=relay.info.ca)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = context.maximum_version = version
        with Wire(url_of(relay, port), context) as wire:
            return wire.tls_version

    assert handshake(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert handshake(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError) as refused:
            handshake(version)
        # It hung up: it is not this client that is too modern.
        assert isinstance(refused.value, ssl.SSLEOFError)


@both_ports
def test_plain_http_is_not_spoken(relay: RunningRelay, port: Port) -> None:
    with Wire(url_of(relay, port), None) as wire:
        wire.send(head("/healthz"))
        assert b"HTTP/" not in wire.rest()


# --- limits ---


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    """A relay with small limits."""
    path = tmp_path_factory.mktemp("strict") / "up.yaml"
    path.write_bytes(msgspec.yaml.encode(LIMITS))
    options = ("--config", str(path), "--edge-workers", "1")
    with RunningRelay(("alpha",), options) as running:
        yield running


@pytest.fixture(scope="module")
def strict_kernel(strict: RunningRelay) -> str:
    return strict.start_kernel("alpha")


@pytest.mark.guarantee
@both_ports
@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        (2 * KIB, lambda size: head("/healthz?".ljust(size, "x"))),
        (KIB, lambda size: head("/healthz", "X: ".ljust(size + 3, "x"))),
        # One of them is the host.
        (20, lambda size: head("/healthz", *["X: x"] * (size - 1))),
    ],
    ids=["target", "header", "headers"],
)
def test_a_head_at_the_limit_and_one_beyond(
    strict: RunningRelay, port: Port, limit: int, sent: Callable[[int], bytes]
) -> None:
    with wire_to(strict, port) as wire:
        wire.send(sent(limit))
        assert wire.answer().status == 200
        wire.send(sent(limit + 1))
        assert wire.answer().status == 400
        assert wire.rest() == b""


def test_a_head_without_an_end_is_not_collected(strict: RunningRelay) -> None:
    with wire_to(strict) as wire:
        wire.send(b"GET /alpha/api?x=" + b"x" * 64 * KIB)
        assert wire.answer().status == 400


def test_the_limit_of_a_body_is_a_setting(strict: RunningRelay) -> None:
    body = b'{"name": "absent"}'
    kernels = "/alpha/api/kernels"
    refusal(strict.request("POST", kernels, body.ljust(10 * KIB)), 404, "Not found")
    answer = strict.request("POST", kernels, body.ljust(10 * KIB + 1))
    assert refusal(answer, 413, "Too large").endswith(f"over {10 * KIB} bytes (limits.body_bytes).")


@pytest.fixture
def socket(strict: RunningRelay, strict_kernel: str) -> Iterator[Wire]:
    """An open WebSocket, legacy subprotocol."""
    with wire_to(strict, "wss") as wire:
        # Without a session_id it would be told what another that broke off has not heard.
        path = f"{channels_path(strict_kernel)}?session_id={secrets.token_hex(8)}"
        wire.send(head(path, bearer(strict), HANDSHAKE))
        assert wire.answer().status == 101
        yield wire


def kernel_info_request(size: int) -> bytes:
    """A request of so many bytes, which a kernel answers."""
    msg_id = secrets.token_hex(8)
    header = {"msg_id": msg_id, "msg_type": "kernel_info_request", "session": "s", "username": ""}
    message = {"channel": "control", "header": header, "content": {}, "metadata": {}}
    return json.dumps({**message, "parent_header": {}}).encode().ljust(size)


def test_an_unmasked_frame_ends_the_websocket(socket: Wire) -> None:
    socket.send(b"\x81\x7e\x01\x00" + kernel_info_request(256))
    assert socket.frame().close_code == 1002
    assert socket.rest() == b""


def test_a_message_at_the_limit(socket: Wire) -> None:
    socket.send(masked(1, kernel_info_request(64 * KIB)))
    reply = json.loads(socket.frame().payload)
    while reply["msg_type"] != "kernel_info_reply":
        reply = json.loads(socket.frame().payload)
    assert reply["channel"] == "control"


@pytest.mark.guarantee
@pytest.mark.parametrize("pieces", [1, 5])
def test_a_message_beyond_the_limit(socket: Wire, pieces: int) -> None:
    message = kernel_info_request(64 * KIB + 1)
    size = len(message) // pieces + 1
    cut = [message[start : start + size] for start in range(0, len(message), size)]
    frames = [
        masked(0 if number else 1, piece, fin=number == pieces - 1)
        for number, piece in enumerate(cut)
    ]
    socket.send(b"".join(frames))
    close = socket.frame()
    assert close.close_code == 1009
    # Answered, as by any client: then the connection ends too.
    socket.send(masked(8, close.payload[:2]))
    assert socket.rest() == b""


def test_a_length_alone_is_enough_to_refuse_it(socket: Wire) -> None:
    socket.send(b"\x81\xff" + (1 << 62).to_bytes(8) + bytes(4))
    assert socket.frame().close_code == 1009


@pytest.mark.parametrize("v1", [False, True])
def test_a_kernels_message_beyond_the_limit(
    strict: RunningRelay, strict_kernel: str, *, v1: bool
) -> None:
    code = "from IPython.display import Pretty; Pretty('x' * {size})"
    with strict.connect("alpha", strict_kernel, v1=v1) as channels:
        done = channels.execute(code.format(size=127 * KIB))
        (result,) = done.of("execute_result")
        assert len(result["content"]["data"]["text/plain"]) == 127 * KIB
        done = channels.execute(code.format(size=129 * KIB))
        assert not list(done.of("execute_result"))
        assert "execute_result message of" in done.stderr
        assert "is left out" in done.stderr
        assert "kernels.message_bytes" in done.stderr
        assert done.replies[0]["status"] == "ok"
        assert channels.execute("print(6 * 7)").stdout == "42\n"
