"""VS Code's Jupyter extension, "Existing Jupyter Server": its requests in their order.

Its base URL is what the user pasted, one for REST and channels: it has no second one.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.system.channels import V1, Channels
from tests.system.running import Answer, RunningRelay

PROBES = ("/alpha/", "/alpha/tree?", "/alpha/login?", "/alpha/hub/api")
"""Asked before any credential is shown. 200 and 404 mean "no password" for tree, 200 for hub/api
means "a JupyterHub: use the other extension"."""
NO_CREDENTIAL = {"Authorization": "token "}
"""What it sends where the user gave no token."""


class VSCode:
    """Sends what it sends, with what it sends along."""

    def __init__(self, relay: RunningRelay, token: str) -> None:
        self.relay = relay
        self.token = token

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        # @jupyterlab/services makes every GET a new one for caches.
        busted = f"{path}?{time.time_ns() // 1_000_000}" if method == "GET" else path
        headers = {"Authorization": f"token {self.token}", "Cache-Control": "no-store"}
        return self.relay.request(method, f"/alpha{busted}", body, headers=headers)

    @contextmanager
    def open(self, kernel_id: str) -> Iterator[Channels]:
        """The token twice: in the header, and in the URL."""
        session = secrets.token_hex(16)
        base = self.relay.info.https_url.replace("http", "ws", 1)  # its own replacement
        socket = connect(
            f"{base}/alpha/api/kernels/{kernel_id}/channels"
            f"?session_id={session}&token={self.token}",
            ssl=self.relay.tls_for_threads,
            additional_headers={"Authorization": f"token {self.token}"},
            subprotocols=[V1],
            max_size=None,
            proxy=None,
            legacy=True,
        )
        with closing(socket):
            yield Channels(socket, session)


@pytest.mark.parametrize("known", ["/alpha", "/nowhere"], ids=["a cluster", "no cluster"])
def test_its_probes_find_neither_a_password_nor_a_hub(relay: RunningRelay, known: str) -> None:
    for probe in PROBES[1:]:
        answer = relay.request("GET", probe.replace("/alpha", known), headers={})
        assert answer.status == 404, probe
    # `GET base` follows redirects, and there must be none to a page for people.
    assert relay.request("GET", f"{known}/", headers={}).status == 401


def test_without_a_token_it_is_told_so(relay: RunningRelay) -> None:
    for path in ("/alpha/api/kernels", "/alpha/api/kernelspecs", "/alpha/api/sessions"):
        for headers in ({}, NO_CREDENTIAL):
            refused = relay.request("GET", path, headers=headers)
            assert refused.status == 401, path
            assert refused.json["message"]
    anybody = VSCode(relay, "")
    started = {"name": "python3"}
    body = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": started}
    assert anybody.ask("POST", "/api/sessions", body).status == 401
    kernel = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(InvalidStatus) as refusal, anybody.open(kernel):
        pass
    assert refusal.value.response.status_code == 401


def test_a_wrong_token_in_the_url_disagrees_with_the_right_one(relay: RunningRelay) -> None:
    vscode = VSCode(relay, "wrong")
    with pytest.raises(InvalidStatus) as refusal, vscode.open("0-0-0-0-0"):
        pass
    assert refusal.value.response.status_code == 401
    assert vscode.ask("GET", "/api/kernels").status == 401


def test_with_a_token_from_the_pasted_url_to_the_end(relay: RunningRelay) -> None:
    vscode = VSCode(relay, relay.info.token)

    # It probes with the token at hand too, and does not show it yet.
    assert [relay.request("GET", probe, headers={}).status for probe in PROBES[:2]] == [401, 404]

    # It takes the server when both can be listed.
    assert vscode.ask("GET", "/api/kernels").status == 200
    specs = vscode.ask("GET", "/api/kernelspecs")
    assert specs.status == 200
    check_kernelspecs(specs.json)

    # A session for a notebook of its own, by a path that nobody else has.
    path = f"work/a-jvsc-{secrets.token_hex(16)}.ipynb"
    wanted = {"path": path, "type": "notebook", "name": "a.ipynb", "kernel": {"name": "python3"}}
    made = vscode.ask("POST", "/api/sessions", wanted)
    assert made.status == 201
    session, kernel = made.json["id"], made.json["kernel"]["id"]
    check_session(made.json)

    # It polls both lists, and looks at the one.
    assert session in {each["id"] for each in vscode.ask("GET", "/api/sessions").json}
    assert kernel in {each["id"] for each in vscode.ask("GET", "/api/kernels").json}
    shown = vscode.ask("GET", f"/api/sessions/{session}")
    assert (shown.status, shown.json["path"]) == (200, path)

    with vscode.open(kernel) as channels:
        check_kernel(vscode, channels, kernel)

    check_changes(vscode, session, kernel)


def check_kernelspecs(listed: dict[str, Any]) -> None:
    """What @jupyterlab/services demands of each, or drops it; with none left it gives up."""
    assert listed["default"] in listed["kernelspecs"]
    for spec in listed["kernelspecs"].values():
        assert isinstance(spec["name"], str)
        assert isinstance(spec["resources"], dict)
        assert isinstance(spec["spec"]["argv"], list)
        assert isinstance(spec["spec"]["language"], str)
        assert isinstance(spec["spec"]["display_name"], str)


def check_session(model: dict[str, Any]) -> None:
    assert {"id", "type", "name", "path", "kernel"} <= model.keys()
    assert {"id", "name"} <= model["kernel"].keys()


def check_kernel(vscode: VSCode, channels: Channels, kernel: str) -> None:
    """Use it: first output, interrupt, restart, first output again on the same socket."""
    # Node's "ws" takes an answer without a protocol for an error where one was offered.
    assert channels.socket.subprotocol == V1
    assert channels.socket.ping().wait(30)
    asked = channels.send("shell", "kernel_info_request", {})
    while (message := channels.receive())["parent_header"].get("msg_id") != asked:
        pass
    assert channels.execute("kept = 6 * 7; print(kept)").stdout == "42\n"
    running = channels.send(
        "shell", "execute_request", {"code": "import time; print('began'); time.sleep(60)"}
    )
    while message["header"]["msg_type"] != "stream":
        message = channels.receive()
    assert vscode.ask("POST", f"/api/kernels/{kernel}/interrupt").status == 204
    assert channels.collect(running).replies[0]["ename"] == "KeyboardInterrupt"
    assert channels.execute("print(kept)").stdout == "42\n"
    restarted = vscode.ask("POST", f"/api/kernels/{kernel}/restart")
    assert (restarted.status, restarted.json["id"]) == (200, kernel)
    assert channels.execute("print('kept' in globals())").stdout == "False\n"


def check_changes(vscode: VSCode, session: str, kernel: str) -> None:
    """A rename, another kernel, and the end of both."""
    renamed = vscode.ask("PATCH", f"/api/sessions/{session}", {"path": "b.ipynb", "name": "b"})
    assert (renamed.status, renamed.json["path"]) == (200, "b.ipynb")
    assert renamed.json["kernel"]["id"] == kernel
    check_session(renamed.json)
    other = vscode.ask(
        "PATCH", f"/api/sessions/{session}", {"kernel": {"id": None, "name": "python3"}}
    )
    assert other.status == 200
    assert other.json["kernel"]["id"] != kernel
    assert vscode.ask("GET", f"/api/kernels/{kernel}").status == 404
    assert vscode.ask("DELETE", f"/api/sessions/{session}").status == 204
    kernels = json.dumps(vscode.ask("GET", "/api/kernels").json)
    assert other.json["kernel"]["id"] not in kernels
    assert vscode.ask("GET", f"/api/sessions/{session}").status == 404
    assert vscode.ask("DELETE", f"/api/sessions/{session}").status == 404
