"""Executes notebooks with nbclient by way of a Jupyter Server.

A process of its own does it (`tests.system.person`), since nbclient takes over signals, and the
gateway client is one global object that is configured by whatever is in the environment.

A cell's metadata says what the person in front of it does: ``answers`` are typed where it asks
for input, ``move`` is a new state that is then sent to the widget it shows. What only such a
person sees is noted there too: ``prompts``, ``opened`` (widget models, in order) and ``moved``
(the outputs that the new state led to).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.system.gateway_mode import JupyterServer
from tests.system.running import environment

TIMEOUT: Final = 90.0
"""Seconds for a whole notebook, its kernel's start included."""


class NotExecuted(Exception):
    """nbclient failed; the message is what it said."""


def code_cell(source: str, **metadata: Any) -> dict[str, Any]:
    """A cell, for `execute`."""
    return {
        "cell_type": "code",
        "source": source,
        "metadata": metadata,
        "execution_count": None,
        "outputs": [],
    }


def execute(cells: Sequence[dict[str, Any]], server: JupyterServer) -> dict[str, Any]:
    """The executed notebook. An error in a cell is an output; raises `NotExecuted` for others."""
    cells = [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells)]
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    root = str(Path(__file__).parents[2])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.system.person", server.url],
            input=json.dumps(notebook),
            capture_output=True,
            text=True,
            env={**environment(server.folder), "PERSON_TOKEN": server.token, "PYTHONPATH": root},
            timeout=TIMEOUT,
            check=True,
            start_new_session=True,  # Ctrl-C goes to us, who then kill it
        )
    except subprocess.CalledProcessError as error:
        raise NotExecuted(error.stderr) from error
    except subprocess.TimeoutExpired as error:
        raise NotExecuted(f"took more than {TIMEOUT:.0f} s: {error.stderr!r}") from error
    executed: dict[str, Any] = json.loads(done.stdout)
    return executed
