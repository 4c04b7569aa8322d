"""What a few bytes could make the relay do: work out of all proportion, and what is left of it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import pytest

from tests.system.echo import KERNEL, echoing
from tests.system.recorder import Watched, edge, watched
from tests.system.running import RunningRelay, wait_for
from tests.system.wire import HANDSHAKE, Wire, masked, refusal

__all__ = ["edge"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MIB: Final = 1024 * 1024
KERNELS: Final = "/alpha/api/kernels"


def head(edge: Watched, method: str, target: str, *lines: str) -> bytes:
    token = f"Authorization: Bearer {edge.token}"
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", "Host: relay", token, *lines, "", ""]
    ).encode()


def growth(edge: Watched, attack: Callable[[], None]) -> float:
    """MiB that the edge's processes have grown by."""
    before = resident(edge)
    attack()
    return (resident(edge) - before) / MIB


def processes(edge: Watched) -> list[int]:
    """The edge's parent and its workers."""
    parent = edge.edge.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [parent, *map(int, children)]


def resident(edge: Watched) -> int:
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes(edge)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def descriptors(edge: Watched) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes(edge))


class Good:
    """A client that does what it should, again and again, while somebody else does not."""

    def __init__(self, edge: Watched) -> None:
        self.seconds: list[float] = []
        self.statuses: set[int] = set()
        self._edge = edge
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with Wire(self._edge.url, self._edge.tls, timeout=60.0) as wire:
            while not self._ends.wait(0.02):
                begun = time.monotonic()
                wire.send(head(self._edge, "GET", "/alpha/api"))
                self.statuses.add(wire.answer().status)
                self.seconds.append(time.monotonic() - begun)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        wait_for("some answers", lambda: len(self.seconds) >= 20)
        self._ends.set()
        self._thread.join()

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.seconds, n=100)[98]


def calm(edge: Watched) -> float:
    """What the good client's p99 may be: a second, or more where the machine is busy anyway."""
    with Good(edge) as good:
        time.sleep(1)
    return max(1.0, 4 * good.p99)


def tiny_chunks(size: int) -> bytes:
    return b"1\r\nx\r\n" * size


@pytest.mark.parametrize(
    ("chunks", "status"),
    [(1000, 200), (MIB, 200), (MIB + 1, 413)],
    ids=["few", "at the limit", "beyond"],
)
def test_a_body_in_chunks_of_one_byte(edge: Watched, chunks: int, status: int) -> None:
    """CVE-2025-69229: a million chunks were a million pieces of memory."""

    def attack() -> None:
        with Wire(edge.url, edge.tls, timeout=120.0) as wire:
            wire.send(head(edge, "POST", KERNELS, "Transfer-Encoding: chunked"))
            for _ in range(chunks // 10_000):
                wire.send(tiny_chunks(10_000))
            wire.send(tiny_chunks(chunks % 10_000) + b"0\r\n\r\n")
            assert wire.answer().status == status

    bound = calm(edge)
    with Good(edge) as good:
        grown = growth(edge, attack)
    assert grown <= 64
    assert good.statuses == {200}
    assert good.p99 < bound
    edge.agent.take()


def test_a_chunk_whose_extension_never_ends(edge: Watched) -> None:
    def attack() -> None:
        with Wire(edge.url, edge.tls, timeout=60.0) as wire:
            wire.send(head(edge, "POST", KERNELS, "Transfer-Encoding: chunked") + b"1;")
            try:
                for _ in range(200):
                    wire.send(b"x" * 65_536)
            except OSError:
                return
            wire.send(b"\r\nx\r\n0\r\n\r\n")
            assert wire.answer().status in {200, 400}

    assert growth(edge, attack) <= 64
    edge.agent.take()


def test_trailers_without_end(edge: Watched) -> None:
    def attack() -> None:
        with Wire(edge.url, edge.tls, timeout=60.0) as wire:
            wire.send(head(edge, "POST", KERNELS, "Transfer-Encoding: chunked") + b"0\r\n")
            try:
                for _ in range(100):
                    wire.send(b"X: yyyyyyyy\r\n" * 5000)
            except OSError:
                return

    assert growth(edge, attack) <= 64
    edge.agent.take()


@pytest.fixture(scope="module")
def echo() -> Iterator[Watched]:
    """An edge whose kernels say everything back."""
    with echoing() as agent, watched(agent) as running:
        yield running


def opened(echo: Watched) -> Wire:
    wire = Wire(echo.wss, echo.tls, timeout=60.0)
    wire.send(head(echo, "GET", KERNEL, HANDSHAKE.decode().strip()))
    assert wire.answer().status == 101
    return wire


def until_closed(wire: Wire, data: bytes, times: int) -> int:
    """Send it so many times: the code with which it is closed."""
    try:
        for _ in range(times):
            wire.send(data)
    except OSError:
        # It hung up; what it said first may still be there.
        pass
    while True:
        frame = wire.frame()
        if frame.opcode == 8:
            return frame.close_code


FLOODS: Final = {
    "fragments without end": (masked(2, b"x", fin=False), masked(0, b"x", fin=False), 1009),
    "empty fragments": (masked(1, b"", fin=False), masked(0, b"", fin=False), 1009),
    "pings": (b"", masked(9, b"x" * 125), 1008),
    "empty pings": (b"", masked(9, b""), 1008),
    "pongs": (b"", masked(10, b"x"), 1008),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames(echo: Watched, name: str) -> None:
    first, more, code = FLOODS[name]

    def attack() -> None:
        with opened(echo) as wire:
            wire.send(first)
            assert until_closed(wire, more * 1000, 20) == code

    bound = calm(echo)
    with Good(echo) as good:
        grown = growth(echo, attack)
    assert grown <= 64
    assert good.statuses == {200}
    assert good.p99 < bound


FRAMES: Final = {
    "unmasked": (b"\x81\x01x", 1002),
    "the first reserved bit, as if compressed": (masked(0x41, b"x"), 1002),
    "the second reserved bit": (masked(0x21, b"x"), 1002),
    "the third reserved bit": (masked(0x11, b"x"), 1002),
    "an unknown opcode": (masked(3, b"x"), 1002),
    "an unknown control opcode": (masked(11, b"x"), 1002),
    "a long ping": (masked(9, b"x" * 126), 1002),
    "a ping in pieces": (masked(9, b"x", fin=False), 1002),
    "a close of one byte": (masked(8, b"x"), 1002),
    "a close with a bad code": (masked(8, b"\x03\xec"), 1002),
    "a close whose reason is no text": (masked(8, b"\x03\xe8\xff"), 1007),
    "a continuation of nothing": (masked(0, b"x"), 1002),
    "a beginning in the middle": (masked(1, b"x", fin=False) + masked(1, b"x"), 1002),
    "a text that is none": (masked(1, b"\xff"), 1007),
    "a text that is none, in pieces": (masked(1, b"\xce", fin=False) + masked(0, b"\xce"), 1007),
    "a text that is cut off": (masked(1, b"\xce"), 1007),
    "a length past 2^63": (b"\x81\xff" + b"\xff" * 8 + bytes(4), 1009),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_bad_frame_ends_the_websocket(echo: Watched, name: str) -> None:
    data, code = FRAMES[name]
    with opened(echo) as wire:
        assert until_closed(wire, data, 1) == code


def test_nothing_is_left_of_five_hundred_connections(echo: Watched) -> None:
    """As of each kind that a client can break off."""
    parts = urlsplit(echo.url)
    address = parts.hostname, parts.port
    with Wire(echo.url, echo.tls) as wire:
        wire.send(head(echo, "GET", "/alpha/api"))
        wire.answer()
    base = descriptors(echo)
    for number in range(500):
        match number % 5:
            case 0:
                # Nothing, or half a handshake of TLS.
                with socket.create_connection(address, 60.0) as plain:
                    plain.sendall(b"\x16\x03\x01"[: number % 4])
            case 1:
                with Wire(echo.url, echo.tls, timeout=60.0) as wire:
                    wire.send(b"GET /alpha/api HTTP/1.1\r\nHost")
            case 2:
                with Wire(echo.url, echo.tls, timeout=60.0) as wire:
                    wire.send(head(echo, "POST", KERNELS, "Content-Length: 1000") + b"x")
            case 3:
                with opened(echo) as wire:
                    wire.send(masked(1, b"x", fin=False))
            case _:
                with opened(echo) as wire:
                    wire.send(masked(8, b""))
                    wire.rest()
    wait_for("their descriptors", lambda: descriptors(echo) <= base + 10, 30.0)


# --- what only an agent looks into ---


def nested(depth: int, opening: str, closing: str) -> bytes:
    return ('{"name": "python3", "env": ' + opening * depth + closing * depth + "}").encode()


BODIES: Final = {
    "deep lists": nested(200_000, "[", "]"),
    "deep lists, unfinished": b"[" * MIB,
    "deep objects": nested(100_000, '{"a":', "}"),
    "deep under a name that nobody reads": b'{"name": "absent", "x": ' + b"[" * 500_000,
    "a number of a million digits": b'{"name": ' + b"9" * 1_000_000 + b"}",
    "a number past all bounds": b'{"name": 1e999999999}',
    "a number for a name": b'{"name": 1e400}',
    "not a number": b'{"name": NaN}',
    "a lone surrogate": b'{"name": "\\ud800"}',
    "not UTF-8": b'{"name": "\xff"}',
    "a list": b"[]",
    "two values": b'{"name": "absent"} {}',
    "nothing but quotes": b'"' * MIB,
    "escapes": b'{"name": "' + b"\\u0041" * 170_000 + b'"}',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request(relay: RunningRelay, name: str) -> None:
    begun = time.monotonic()
    answer = relay.request("POST", KERNELS, BODIES[name])
    assert answer.status in {400, 404}, answer
    assert answer.json.keys() == {"message", "reason", "request_id"}
    assert time.monotonic() - begun < 10
    assert relay.request("GET", "/alpha/api").status == 200


def test_of_two_names_it_is_the_same_one_that_counts_everywhere(relay: RunningRelay) -> None:
    # The edge looks into no body, so that nobody judges by the first and starts the second.
    for body in (
        b'{"name": "python3", "name": "absent"}',
        b'{"name":"python3","n\\u0061me":"absent"}',
    ):
        assert relay.request("POST", KERNELS, body).status == 404


def v1(*offsets: int, count: int | None = None, rest: bytes = b"") -> bytes:
    return struct.pack(f"<{len(offsets) + 1}Q", count or len(offsets), *offsets) + rest


COUNTS: Final = {
    "eight bytes for 0.4 GB": struct.pack("<Q", 50_000_000),
    "eight bytes for everything": struct.pack("<Q", 2**64 - 1),
    "none": struct.pack("<Q", 0),
    "seven bytes": bytes(7),
    "fewer than there must be": v1(16, 16),
    "more than there are": v1(56, 57, count=6),
    "offsets that fall": v1(56, 60, 58, 62, 64, 66, rest=bytes(20)),
    "offsets outside": v1(56, 61, 62, 63, 64, 2**63, rest=b"shell{}{}{}"),
    "offsets into the table": v1(0, 8, 16, 24, 32, 40, rest=bytes(20)),
    "a million offsets": struct.pack("<Q", 1_000_000) + bytes(8 * 1_000_000),
    "no such channel": v1(56, 60, 62, 64, 66, 68, rest=b"none{}{}{}{}"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_that_lie_end_the_websocket(relay: RunningRelay, kernel: str, name: str) -> None:
    """jupyter_server before 2.21.1 took them at their word."""
    channels = f"/alpha/api/kernels/{kernel}/channels?session_id={secrets.token_hex(8)}"
    offer = "Sec-WebSocket-Protocol: v1.kernel.websocket.jupyter.org\r\n"
    sent = f"GET {channels} HTTP/1.1\r\nHost: relay\r\n{offer}"
    sent += f"Authorization: Bearer {relay.info.token}\r\n{HANDSHAKE.decode()}\r\n"
    with Wire(relay.info.wss_url, relay.tls, timeout=60.0) as wire:
        wire.send(sent.encode())
        assert wire.answer().status == 101
        assert until_closed(wire, masked(2, COUNTS[name]), 1) == 1007
    agent = relay.agent_pid("alpha")
    pages = int(Path(f"/proc/{agent}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < 400 * MIB


def test_starts_at_once_do_not_mix(relay: RunningRelay) -> None:
    """Enterprise Gateway swaps a shared function for each start: environments changed hands."""
    numbers = range(4)
    answers: dict[int, str] = {}

    def start(number: int) -> None:
        env = {"KERNEL_NUMBER": str(number), f"KERNEL_ONLY_{number}": "1"}
        answer = relay.request("POST", "/alpha/api/kernels", {"name": "python3", "env": env})
        assert answer.status == 201
        answers[number] = answer.json["id"]

    threads = [threading.Thread(target=start, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers.values())) == len(numbers)
    for number, kernel in answers.items():
        request = relay.state / "alpha/kernels" / kernel / "request.json"
        got = json.loads(request.read_bytes())["environment"]
        assert got["KERNEL_NUMBER"] == str(number)
        assert [n for n in numbers if f"KERNEL_ONLY_{n}" in got] == [number]
        assert relay.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204


def test_nobody_is_sent_elsewhere(edge: Watched) -> None:
    """CVE-2020-26232 and others: there are no redirects, so none can be open."""
    for path in ("", "alpha", "alpha/", "alpha/api/", "%2F%2Felsewhere", "login?next=//elsewhere"):
        for method in ("GET", "POST", "OPTIONS"):
            for token in (edge.token, "relay_wrong"):
                lines = [f"{method} /{path} HTTP/1.1", "Host: relay", "X-Forwarded-Proto: http"]
                lines += ["X-Forwarded-Host: elsewhere", f"Authorization: Bearer {token}"]
                with Wire(edge.url, edge.tls, timeout=60.0) as wire:
                    wire.send("\r\n".join([*lines, "", ""]).encode())
                    answer = wire.answer(method)
                assert not 300 <= answer.status < 400
                assert "Location" not in answer.headers
                if answer.status >= 400:
                    reasons = {400: "Bad request", 401: "Unauthorized", 404: "Not found"}
                    refusal(answer, answer.status, reasons[answer.status])
