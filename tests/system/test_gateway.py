"""An unmodified Jupyter Server in gateway mode, in front of a cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.channels import Execution, connect
from tests.system.gateway_mode import JupyterServer
from tests.system.notebook import code_cell, execute
from tests.system.running import RunningRelay


@pytest.fixture(scope="module")
def server(relay: RunningRelay) -> Iterator[JupyterServer]:
    with JupyterServer(relay, "beta") as running:
        yield running


def test_its_kernelspecs_and_their_logos_are_the_clusters(server: JupyterServer) -> None:
    listed = server.request("GET", "/api/kernelspecs").json
    assert listed["default"] == "python3"
    logo = listed["kernelspecs"]["python3"]["resources"]["logo-64x64"]
    image = server.request("GET", logo)
    assert image.status == 200
    assert image.body.startswith(b"\x89PNG")
    assert server.request("GET", "/api/kernelspecs/python3").json["name"] == "python3"


def test_a_kernels_whole_life_through_it(server: JupyterServer, relay: RunningRelay) -> None:
    started = server.request("POST", "/api/kernels", {"name": "python3"})
    assert started.status == 201
    kernel = started.json["id"]
    assert relay.request("GET", f"/beta/api/kernels/{kernel}").json["name"] == "python3"
    assert kernel in {each["id"] for each in server.request("GET", "/api/kernels").json}
    assert server.request("GET", f"/api/kernels/{kernel}").json["execution_state"] == "idle"
    assert server.request("POST", f"/api/kernels/{kernel}/interrupt", {}).status == 204
    restarted = server.request("POST", f"/api/kernels/{kernel}/restart", {})
    assert (restarted.status, restarted.json["id"]) == (200, kernel)
    assert server.request("DELETE", f"/api/kernels/{kernel}").status == 204
    assert relay.request("GET", f"/beta/api/kernels/{kernel}").status == 404


def test_the_clusters_refusal_reaches_the_user(server: JupyterServer) -> None:
    refused = server.request("POST", "/api/kernels", {"name": "nope"})
    # The words are there too, but it (2.21) does not fill them into the message that it shows.
    assert refused.status == 404
    assert refused.json["message"].startswith("Error from Gateway")


def test_its_sessions_run_on_the_cluster(server: JupyterServer, relay: RunningRelay) -> None:
    wanted = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python3"}}
    session = server.request("POST", "/api/sessions", wanted)
    assert session.status == 201
    kernel = session.json["kernel"]["id"]
    assert relay.request("GET", f"/beta/api/kernels/{kernel}").status == 200
    assert server.request("DELETE", f"/api/sessions/{session.json['id']}").status == 204
    assert relay.request("GET", f"/beta/api/kernels/{kernel}").status == 404


def test_nbclient_runs_a_notebook_through_it(server: JupyterServer) -> None:
    cells = [
        code_cell("import sys\nprint(6 * 7)\nprint('careful', file=sys.stderr)"),
        code_cell("name = input('Who? ')\nname * 2", answers=["Ada"]),
        code_cell("1 / 0"),
    ]
    first, second, third = execute(cells, server)["cells"]
    texts = {each["name"]: each["text"] for each in first["outputs"]}
    assert texts == {"stdout": "42\n", "stderr": "careful\n"}
    assert second["metadata"]["prompts"] == ["Who? "]
    assert second["outputs"][-1]["data"] == {"text/plain": "'AdaAda'"}
    assert third["outputs"][0]["ename"] == "ZeroDivisionError"
    assert [each["execution_count"] for each in (first, second, third)] == [1, 2, 3]


def test_a_cell_is_interrupted_through_it(server: JupyterServer) -> None:
    kernel = server.request("POST", "/api/kernels", {"name": "python3"}).json["id"]

    def interrupt(so_far: Execution) -> None:
        if so_far.messages[-1]["header"]["msg_type"] == "stream":
            assert server.request("POST", f"/api/kernels/{kernel}/interrupt").status == 204

    with connect(
        f"{server.url.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels",
        headers={"Authorization": f"token {server.token}"},
        session="mine",
    ) as channels:
        code = "import time\nprint('started', flush=True)\nwhile True: time.sleep(0.01)"
        done = channels.execute(code, seen=interrupt)
    assert done.replies[0]["ename"] == "KeyboardInterrupt"
    assert server.request("DELETE", f"/api/kernels/{kernel}").status == 204


def test_what_is_too_large_for_its_websocket_is_told_of_and_ends_nothing(
    server: JupyterServer,
) -> None:
    kernel = server.request("POST", "/api/kernels", {"name": "python3"}).json["id"]
    url = f"{server.url.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels"
    authorization = {"Authorization": f"token {server.token}"}
    with connect(url, headers=authorization, v1=False, session="large") as channels:
        # Tornado's WebSocket client gives up beyond 10 MiB.
        done = channels.execute("print('x' * (12 * 1024 * 1024))")
        assert done.stdout == ""
        assert "kernels.gateway_message_bytes" in done.stderr
        fits = channels.execute("print('x' * (9 * 1024 * 1024))")
        assert len(fits.stdout) == 9 * 1024 * 1024 + 1
        assert channels.execute("print(1)").stdout == "1\n"
    assert server.request("DELETE", f"/api/kernels/{kernel}").status == 204
