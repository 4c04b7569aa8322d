"""What a kernel has said, read over HTTP by whoever may see it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.system.running import WAIT, RunningRelay, wait_for


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines() if line]


def printed(found: list[dict[str, Any]]) -> str:
    return "".join(
        line["content"]["text"]
        for line in found
        if "gap" not in line
        and line["header"]["msg_type"] == "stream"
        and line["content"]["name"] == "stdout"
    )


def past(relay: RunningRelay, kernel: str, query: str = "") -> list[dict[str, Any]]:
    answer = relay.request("GET", f"/alpha/api/kernels/{kernel}/messages{query}")
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["Server"] == "relay"
    assert len(answer.headers["X-Request-Id"]) == 32
    return lines(answer.body)


def curl(relay: RunningRelay, kernel: str, query: str, *options: str) -> subprocess.Popen[bytes]:
    url = f"{relay.info.https_url}/alpha/api/kernels/{kernel}/messages{query}"
    head = f"Authorization: token {relay.info.token}"
    return subprocess.Popen(
        ["curl", "-sSN", "--cacert", relay.info.ca, "-H", head, *options, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(program: subprocess.Popen[bytes]) -> tuple[bytes, bytes, int]:
    """The rest of what a program writes, its errors, its exit code."""
    assert program.stdout is not None
    assert program.stderr is not None
    with program.stdout, program.stderr:
        return program.stdout.read(), program.stderr.read(), program.wait(WAIT)


@contextlib.contextmanager
def stream(relay: RunningRelay, kernel: str, query: str) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(relay.info.https_url)
    assert parts.hostname is not None
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port, timeout=WAIT, context=relay.tls
    )
    with contextlib.closing(connection):
        target = f"/alpha/api/kernels/{kernel}/messages{query}"
        connection.request("GET", target, headers=relay.authorization)
        with connection.getresponse() as response:
            assert response.status == 200
            yield response


@pytest.fixture(scope="module")
def odd_relay() -> Iterator[RunningRelay]:
    """One with a small journal, whose agents are asked for a sign of life all the time."""
    settings = {
        "RELAY_JOURNAL__BYTES": "256 KiB",
        "RELAY_JOURNAL__SEGMENT_BYTES": "64 KiB",
        "RELAY_JOURNAL__TAIL_BYTES": "16 KiB",
        "RELAY_UPSTREAM__LINK_PING_INTERVAL": "0.5",
    }
    with RunningRelay(("alpha",), environ=settings) as running:
        yield running


@pytest.fixture
def own_kernel(relay: RunningRelay) -> Iterator[str]:
    kernel = relay.start_kernel("alpha")
    yield kernel
    relay.request("DELETE", f"/alpha/api/kernels/{kernel}")


@pytest.mark.guarantee
def test_a_reader_gets_what_everybody_got_and_nobodys_replies(
    relay: RunningRelay, own_kernel: str
) -> None:
    code = (
        "from ipykernel.comm import Comm\n"
        "print('Größe \\u2028 x')\n"
        "Comm(target_name='t', data={}, buffers=[bytes(range(256)) * 1000, b''])"
    )
    with relay.connect("alpha", own_kernel) as channels:
        channels.execute(code)
        channels.execute("print(2)")
    found = past(relay, own_kernel)
    assert {line["channel"] for line in found} == {"iopub"}
    keys = {"seq", "channel", "header", "parent_header", "metadata", "content", "buffers"}
    assert all(line.keys() == keys for line in found)
    epochs, seqs = zip(*(line["seq"].split("-") for line in found), strict=True)
    assert len(set(epochs)) == 1
    assert list(map(int, seqs)) == sorted(set(map(int, seqs)))
    assert printed(found) == "Größe \u2028 x\n2\n"
    (opened,) = (line for line in found if line["header"]["msg_type"] == "comm_open")

    assert [base64.b64decode(each) for each in opened["buffers"]] == [
        bytes(range(256)) * 1000,
        b"",
    ]


def test_a_script_reads_page_by_page(relay: RunningRelay, own_kernel: str) -> None:
    with relay.connect("alpha", own_kernel) as channels:
        for number in range(20):
            channels.execute(f"print({number})")
    whole = past(relay, own_kernel)
    pages, since = [], "0"
    for _ in range(200):
        page = past(relay, own_kernel, f"?since={since}&limit=7")
        if not page:
            break
        assert len(page) <= 7
        pages += page
        since = page[-1]["seq"]
    assert pages == whole
    number = whole[4]["seq"].split("-")[1]
    assert past(relay, own_kernel, f"?since={number}") == whole[5:]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("since=abc", 400, "since"),
        ("since=-1", 400, "since"),
        ("since=1&since=2", 400, "more than once"),
        ("limit=0", 400, "past.max_limit"),
        ("limit=x", 400, "past.max_limit"),
        ("limit=", 400, "past.max_limit"),
        ("limit=1000001", 400, "past.max_limit"),
        ("follow=1", 400, "true or false"),
        ("since=999999999", 409, "since=0"),
        ("since=0123456789ab-1", 409, "since=0"),
    ],
)
def test_odd_parameters_are_refused_in_words_that_help(
    relay: RunningRelay, kernel: str, query: str, status: int, words: str
) -> None:
    answer = relay.request("GET", f"/alpha/api/kernels/{kernel}/messages?{query}")
    assert answer.status == status
    assert words in answer.json["message"]
    assert relay.request("HEAD", f"/alpha/api/kernels/{kernel}/messages?{query}").status == status


def test_other_methods_and_other_kernels(relay: RunningRelay, kernel: str) -> None:
    path = f"/alpha/api/kernels/{kernel}/messages"
    head = relay.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == "application/x-ndjson"
    assert "Content-Length" not in head.headers
    assert relay.request("OPTIONS", path).headers["Allow"] == "GET, HEAD, OPTIONS"
    assert relay.request("POST", path, {}).status == 405
    assert relay.request("GET", path, headers={}).status == 401
    assert relay.request("GET", path, port="wss").status == 404
    nobody = "0a0a0a0a-0000-4000-8000-000000000000"
    assert relay.request("GET", f"/alpha/api/kernels/{nobody}/messages").status == 404
    # Another cluster's kernel is not there either.
    assert relay.request("GET", f"/beta/api/kernels/{kernel}/messages").status == 404


def test_http_1_0_cannot_tell_the_end_from_a_break(relay: RunningRelay, kernel: str) -> None:
    out, _, _ = finish(curl(relay, kernel, "", "--http1.0", "-i"))
    assert b"400 Bad Request" in out
    assert b"HTTP/1.1" in out.partition(b"\r\n\r\n")[2]


def test_curl_follows_until_the_kernel_ends(relay: RunningRelay) -> None:
    kernel = relay.start_kernel("alpha")
    follower = curl(relay, kernel, "?follow=true")
    with relay.connect("alpha", kernel) as channels:
        channels.execute("print('one')")
    assert follower.stdout is not None
    seen = b""
    while b"one\\n" not in seen:
        # It comes while the kernel runs.
        seen += follower.stdout.readline()
    assert relay.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204
    rest, problem, code = finish(follower)
    assert (code, problem) == (0, b"")
    assert lines(seen + rest)[-1]["content"] == {"execution_state": "dead"}


def test_a_follower_with_a_limit_ends_there(relay: RunningRelay, own_kernel: str) -> None:
    follower = curl(relay, own_kernel, "?follow=true&limit=3")
    with relay.connect("alpha", own_kernel) as channels:
        channels.execute("print(1)")
    out, _, code = finish(follower)
    assert len(lines(out)) == 3
    assert code == 0


@pytest.mark.guarantee
def test_what_the_journal_dropped_is_an_exact_gap(odd_relay: RunningRelay) -> None:
    kernel = odd_relay.start_kernel("alpha")
    with odd_relay.connect("alpha", kernel) as channels:
        for number in range(40):
            channels.execute(f"print('{number}' * 10_000)")
    first, *rest = past(odd_relay, kernel)
    assert first["setting"] == "journal.bytes"
    epoch, _, last = first["seq"].partition("-")
    assert first["gap"] == int(last)
    # The next is the next, unless that is a reply.
    assert int(rest[0]["seq"].removeprefix(f"{epoch}-")) - int(last) in {1, 2}
    # Whoever goes on from the gap's own seq meets no gap.
    assert past(odd_relay, kernel, f"?since={first['seq']}") == rest
    gaps = "relay_agent_gaps_total 1.0"
    assert wait_for(gaps, lambda: gaps in odd_relay.metrics("alpha"))
    assert 'relay_limit_hits_total{setting="journal.bytes"} 1.0' in odd_relay.metrics("alpha")


@pytest.mark.guarantee
def test_an_agent_that_dies_breaks_the_stream_and_a_script_goes_on(
    odd_relay: RunningRelay,
) -> None:
    kernel = odd_relay.start_kernel("alpha")
    follower = curl(odd_relay, kernel, "?follow=true")
    with odd_relay.connect("alpha", kernel) as channels:
        channels.execute("print('before')")
        assert follower.stdout is not None
        seen = b""
        while b'"idle"' not in seen.rpartition(b"before")[2] or b"before" not in seen:
            seen += follower.stdout.readline()
        odd_relay.kill_agent("alpha")
        rest, problem, code = finish(follower)
        # 18: "a partial file", not an end.
        assert code == 18, problem
        channels.execute("print('after')")
    found = lines(seen + rest)
    up = "an agent"
    wait_for(up, lambda: odd_relay.request("GET", "/alpha/api/kernels").status == 200)
    later = past(odd_relay, kernel, f"?since={found[-1]['seq']}")
    assert printed(found + later) == "before\nafter\n"
    assert "relay_edge_broken_answers_total" in odd_relay.metrics()


def test_an_agent_that_hangs_is_noticed(odd_relay: RunningRelay) -> None:
    kernel = odd_relay.start_kernel("alpha")
    with stream(odd_relay, kernel, "?follow=true") as response:
        # Every moment a sign of life, and nothing else: an empty line.
        deadline = time.monotonic() + WAIT
        while response.readline() != b"\n":
            assert time.monotonic() < deadline
        assert response.readline() == b"\n"
        agent = odd_relay.agent_pid("alpha")
        os.kill(agent, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
                response.read()
            assert time.monotonic() - started < 10
        finally:
            os.kill(agent, signal.SIGCONT)


def test_a_relay_that_is_stopped_does_not_wait_for_followers(odd_relay: RunningRelay) -> None:
    kernel = odd_relay.start_kernel("alpha")
    follower = curl(odd_relay, kernel, "?follow=true")
    assert follower.stdout is not None
    follower.stdout.readline()
    started = time.monotonic()
    assert odd_relay.stop() == 0
    # Less than `drain`.
    assert time.monotonic() - started < 4.5
    _, _, code = finish(follower)
    assert code in {18, 56}
    odd_relay.start()


@pytest.mark.slow
def test_a_reader_that_does_not_read_costs_no_memory() -> None:
    with RunningRelay(("alpha",)) as relay:
        kernel = relay.start_kernel("alpha")
        with relay.connect("alpha", kernel) as channels:
            # 130 MB, in messages of every size.
            channels.execute("for n in range(130): print('x' * 1_000_000, flush=True)")
        pids = relay.info.pids
        processes = [psutil.Process(pid) for pid in (*pids.edge, *pids.agents["alpha"])]
        holder = json.loads(next(relay.state.glob("*/kernels/*/record.json")).read_bytes())
        processes.append(psutil.Process(holder["holder_pid"]))

        def memory() -> list[int]:
            return [process.memory_info().rss for process in processes]

        before = memory()
        with stream(relay, kernel, "") as response:
            time.sleep(3)
            grown = [now - then for now, then in zip(memory(), before, strict=True)]
            assert max(grown) < 24_000_000, grown
            size = sum(len(chunk) for chunk in iter(lambda: response.read(2**20), b""))
        assert size > 130_000_000
        grown = [now - then for now, then in zip(memory(), before, strict=True)]
        assert max(grown) < 48_000_000, grown
