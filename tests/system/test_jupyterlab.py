"""JupyterLab in a real browser, in front of a Jupyter Server in gateway mode."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.system.channels import Count, count_lines
from tests.system.gateway_mode import JupyterServer
from tests.system.javascript import NotInstalled, install, install_chromium, jupyterlab
from tests.system.notebook import code_cell
from tests.system.running import RunningRelay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LINES = 200

# Buffers that are no UTF-8 would end what its server reads from the relay.
CALCULATE = """
from comm import create_comm
create_comm(target_name="nobody", buffers=[bytes([255, 254])])
print("the answer is", 6 * 7)
"""
PRINT = f"""
import time
for number in range({LINES}):
    print("line", number, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture(scope="module", autouse=True)
def browser() -> None:
    install()
    try:
        install_chromium()
    except NotInstalled as error:
        pytest.skip(str(error))


def test_every_line_is_in_the_page_though_the_connection_is_cut(
    relay: RunningRelay, tmp_path: Path
) -> None:
    """Both edge workers are killed: whichever has the connection is among them."""
    cells = [{**code_cell(code), "id": f"cell-{len(code)}"} for code in (CALCULATE, PRINT)]
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "cells": cells,
    }

    def kill_workers(_: str) -> None:
        for pid in relay.info.pids.edge:
            os.kill(pid, signal.SIGKILL)

    with JupyterServer(relay, "beta", application="lab") as server:
        (server.notebooks / "a.ipynb").write_text(json.dumps(notebook))
        first, last = jupyterlab(
            server, "a.ipynb", len(cells), tmp_path / "page.png", relay, kill_workers
        )
    assert first == {"output": "the answer is 42\n", "prompt": "[1]:"}
    assert last["prompt"] == "[2]:"
    printed = [f"line {number}" for number in range(LINES)]
    # What was sent since the last proof may come again.
    shown = count_lines(last["output"], printed)._replace(repeated=0)
    assert shown == Count(lost=0, repeated=0, out_of_order=0, strange=0)
