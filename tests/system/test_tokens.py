"""Tokens of a running relay: made, revoked, expired, narrowed, in a path and in a subprotocol."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from websockets.exceptions import ConnectionClosed, InvalidStatus

from relay import tokenfile
from relay.auth.tokens import TokenRecord, TokenStore, generate
from tests.system.channels import Channels, connect
from tests.system.javascript import install, services
from tests.system.running import MANY, WAIT, Answer, RunningRelay, http_request, wait_for
from tests.system.separate import log_lines
from tests.system.test_notebooks import Batch, tools
from tests.system.wire import HANDSHAKE, Wire, refusal

AT_ONCE = 2.0
"""Seconds until what is revoked is ended."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    """A relay with path tokens."""
    config = tmp_path_factory.mktemp("config") / "up.yaml"
    config.write_text("path_tokens: {max_lifetime: 3600}\nshared_uid: true\n")
    with RunningRelay(("alpha",), ("--config", str(config)), MANY) as running:
        yield running


@pytest.fixture(scope="module")
def own_kernel(own: RunningRelay) -> str:
    return own.start_kernel("alpha")


def command(relay: RunningRelay, *arguments: str) -> str:
    """Run `relay token`: what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", "token", *arguments, "--state-dir", str(relay.state)],
        env=relay.environ,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def user_of(relay: RunningRelay) -> str:
    """Whose the first token is, and with it the kernels."""
    return tokenfile.read(relay.state / "tokens.json").records[0].user


def made(relay: RunningRelay, **options: Any) -> tuple[str, TokenRecord]:
    """What `relay token create` makes, without waiting for a process to start."""
    token, record = generate(options.pop("user", user_of(relay)), time.time(), **options)
    add(relay, record)
    wait_for("the token", lambda: knows(relay, token, path=record.path))
    return token, record


def add(relay: RunningRelay, *records: TokenRecord) -> None:
    path = relay.state / "tokens.json"
    with tokenfile.locked(path):
        tokenfile.write(path, TokenStore((*tokenfile.read(path).records, *records)))


def remove(relay: RunningRelay, record: TokenRecord) -> None:
    """What `relay token revoke` does."""
    path = relay.state / "tokens.json"
    with tokenfile.locked(path):
        left = (each for each in tokenfile.read(path).records if each.id != record.id)
        tokenfile.write(path, TokenStore(left))


def knows(relay: RunningRelay, token: str, *, path: bool = False) -> bool:
    """Whether each worker knows it: which of them answers is chance."""
    if path:
        answers = (ask(relay, f"/t/{token}/alpha/api", {}) for _ in range(12))
    else:
        answers = (ask(relay, "/alpha/api", bearing(token)) for _ in range(12))
    return all(answer.status == 200 for answer in answers)


def refused(relay: RunningRelay, target: str, headers: dict[str, str]) -> bool:
    """Whether each worker refuses this; as `knows`."""
    return all(ask(relay, target, headers).status == 401 for _ in range(12))


def ask(
    relay: RunningRelay, target: str, headers: dict[str, str], method: str = "GET", body: Any = None
) -> Answer:
    return http_request(relay.info.https_url, method, target, body, headers=headers, tls=relay.tls)


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def opened(relay: RunningRelay, kernel: str, token: str, session: str = "") -> Channels:
    return connect(
        f"{relay.info.wss_url}/alpha/api/kernels/{kernel}/channels",
        headers=bearing(token),
        tls=relay.tls_for_threads,
        session=session,
    )


def listen(channels: Channels, until: float) -> None:
    while True:
        channels.receive(max(0.0, until - time.monotonic()))


def closed(channels: Channels, within: float) -> tuple[int, str, float]:
    """The close code and reason, and after how many seconds. Whatever comes before is passed."""
    begun = time.monotonic()
    with pytest.raises(ConnectionClosed) as ended:
        listen(channels, begun + within)
    close = ended.value.rcvd
    assert close is not None
    return close.code, close.reason, time.monotonic() - begun


def workers_with_sockets(relay: RunningRelay, user: str) -> set[int]:
    lines = log_lines(relay.log.read_text())
    return {
        line["pid"]
        for line in lines
        if (line.get("kind"), line["event"]) == ("channels", "request")
        and line.get("principal") == f"token:{user}"
    }


@contextlib.contextmanager
def on_both_workers(
    relay: RunningRelay, kernel: str, token: str, user: str
) -> Iterator[list[Channels]]:
    """Open WebSockets, at least one on each worker."""
    with contextlib.ExitStack() as stack:
        sockets: list[Channels] = []
        while len(sockets) < 4 or len(workers_with_sockets(relay, user)) < 2:
            assert len(sockets) < 60, "all on one worker"
            session = f"{user}-{len(sockets)}"
            sockets.append(stack.enter_context(opened(relay, kernel, token, session)))
        yield sockets


# Made and revoked, with the command itself


def test_a_new_token_works_and_its_revocation_ends_what_it_opened(own: RunningRelay) -> None:
    token = command(own, "create", "--user", "bob", "--ttl", "1h", "--note", "a test")
    wait_for("the token", lambda: knows(own, token), 2.0)
    kernel = ask(own, "/alpha/api/kernels", bearing(token), "POST", {"name": "python3"}).json["id"]
    with on_both_workers(own, kernel, token, "bob") as sockets:
        assert sockets[0].execute("kept = 42").replies[0]["status"] == "ok"
        listed = next(line for line in command(own, "list").splitlines() if "bob" in line)
        assert listed.endswith("a test")
        command(own, "revoke", listed.split()[0])
        ends = [closed(each, AT_ONCE) for each in sockets]
    assert {(code, reason) for code, reason, _ in ends} == {(4401, "the credential was revoked")}
    refusal(ask(own, "/alpha/api", bearing(token)), 401, "Unauthorized")
    with pytest.raises(InvalidStatus) as upgrade:
        opened(own, kernel, token)
    assert upgrade.value.response.status_code == 401
    # The kernel lives on, for whoever it is with another token.
    again, _ = made(own, user="bob")
    with opened(own, kernel, again) as channels:
        assert channels.execute("print(kept)").stdout == "42\n"
    assert token not in own.log_text()


def test_of_two_commands_at_once_none_is_lost(own: RunningRelay) -> None:
    argv = [sys.executable, "-m", "relay", "token", "create", "--user", "carol", "--state-dir"]
    programs = [
        subprocess.Popen([*argv, str(own.state)], env=own.environ, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    tokens = [each.communicate(timeout=WAIT)[0].decode().strip() for each in programs]
    assert len(set(tokens)) == 3
    for token in tokens:
        wait_for("the token", lambda token=token: knows(own, token), 2.0)  # type: ignore[misc]


def test_who_is_unknown_makes_nothing(own: RunningRelay) -> None:
    before = (own.state / "tokens.json").read_bytes()
    with pytest.raises(AssertionError, match="no token has the id"):
        command(own, "revoke", "nobody")
    assert (own.state / "tokens.json").read_bytes() == before


# Expiry, damage


def test_a_websocket_ends_when_its_token_expires(own: RunningRelay, own_kernel: str) -> None:
    token, record = made(own, lifetime=6.0)
    assert record.expires is not None
    with opened(own, own_kernel, token) as channels:
        assert channels.execute("print(1)").stdout == "1\n"
        code, reason, _ = closed(channels, 10.0)
    assert (code, reason) == (4401, "the credential has expired")
    assert record.expires <= time.time() <= record.expires + AT_ONCE
    refusal(ask(own, "/alpha/api", bearing(token)), 401, "Unauthorized")


def test_a_followed_answer_ends_with_its_token(own: RunningRelay, own_kernel: str) -> None:
    token, record = made(own)
    url = urlsplit(own.info.https_url)
    connection = http.client.HTTPSConnection(
        url.hostname or "", url.port, timeout=10.0, context=own.tls
    )
    with contextlib.closing(connection):
        path = f"/alpha/api/kernels/{own_kernel}/messages?follow=true"
        connection.request("GET", path, headers=bearing(token))
        response = connection.getresponse()
        assert response.status == 200
        assert response.readline()
        remove(own, record)
        begun = time.monotonic()
        # Without its end, so that nobody takes it for whole.
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        assert time.monotonic() - begun < AT_ONCE + 1
    wait_for("the other worker", lambda: refused(own, "/alpha/api", bearing(token)), AT_ONCE)
    refusal(ask(own, path, bearing(token)), 401, "Unauthorized")


@pytest.mark.parametrize("damage", [b"", b'{"tokens": []', None])
def test_a_damaged_file_neither_opens_nor_empties(
    own: RunningRelay, own_kernel: str, damage: bytes | None
) -> None:
    token, _ = made(own)
    path = own.state / "tokens.json"
    good = path.read_bytes()
    failures = "relay_edge_refused_token_files_total"

    def counted() -> float:
        lines = own.metrics().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(failures))

    before = counted()
    with opened(own, own_kernel, token) as channels:
        try:
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            # Each worker says so once.
            wait_for("the failures", lambda: counted() == before + 2, 5.0)
            time.sleep(1.5)
            assert counted() == before + 2
            assert knows(own, token)
            for wrong in ("", "relay_x", token[:-1]):
                refusal(ask(own, "/alpha/api", bearing(wrong)), 401, "Unauthorized")
            assert channels.execute("print(2)").stdout == "2\n"
        finally:
            path.write_bytes(good)


# Rules that change


@pytest.fixture
def change_rules(own: RunningRelay) -> Iterator[Callable[[Any], None]]:
    """Write other rules into the edge's configuration and tell it to read them."""
    path = own.state / "run" / "edge.yaml"
    before = path.read_text()
    edge = psutil.Process(own.info.pids.edge[0]).parent()
    assert edge is not None

    def heard(event: str) -> int:
        return sum(line["event"] == event for line in log_lines(own.log.read_text()))

    def change(rules: Any) -> None:
        """``rules``: a list, or the whole text."""
        taken, refused = heard("policy_applied"), heard("configuration_invalid")
        text = rules
        if not isinstance(rules, str):
            text = yaml.safe_dump({**yaml.safe_load(before), "policy": {"rules": rules}})
        path.write_text(text)
        edge.send_signal(signal.SIGHUP)
        wait_for(
            "both workers, or the parent",
            lambda: (
                heard("policy_applied") >= taken + 2 or heard("configuration_invalid") > refused
            ),
            5.0,
        )

    yield change
    change(before)


def rule(user: str, **more: Any) -> dict[str, Any]:
    actions = ["list", "start", "use", "view", "interrupt", "stop"]
    return {"authenticator": "token", "user": user, "actions": actions, **more}


def test_a_rule_that_goes_ends_what_it_allowed(
    own: RunningRelay, change_rules: Callable[[Any], None]
) -> None:
    kept, _ = made(own, user="dave")
    lost, _ = made(own, user="erin")
    kernels = [
        ask(own, "/alpha/api/kernels", bearing(each), "POST", {"name": "python3"}).json["id"]
        for each in (kept, lost)
    ]
    workers = own.info.pids.edge
    with (
        opened(own, kernels[0], kept) as stays,
        on_both_workers(own, kernels[1], lost, "erin") as sockets,
    ):
        # What cannot be read changes nothing.
        change_rules([{"authenticator": "token", "actions": ["fly"]}])
        change_rules("policy: [")
        assert sockets[0].execute("kept = 1").replies[0]["status"] == "ok"
        change_rules([rule("dave"), rule("erin", clusters=["beta"])])
        ends = [closed(each, AT_ONCE) for each in sockets]
        assert stays.execute("print(3)").stdout == "3\n"
    assert {(code, reason) for code, reason, _ in ends} == {(4403, "no longer allowed")}
    refusal(ask(own, "/alpha/api", bearing(lost)), 404, "Not found")
    assert own.info.pids.edge == workers


def test_workers_that_die_while_the_file_is_edited_come_back(
    own: RunningRelay, change_rules: Callable[[Any], None]
) -> None:
    kept, _ = made(own, user="dave")
    change_rules([rule("dave")])
    change_rules("policy: [")
    workers = own.info.pids.edge
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for("other workers", lambda: not set(workers) & set(own.info.pids.edge))
    assert ask(own, "/alpha/api", bearing(kept)).status == 200
    refusal(ask(own, "/alpha/api", own.authorization), 404, "Not found")


def test_rights_that_change_lose_no_output(
    own: RunningRelay, change_rules: Callable[[Any], None]
) -> None:
    token, _ = made(own, user="frank")
    kernel = ask(own, "/alpha/api/kernels", bearing(token), "POST", {"name": "python3"}).json["id"]
    code = "import time\nfor n in range(300):\n    print(n, flush=True); time.sleep(0.01)"
    with opened(own, kernel, token, "one") as channels:
        cell = channels.submit(code)
        for names in (["python3"], ["python3", "ir"], ["python3"]):
            change_rules([rule("frank", kernelspecs=names)])
        done = channels.collect(cell)
    assert done.stdout == "".join(f"{n}\n" for n in range(300))
    lines = log_lines(own.log.read_text())
    assert sum(line["event"] == "rights_changed" for line in lines) >= 3
    assert not any(line["event"] == "link_lost" for line in lines)


# What clients make of it


def test_jupyterlabs_library_does_not_hammer(own: RunningRelay) -> None:
    install()
    token, record = made(own)
    kernel = own.start_kernel("alpha")
    result = services(
        "sentAway",
        own,
        "alpha",
        kernel=kernel,
        token=token,
        on_event=lambda _: remove(own, record),
    )
    assert result["codes"] == [[4401, "the credential was revoked"]]
    # It tries once or twice, asks for the kernel, hears 401 and shows it as dead.
    assert result["sockets"] <= 2
    assert result["requests"] <= 5
    assert own.request("GET", f"/alpha/api/kernels/{kernel}").status == 200


def test_a_token_in_a_subprotocol(own: RunningRelay, own_kernel: str) -> None:
    install()
    # Not the first, which `relay up` prints into the same file as its log.
    token, _ = made(own)
    answers = services("subprotocol", own, "alpha", kernel=own_kernel, token=token)
    assert answers == {
        "both": "v1.token.websocket.jupyter.org",
        "v1": "v1.kernel.websocket.jupyter.org",
        # Nothing else was offered, and the token is not said back.
        "token": "Server sent no subprotocol",
        "wrong": 401,
        "name": 401,
    }
    assert token not in own.log_text()


@pytest.mark.parametrize("port", ["https", "wss"])
def test_a_subprotocols_token_must_agree_with_the_others(
    own: RunningRelay, own_kernel: str, port: str
) -> None:
    other, _ = made(own)
    name, good = "v1.token.websocket.jupyter.org", own.info.token
    path = f"/alpha/api/kernels/{own_kernel}/channels"
    url = own.info.https_url if port == "https" else own.info.wss_url
    for target, *headers in (
        (path, f"Sec-WebSocket-Protocol: {name}.{good}, {name}.{other}"),
        (f"{path}?token={other}", f"Sec-WebSocket-Protocol: {name}.{good}"),
        (path, f"Sec-WebSocket-Protocol: {name}.{good}", f"Authorization: token {other}"),
        (path, f"Sec-WebSocket-Protocol: {name}.{good}%20"),
        (path, f"Sec-WebSocket-Protocol: {name}.{good}x"),
        (path, f"Sec-WebSocket-Protocol: {good}"),
    ):
        with Wire(url, own.tls) as wire:
            head = "\r\n".join([f"GET {target} HTTP/1.1", "Host: relay", *headers, ""])
            wire.send(head.encode() + HANDSHAKE + b"\r\n")
            refusal(wire.answer(), 401, "Unauthorized")


# Path tokens


@tools
def test_an_unmodified_gateway_client_with_a_path_token(
    own: RunningRelay, tool: str, tmp_path: Path
) -> None:
    token = command(own, "create", "--path", "--user", user_of(own), "--ttl", "10m")
    wait_for("the token", lambda: knows(own, token, path=True), 2.0)
    info = own.info
    environ = {
        "BATCH_TOKEN": "",
        "BATCH_UNMODIFIED": "1",
        "SSL_CERT_FILE": info.ca,
        "WEBSOCKET_CLIENT_CA_BUNDLE": info.ca,
    }
    # In capitals, as nobody writes it: the client makes it lower case for its WebSocket.
    urls = (f"{info.https_url}/t/{token}/alpha", f"{info.wss_url}/t/{token}/alpha")
    batch = Batch(tmp_path, tool, urls, environ, "print('Grüße')", "print(6 * 7)")
    assert batch.outputs() == ["Grüße\n", "42\n"]
    assert token not in own.log_text()


def test_what_it_is_told_leads_back_through_the_path(own: RunningRelay) -> None:
    token, _ = made(own, lifetime=600.0, clusters=["alpha"], path=True)
    base = f"/t/{token}/alpha"
    started = ask(own, f"{base}/api/kernels", {}, "POST", {"name": "python3"})
    assert started.status == 201
    location = started.headers["Location"]
    assert location == f"{base}/api/kernels/{started.json['id']}"
    assert ask(own, location, {}).json["id"] == started.json["id"]
    for target, specs in (
        (f"{base}/api/kernelspecs", lambda body: body["kernelspecs"]["python3"]),
        (f"{base}/api/kernelspecs/python3", lambda body: body),
    ):
        logo = specs(ask(own, target, {}).json)["resources"]["logo-64x64"]  # type: ignore[no-untyped-call]
        assert logo == f"{base}/kernelspecs/python3/logo-64x64.png"
        assert ask(own, logo, {}).body.startswith(b"\x89PNG")
    assert ask(own, f"{base}/api/kernelspecs", {}, "HEAD").status == 200
    wrong = ask(own, f"{base}/api/kernels", {}, "PUT")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD, POST, OPTIONS")
    assert ask(own, location, {}, "DELETE").status == 204
    assert token not in own.log_text()


def test_a_path_token_opens_and_its_revocation_closes(own: RunningRelay, own_kernel: str) -> None:
    token, record = made(own, lifetime=600.0, path=True)
    url = f"{own.info.wss_url}/t/{token}/alpha/api/kernels/{own_kernel}/channels"
    with connect(url, headers={}, tls=own.tls_for_threads) as channels:
        assert channels.execute("print(4)").stdout == "4\n"
        remove(own, record)
        assert closed(channels, AT_ONCE)[:2] == (4401, "the credential was revoked")
    target = f"/t/{token}/alpha/api"
    wait_for("the other worker", lambda: refused(own, target, {}), AT_ONCE)
    refusal(ask(own, target, {}), 401, "Unauthorized")


def test_what_a_path_token_is_not(own: RunningRelay) -> None:
    mine, _ = made(own, lifetime=600.0, path=True)
    bobs, _ = made(own, user="bob")
    other, record = generate("bob", time.time(), clusters=["beta"])
    long, long_record = generate(user_of(own), time.time(), lifetime=3601.0, path=True)
    add(own, record, long_record)
    wait_for(
        "the tokens, in each worker",
        lambda: all(ask(own, "/alpha/api", bearing(other)).status == 404 for _ in range(12)),
    )
    good = own.info.token
    assert ask(own, f"/t/{mine}/alpha/api", bearing(good)).status == 200
    assert ask(own, f"/t/{mine}/alpha/api", {"Authorization": "token "}).status == 200
    for target, headers in (
        ("/alpha/api", bearing(mine)),
        (f"/t/{good}/alpha/api", {}),
        (f"/t/{mine}/alpha/api", bearing(bobs)),
        (f"/t/{mine}/alpha/api", bearing("relay_wrong")),
        (f"/t/{mine}/alpha/api", {"Authorization": "Basic eDp5"}),
        (f"/t/{mine.upper()}/alpha/api", {}),
        (f"/t/{mine[:-1]}/alpha/api", {}),
        (f"/t/{mine}x/alpha/api", {}),
        (f"/t/{long}/alpha/api", {}),
        (f"/t/{'a' * 52}/alpha/api", {}),
        (f"/T/{mine}/alpha/api", {}),
        (f"/alpha/t/{mine}/api", {}),
        (f"/alpha/api?token={mine}", {}),
        ("/t/alpha/api", {}),
        ("/t/", {}),
        ("/t", {}),
    ):
        refusal(ask(own, target, headers), 401, "Unauthorized")
    for target in (f"/t/{mine}", f"/t/{mine}/", f"/t/{mine}/t/{mine}/alpha/api", f"/t/{mine}/beta"):
        refusal(ask(own, target, {}), 404, "Not found")
    for target in (f"/t//{mine}/alpha/api", f"/t/../t/{mine}/alpha/api", f"/t/{mine}/../alpha/api"):
        refusal(ask(own, target, {}), 400, "Bad request")
    refusal(ask(own, "/alpha/api", bearing(other)), 404, "Not found")
    assert mine not in own.log_text()
    assert long not in own.log_text()


def test_path_tokens_are_off_unless_they_are_set(relay: RunningRelay) -> None:
    token, record = generate(user_of(relay), time.time(), lifetime=60.0, path=True)
    add(relay, record)
    time.sleep(1.0)
    refusal(ask(relay, f"/t/{token}/alpha/api", {}), 401, "Unauthorized")
    refusal(ask(relay, f"/t/{token}/alpha/api", relay.authorization), 404, "Not found")
    remove(relay, record)
    assert token not in relay.log_text()
