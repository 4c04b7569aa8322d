"""nbclient and papermill, by way of a Jupyter Server in gateway mode, and straight to the relay.

Both come with a kernel manager of Jupyter Server's, the gateway client, and two shims around it
(`tests.system.person`): jupyter_client 8.10 asks it for a method that it lacks, and it sends no
credentials with its WebSocket.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.system.channels import Count, count_lines
from tests.system.gateway_mode import JupyterServer
from tests.system.running import RunningRelay, environment, wait_for

LINES = 400
TOOLS = ("nbclient", "papermill")
ROOT = Path(__file__).parents[2]

tools = pytest.mark.parametrize("tool", TOOLS)


@pytest.fixture(scope="module")
def own() -> Iterator[RunningRelay]:
    """A relay of this file's own, to be killed in parts."""
    with RunningRelay(("alpha",)) as running:
        yield running


@pytest.fixture(scope="module")
def server(own: RunningRelay) -> Iterator[JupyterServer]:
    with JupyterServer(own, "alpha") as running:
        yield running


class Batch:
    """One notebook on its way, in a process of its own."""

    def __init__(
        self,
        folder: Path,
        tool: str,
        urls: tuple[str, str],
        environ: Mapping[str, str],
        *cells: str,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self.executed = folder / "out.ipynb"
        notebook = new_notebook(
            cells=[new_code_cell(source) for source in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "-", "language": "python"}},
        )
        if parameters is not None:
            notebook.cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(notebook, folder / "in.ipynb")
        files = (str(folder / "in.ipynb"), str(self.executed))
        argv = (tool, *urls, *files, json.dumps(parameters or {}))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.batch", *argv],
            env={**environment(folder), "PYTHONPATH": str(ROOT), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C goes to us, who then kill it
        )

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        try:
            said, _ = self.process.communicate(timeout=90)
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, said

    def outputs(self) -> list[str]:
        """What each cell printed. Fails where the notebook did."""
        code, said = self.end()
        assert code == 0, said
        cells = nbformat.read(self.executed, as_version=4).cells
        return [
            "".join(each.text for each in cell.outputs if each.output_type == "stream")
            for cell in cells
        ]


def in_front_of(server: JupyterServer) -> tuple[tuple[str, str], dict[str, str]]:
    """Where a client of the Jupyter Server asks, and what it needs for it."""
    return (server.url, server.url.replace("http", "ws", 1)), {"BATCH_TOKEN": server.token}


def straight_to(relay: RunningRelay) -> tuple[tuple[str, str], dict[str, str]]:
    """The same for one that asks the relay itself, at both of its ports."""
    info = relay.info
    environ = {
        "BATCH_TOKEN": info.token,
        # Its own ca_certs does nothing without a client certificate.
        "SSL_CERT_FILE": info.ca,
        "WEBSOCKET_CLIENT_CA_BUNDLE": info.ca,
    }
    return (f"{info.https_url}/alpha", f"{info.wss_url}/alpha"), environ


def lines_with_a_mark(mark: Path) -> str:
    """A cell that prints for a while and makes a file in between."""
    return f"""
import pathlib, time
for number in range({LINES}):
    print("line", number, flush=True)
    time.sleep(0.005)
    if number == {LINES // 4}:
        pathlib.Path({str(mark)!r}).touch()
"""


def counted(text: str) -> Count:
    return count_lines(text, [f"line {number}" for number in range(LINES)])


@tools
def test_a_notebook_by_way_of_jupyter_server(
    server: JupyterServer, own: RunningRelay, tool: str, tmp_path: Path
) -> None:
    urls, environ = in_front_of(server)
    cells = ("who = 'Ada'\ntimes = 1", "print(who * times)", "print(6 * 7)")
    chosen = {"who": "Grace", "times": 2} if tool == "papermill" else None
    batch = Batch(tmp_path, tool, urls, environ, *cells, parameters=chosen)
    # papermill adds a cell for what was chosen.
    expected = ["", "", "GraceGrace\n", "42\n"] if chosen else ["", "Ada\n", "42\n"]
    assert batch.outputs() == expected
    # The notebook's kernel ended with it.
    assert own.request("GET", "/alpha/api/kernels").json == []


@pytest.mark.slow
@pytest.mark.timeout(180)
@tools
def test_its_sockets_are_cut_in_mid_cell(
    server: JupyterServer, own: RunningRelay, tool: str, tmp_path: Path
) -> None:
    urls, environ = in_front_of(server)
    mark = tmp_path / "mark"
    batch = Batch(tmp_path, tool, urls, environ, lines_with_a_mark(mark), "print('after')")
    wait_for("the cell's middle", lambda: mark.exists() or batch.process.poll() is not None)
    before = own.info.pids.edge
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    printed, after = batch.outputs()
    count = counted(printed)
    # What no ping had proved to have arrived comes again; exact it is where the worker lives on.
    assert (count.lost, count.out_of_order, count.strange) == (0, 0, 0)
    assert after == "after\n"
    assert not set(before) & set(own.info.pids.edge)


@tools
def test_straight_to_the_relay_it_has_no_credentials(
    own: RunningRelay, tool: str, tmp_path: Path
) -> None:
    urls, environ = straight_to(own)
    batch = Batch(tmp_path, tool, urls, {**environ, "BATCH_UNMODIFIED": "1"}, "print(1)")
    code, said = batch.end()
    assert code != 0
    assert "Handshake status 401" in said
    # REST had let it in: it started a kernel, and ended it.
    started = '"cluster":"alpha","kind":"start"'
    assert started in own.log_text()
    assert own.request("GET", "/alpha/api/kernels").json == []


@tools
def test_straight_to_the_relay_with_its_header(
    own: RunningRelay, tool: str, tmp_path: Path
) -> None:
    urls, environ = straight_to(own)
    batch = Batch(tmp_path, tool, urls, environ, "print('Grüße')", "print(6 * 7)")
    assert batch.outputs() == ["Grüße\n", "42\n"]
    assert own.request("GET", "/alpha/api/kernels").json == []


@pytest.mark.slow
@pytest.mark.timeout(180)
@tools
def test_straight_to_the_relay_while_agents_are_killed(
    own: RunningRelay, tool: str, tmp_path: Path
) -> None:
    # Its socket stays: it is the edge's. Nothing comes after a lost one, it never reconnects.
    urls, environ = straight_to(own)
    mark = tmp_path / "mark"
    batch = Batch(tmp_path, tool, urls, environ, lines_with_a_mark(mark), "print('after')")
    wait_for("the cell's middle", lambda: mark.exists() or batch.process.poll() is not None)
    own.kill_agent("alpha")
    printed, after = batch.outputs()
    assert counted(printed) == (0, 0, 0, 0)
    assert after == "after\n"
