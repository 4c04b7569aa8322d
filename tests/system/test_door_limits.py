"""Limits that hold over all workers of an edge, at the limit and one past it."""

from __future__ import annotations

import os
import re
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from tests.system.running import Answer, RunningRelay, wait_for
from tests.system.test_door import bearer, channels_path, head, wire_to
from tests.system.wire import HANDSHAKE, Wire, refusal

WINDOW = 15.0
CONFIG = {
    "edge_workers": 3,
    "connections": {"per_address": 20},
    "quotas": {"user_sockets": 4, "user_requests": 2.0, "user_burst": 60},
    "logins": {"failures": 5, "window": WINDOW},
    "limits": {"head_bytes": 4096},
}


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    path = tmp_path_factory.mktemp("quotas") / "up.yaml"
    path.write_bytes(msgspec.yaml.encode(CONFIG))
    with RunningRelay(("alpha",), ("--config", str(path))) as running:
        yield running


@pytest.fixture(scope="module")
def kernel(relay: RunningRelay) -> str:
    return relay.start_kernel("alpha")


def hits(relay: RunningRelay, setting: str) -> float:
    found = re.search(rf'relay_limit_hits_total{{setting="{setting}"}} ([\d.]+)', relay.metrics())
    return float(found[1]) if found else 0.0


def attempt(relay: RunningRelay, shown: str = "wrong") -> Answer:
    """On a connection of its own: any of the workers may get it."""
    return relay.request("GET", "/alpha/api", headers={"Authorization": f"token {shown}"})


def test_wrong_tokens_at_the_limit_and_past_it(relay: RunningRelay) -> None:
    begin = time.monotonic()
    for _ in range(5):
        refusal(attempt(relay), 401, "Unauthorized")
    answer = attempt(relay, "another")
    if time.monotonic() - begin > WINDOW:
        pytest.skip("the machine is too busy to be wrong often enough")
    assert "(logins.failures)" in refusal(answer, 429, "Too many requests")
    assert 1 <= int(answer.headers["Retry-After"]) <= WINDOW
    # Neither malformed ones help, nor headers of one's own.
    for headers in (
        {"Authorization": "Digest x"},
        {"Authorization": "token wrong", "X-Forwarded-For": "192.0.2.1"},
        {"Authorization": "token wrong", "Forwarded": "for=192.0.2.1"},
    ):
        assert relay.request("GET", "/alpha/api", headers=headers).status == 429
    # Whoever is right comes in, whoever shows nothing is told so, from the same address.
    assert attempt(relay, relay.info.token).status == 200
    refusal(relay.request("GET", "/alpha/api", headers={}), 401, "Unauthorized")
    assert hits(relay, "logins.failures") == 4
    wait_for("an end of it", lambda: attempt(relay).status == 401, 2 * WINDOW)


def upgrade(relay: RunningRelay, kernel: str) -> tuple[Wire, Answer]:
    wire = wire_to(relay, "wss")
    wire.send(head(channels_path(kernel), bearer(relay), HANDSHAKE))
    return wire, wire.answer()


def test_sockets_of_a_user_at_the_limit_and_past_it(relay: RunningRelay, kernel: str) -> None:
    with ExitStack() as held:
        for _ in range(4):
            wire, answer = upgrade(relay, kernel)
            held.enter_context(wire)
            assert answer.status == 101
        wire, answer = upgrade(relay, kernel)
        held.enter_context(wire)
        assert "(quotas.user_sockets)" in refusal(answer, 403, "Limit reached")
        assert hits(relay, "quotas.user_sockets") == 1

    def opens() -> bool:
        wire, answer = upgrade(relay, kernel)
        wire.close()
        return answer.status == 101

    wait_for("room for another", opens)


def test_connections_of_an_address_at_the_limit_and_past_it(relay: RunningRelay) -> None:
    def cut() -> bool:
        try:
            wire = wire_to(relay)
        except (OSError, ssl.SSLError):
            return True
        held.enter_context(wire)
        return False

    with ExitStack() as held:
        wires = [held.enter_context(wire_to(relay)) for _ in range(10)]
        wait_for("the limit", cut)
        assert hits(relay, "connections.per_address") >= 1
        for wire in wires:
            wire.send(head("/healthz"))
            assert wire.answer().status == 200
    wait_for("room again", lambda: not cut())
    held.close()


def test_heads_at_the_limit_and_past_it(relay: RunningRelay) -> None:
    lines = ["A: " + "x" * 3000, "B: "]
    empty = len(head("/healthz", *lines))

    def sized(size: int) -> bytes:
        return head("/healthz", lines[0], "B: ".ljust(size - empty + 3, "x"))

    with wire_to(relay) as wire:
        # The header that is empty above has no space behind its colon.
        wire.send(sized(4096 - 1))
        assert wire.answer().status == 200
        wire.send(sized(4096 + 1))
        assert "(limits.head_bytes)" in refusal(wire.answer(), 400, "Bad request")
        assert wire.rest() == b""


def test_a_killed_worker_leaves_no_sockets_behind(relay: RunningRelay, kernel: str) -> None:

    with ExitStack() as held:
        for _ in range(4):
            wire, answer = upgrade(relay, kernel)
            held.enter_context(wire)
            assert answer.status == 101
        for pid in relay.info.pids.edge:
            os.kill(pid, signal.SIGKILL)

        def opens() -> bool:
            try:
                wire, answer = upgrade(relay, kernel)
            except (OSError, ValueError):
                return False
            held.enter_context(wire)
            return answer.status == 101

        for _ in range(4):
            wait_for("the places of those that were killed", opens)


@pytest.mark.parametrize("size", [100, 10_000_000])
def test_a_body_without_a_token_is_not_read(relay: RunningRelay, size: int) -> None:
    with wire_to(relay) as wire:
        wire.send(head("/alpha/api/kernels", f"Content-Length: {size}", method="POST"))
        refusal(wire.answer(), 401, "Unauthorized")
        assert wire.rest() == b""
    # Nor does a client that sends it all the same miss the answer.
    answer = relay.request("POST", "/alpha/api/kernels", b"x" * 500_000, headers={})
    refusal(answer, 401, "Unauthorized")


def test_requests_of_a_user_past_the_rate(relay: RunningRelay) -> None:
    """The last one here: it leaves nothing for others."""
    with wire_to(relay) as wire:
        # It would take this machine half a minute to be within the rate.
        wire.send(head("/alpha/api", bearer(relay)) * 120)
        answers = [wire.answer() for _ in range(120)]
    statuses = {answer.status for answer in answers}
    assert statuses == {200, 429}
    first = next(answer for answer in answers if answer.status == 429)
    assert "(quotas.user_requests)" in refusal(first, 429, "Too many requests")
    assert first.headers["Retry-After"] == "1"
    time.sleep(2.0)
    assert relay.request("GET", "/alpha/api").status == 200
