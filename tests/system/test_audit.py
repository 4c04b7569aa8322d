"""The audit log of a running relay: what is in it, that changes show, that no token is anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from relay.auth.tokens import TokenStore, generate
from tests.system.running import MANY, RunningRelay, wait_for
from tests.system.wire import HANDSHAKE, Wire

SETTINGS: Final = """
audit: {file: logs/audit.log, required: true}
policy:
  rules:
    - {authenticator: token, actions: [list, start, use, view, stop]}
    - {authenticator: token, user: carol, actions: [list], clusters: [beta]}
"""
"""Nobody may interrupt, so that something is refused."""

pytestmark = pytest.mark.timeout(240)


class Audited:
    """A relay whose audit log is in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.path = self.logs / "audit.log"
        config = folder / "up.yaml"
        config.write_text(SETTINGS)
        self.relay = RunningRelay(("alpha", "beta"), ("--config", str(config)), MANY)
        # A token that the relay does not show by itself.
        self.token, record = generate("alice", time.time())
        self.relay.state.mkdir(mode=0o700)
        (self.relay.state / "tokens.json").write_bytes(TokenStore([record]).dump())
        self.credential = record.id
        self.headers = {"Authorization": f"token {self.token}"}

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def line_of(self, request_id: str) -> dict[str, Any]:
        (found,) = (line for line in self.lines if line.get("request_id") == request_id)
        return found

    def ask(self, method: str, target: str, body: Any = None) -> tuple[int, dict[str, Any] | None]:
        """Ask as alice: the status, and the line that it left."""
        answer = self.relay.request(method, target, body, headers=self.headers)
        request_id = answer.headers["X-Request-Id"]
        lines = [line for line in self.lines if line.get("request_id") == request_id]
        assert len(lines) <= 1
        return answer.status, lines[0] if lines else None

    def edge(self) -> int:
        """The pid of the edge's parent."""
        return psutil.Process(self.relay.info.pids.edge[0]).ppid()


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    made = Audited(tmp_path_factory.mktemp("audited"))
    with made.relay:
        yield made


def verify(*paths: Path, noted: str = "") -> subprocess.CompletedProcess[str]:
    """Run `relay audit verify`."""
    option = ("--noted", noted) if noted else ()
    return subprocess.run(
        [sys.executable, "-m", "relay", "audit", "verify", *map(str, paths), *option],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_each_decision_leaves_a_line(audited: Audited) -> None:
    relay = audited.relay
    who = {
        "principal": "token:alice",
        "via": "token",
        "credential": audited.credential,
        "address": "127.0.0.1",
    }

    def shown(line: dict[str, Any] | None) -> dict[str, Any]:
        assert line is not None
        for name, value in who.items():
            assert line.pop(name) == value
        for name in ("seq", "prev", "time", "request_id"):
            assert line.pop(name) is not None
        return line

    status, line = audited.ask("POST", "/alpha/api/kernels", {"name": "python3"})
    assert status == 201
    kernel = (line or {})["kernel_id"]
    assert shown(line) == {
        "event": "kernel-started",
        "method": "POST",
        "cluster": "alpha",
        "kind": "start",
        "kernel_id": kernel,
        "kernelspec": "python3",
        "status": 201,
    }
    on_kernel = {"cluster": "alpha", "kernel_id": kernel}

    assert audited.ask("GET", "/alpha/api/kernels") == (200, None)
    assert audited.ask("GET", f"/alpha/api/kernels/{kernel}") == (200, None)

    status, line = audited.ask("POST", f"/alpha/api/kernels/{kernel}/interrupt")
    assert status == 403
    assert shown(line) == {
        "event": "refused",
        "method": "POST",
        "kind": "interrupt",
        "status": 403,
        **on_kernel,
        "reason": "not allowed on this cluster: interrupt",
    }

    status, line = audited.ask("GET", "/gamma/api/kernels")
    assert status == 404
    assert shown(line)["event"] == "refused"

    before = len(audited.lines)
    with relay.connect("alpha", kernel, headers=audited.headers) as channels:
        # Before the client hears that it is in.
        (opened,) = audited.lines[before:]
        assert channels.execute("print(1)").stdout == "1\n"
    assert opened["principal"].startswith("token:")
    assert opened["event"] == "channels-opened"
    assert (opened["kind"], opened["status"]) == ("channels", 101)
    assert {name: opened[name] for name in on_kernel} == on_kernel

    answer = relay.request("GET", "/alpha/api", headers={"Authorization": "token nobody"})
    assert answer.status == 401
    refused = audited.line_of(answer.headers["X-Request-Id"])
    assert refused["event"] == "login-refused"
    assert refused["address"] == "127.0.0.1"
    assert "principal" not in refused

    nowhere = uuid.uuid4()
    status, line = audited.ask("DELETE", f"/alpha/api/kernels/{nowhere}")
    assert (status, shown(line)["event"]) == (404, "refused")
    status, line = audited.ask("DELETE", f"/alpha/api/kernels/{kernel}")
    assert (status, shown(line)["event"]) == (204, "kernel-stopped")


def test_a_session_leaves_its_kernel_too(audited: Audited) -> None:
    body = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    status, line = audited.ask("POST", "/alpha/api/sessions", body)
    assert status == 201
    assert line is not None
    assert line["event"] == "session-started"
    assert line["kernelspec"] == "python3"
    kernels = audited.relay.request("GET", "/alpha/api/kernels", headers=audited.headers).json
    assert line["kernel_id"] in {kernel["id"] for kernel in kernels}
    status, ended = audited.ask("DELETE", f"/alpha/api/sessions/{line['session_id']}")
    assert status == 204
    assert ended is not None
    assert (ended["event"], ended["session_id"]) == ("session-ended", line["session_id"])


Tamper = Callable[[list[bytes]], None]


def change(lines: list[bytes]) -> None:
    lines[2] = lines[2].replace(b"127.0.0.1", b"127.0.0.2")


def remove(lines: list[bytes]) -> None:
    del lines[2]


def insert(lines: list[bytes]) -> None:
    lines.insert(3, lines[2])


def swap(lines: list[bytes]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def behead(lines: list[bytes]) -> None:
    del lines[:2]


def garble(lines: list[bytes]) -> None:
    lines[2] = b"\x00\xff" + lines[2]


TAMPERING: Final = ((change, 3), (remove, 3), (insert, 4), (swap, 3), (behead, 1), (garble, 3))


def test_tampering_shows_and_where(audited: Audited, tmp_path: Path) -> None:
    for _ in range(5):
        audited.relay.request("GET", "/alpha/api", headers={})
    whole = audited.path.read_bytes().splitlines(keepends=True)
    assert verify(audited.path).returncode == 0
    for tamper, line in TAMPERING:
        lines = list(whole)
        tamper(lines)
        copy = tmp_path / tamper.__name__
        copy.write_bytes(b"".join(lines))
        done = verify(copy)
        assert done.returncode == 1, tamper
        assert done.stderr.startswith(f"relay: {copy}:{line}: "), done.stderr


def test_an_end_that_is_missing_shows_to_who_noted_the_hash(
    audited: Audited, tmp_path: Path
) -> None:
    done = verify(audited.path)
    assert done.returncode == 0
    (noted,) = (line.split()[1] for line in done.stdout.splitlines() if line.startswith("Hash"))
    assert verify(audited.path, noted=noted).returncode == 0
    copy = tmp_path / "cut"
    copy.write_bytes(b"".join(audited.path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(copy).returncode == 0
    assert verify(copy, noted=noted).returncode == 1


def test_sighup_begins_a_new_file_where_the_old_one_was_moved_away(audited: Audited) -> None:
    old = audited.path.with_name("audit.log.1")
    audited.path.rename(old)
    os.kill(audited.edge(), signal.SIGHUP)
    wait_for("a new file", lambda: audited.path.exists() and audited.lines)
    assert audited.lines[0]["event"] == "chain-continued"
    assert audited.ask("GET", "/gamma/api")[1] is not None
    assert verify(old, audited.path).returncode == 0
    assert verify(audited.path, old).returncode == 0  # in whichever order they are named


def test_without_a_log_what_needs_a_line_is_refused(audited: Audited) -> None:
    ready = audited.relay.request("GET", "/readyz", headers={})
    assert ready.status == 200
    aside = audited.logs.with_name("aside")
    audited.logs.rename(aside)
    try:
        audited.relay.request("GET", "/alpha/api", headers={})  # a line that is kept for later
        for port in ("https", "wss"):
            assert audited.relay.request("GET", "/readyz", headers={}, port=port).status == 503
        answer = audited.relay.request("POST", "/alpha/api/kernels", {"name": "python3"})
        assert answer.status == 503
        assert answer.json["reason"] == "Audit log unavailable"
        assert "audit.required" in answer.json["message"]
        assert str(audited.logs) not in answer.body.decode()
        channels = f"/alpha/api/kernels/{uuid.uuid4()}/channels"
        assert audited.relay.request("GET", channels).status == 503
        # Who only reads goes on.
        kernels = audited.relay.request("GET", "/alpha/api/kernels")
        assert (kernels.status, kernels.json) == (200, [])
        assert "relay_edge_audit_waiting_lines 0" not in audited.relay.metrics()
        assert '"audit_write_failed"' in audited.relay.log.read_text()
    finally:
        aside.rename(audited.logs)
    wait_for(
        "the log again", lambda: audited.relay.request("GET", "/readyz", headers={}).status == 200
    )
    assert "relay_edge_audit_waiting_lines 0" in audited.relay.metrics()
    assert [line["status"] for line in audited.lines[-3:]] == [401, 503, 503]
    files = (audited.path.with_name("audit.log.1"), audited.path)
    assert verify(*(file for file in files if file.exists())).returncode == 0


def test_the_chain_holds_when_workers_and_their_parent_are_killed(audited: Audited) -> None:
    answered: list[str] = []
    stop = threading.Event()

    def knock() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, FileNotFoundError):
                answer = audited.relay.request("GET", "/alpha/api", headers={}, timeout=10)
                assert answer.status == 401
                answered.append(answer.headers["X-Request-Id"])

    knocking = [threading.Thread(target=knock) for _ in range(3)]
    for thread in knocking:
        thread.start()
    try:
        for victim in ("worker", "parent", "worker", "parent"):
            seen = len(answered)
            wait_for("answers", lambda seen=seen: len(answered) > seen + 20)  # type: ignore[misc]
            edge = audited.edge()
            pid = audited.relay.info.pids.edge[0] if victim == "worker" else edge
            os.kill(pid, signal.SIGKILL)
            wait_for("its end", lambda pid=pid: not psutil.pid_exists(pid))  # type: ignore[misc]
            wait_for("workers", lambda pid=pid: _others(audited, pid))  # type: ignore[misc]
        seen = len(answered)
        wait_for("answers", lambda: len(answered) > seen + 20)
    finally:
        stop.set()
        for thread in knocking:
            thread.join()
    files = [audited.path.with_name("audit.log.1"), audited.path]
    there = [file for file in files if file.exists()]
    assert verify(*there).returncode == 0
    written = {line.get("request_id") for line in audited.lines}
    # Nobody heard of a decision that is not in the log.
    assert set(answered) <= written
    assert sum(line["event"] == "edge-started" for line in audited.lines) >= 2


def _others(audited: Audited, pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        pids = audited.relay.info.pids.edge
        return len(pids) == 2 and pid not in pids and all(map(psutil.pid_exists, pids))
    return False


def found_in(folder: Path, text: str) -> list[str]:
    """The files below ``folder`` with ``text`` in them."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and text.encode() in path.read_bytes():
                found.append(str(path.relative_to(folder)))
    return found


def secret_like(kind: str) -> str:
    """Something that must not be found again."""
    if kind == "token":
        return "relay_" + secrets.token_urlsafe(32)
    if kind == "jwt":
        return f"eyJ{secrets.token_hex(10)}.eyJ{secrets.token_hex(20)}.{secrets.token_urlsafe(64)}"
    return secrets.token_hex(20)


@pytest.mark.parametrize("kind", ["valid", "token", "jwt", "anything"])
def test_no_token_is_in_any_log_or_file_wherever_it_was_sent(audited: Audited, kind: str) -> None:
    secret = audited.token if kind == "valid" else secret_like(kind)
    relay = audited.relay
    headers = {"Authorization": f"token {secret}"}
    kernel = str(uuid.uuid4())
    sent: list[tuple[str, str, Any, dict[str, str]]] = [
        ("GET", "/alpha/api/kernels", None, headers),
        ("GET", "/alpha/api/kernels", None, {"Authorization": f"Bearer {secret}"}),
        ("GET", "/alpha/api/kernels", None, {"Authorization": f"Basic {secret}"}),
        ("GET", "/alpha/api/kernels", None, {"Cookie": f"token={secret}"}),
        ("GET", "/alpha/api/kernels", None, {"X-Request-Id": secret}),
        ("GET", "/alpha/api/kernels", None, {**headers, "Origin": f"https://{secret}.example"}),
        ("GET", f"/alpha/api/kernels?token={secret}", None, {}),
        ("GET", f"/alpha/api/kernels/{kernel}/channels?token={secret}", None, headers),
        ("PUT", f"/alpha/api/kernels?token={secret}", None, headers),
        ("GET", f"/alpha/api/kernels?token=%zz{secret}", None, headers),
        ("POST", "/alpha/api/kernels", b'{"name": "%s' % secret.encode(), headers),
        ("POST", "/alpha/api/kernels", b"\xff" + secret.encode(), relay.authorization),
    ]
    if kind != "anything":
        # Nobody can tell what is secret in a name; a token is known by its look.
        sent += [
            ("GET", f"/{secret}/api/kernels", None, headers),
            ("GET", f"/t/{secret}/alpha/api/kernels", None, {}),
            ("GET", f"/alpha/api/kernels/{secret}", None, relay.authorization),
            ("GET", f"/alpha/api/kernelspecs/{secret}", None, relay.authorization),
            ("POST", "/alpha/api/kernels", {"name": secret}, relay.authorization),
        ]
    for method, target, body, given in sent:
        answer = relay.request(method, target, body, headers=given)
        if not (isinstance(body, dict) or "kernelspecs" in target):
            # Else it is the name of a kernelspec, which its own sender may read again.
            assert secret not in answer.body.decode()
        assert secret not in str(answer.headers)
    for raw in (
        f"GET /alpha/api?token={secret} HTTP/9.9\r\nHost: a\r\n\r\n",
        f"GET /alpha/api\r\nAuthorization: token {secret}\r\n\r\n",
        f"GET /alpha/api HTTP/1.1\r\nHost: a\r\nAuthorization token {secret}\r\n\r\n",
        f"GET /alpha/api HTTP/1.1\r\nHost: a\r\nAuthorization: token {secret}\x00\r\n\r\n",
        f"GET /alpha/api HTTP/1.1\r\nHost: a\r\nContent-Length: {secret}\r\n\r\n",
        f"{secret} /alpha/api HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET /alpha/../{secret} HTTP/1.1\r\nHost: a\r\nAuthorization: token {secret}\r\n\r\n",
    ):
        with Wire(relay.info.https_url, relay.tls) as wire:
            wire.send(raw.encode("latin-1"))
            assert secret.encode() not in wire.answer().body, raw
    for protocols in (f"v1.kernel.websocket.jupyter.org, {secret}", f"token.{secret}"):
        with Wire(relay.info.wss_url, relay.tls) as wire:
            wire.send(
                f"GET /alpha/api/kernels/{kernel}/channels?token={secret} HTTP/1.1\r\nHost: a\r\n"
                f"Sec-WebSocket-Protocol: {protocols}\r\n".encode()
                + HANDSHAKE
                + b"\r\n"
            )
            answer = wire.answer()
            assert answer.status in {400, 401, 404}
            assert secret.encode() not in answer.body
            assert secret not in str(answer.headers)
    wait_for("the log", lambda: "malformed_request" in relay.log.read_text())
    assert found_in(relay.folder, secret) == []
    assert found_in(audited.logs, secret) == []
    # Looked for rightly: what is meant to be there is found.
    assert found_in(relay.state, relay.info.token)
