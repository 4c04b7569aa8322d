"""Executes a notebook as a scheduler does: the program behind `tests.system.test_notebooks`.

    python -m tests.system.batch papermill URL WS_URL in.ipynb out.ipynb '{"parameter": 1}'

``nbclient`` or ``papermill``, each with the gateway client that comes with Jupyter Server, of which
the server at ``URL`` is the gateway: another Jupyter Server, or a cluster of the relay. Its token
comes in ``$BATCH_TOKEN``. With ``$BATCH_UNMODIFIED`` the client is left to send what it sends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import nbformat
import papermill
from nbclient import NotebookClient

from tests.system.person import Manager, send_credentials, use_gateway

_CELL_TIMEOUT: Final = 60
"""Seconds."""


def main(tool: str, url: str, ws_url: str, notebook: str, executed: str, parameters: str) -> None:
    """Execute ``notebook`` into ``executed``."""
    token = os.environ.pop("BATCH_TOKEN")
    use_gateway(url, ws_url, token)
    if "BATCH_UNMODIFIED" not in os.environ:
        send_credentials(token)
    run = {"papermill": _papermill, "nbclient": _nbclient}[tool]
    run(notebook, executed, json.loads(parameters))


def _papermill(notebook: str, executed: str, parameters: dict[str, Any]) -> None:
    # What it does not know goes to its engine, and from there to nbclient: no shim of its own.
    papermill.execute_notebook(
        notebook,
        executed,
        parameters=parameters,
        kernel_manager_class=Manager,
        execution_timeout=_CELL_TIMEOUT,
        progress_bar=False,
    )


def _nbclient(notebook: str, executed: str, parameters: dict[str, Any]) -> None:
    assert not parameters, "nbclient has none"
    read = nbformat.read(notebook, as_version=4)
    NotebookClient(read, kernel_manager_class=Manager, timeout=_CELL_TIMEOUT).execute()
    Path(executed).write_text(nbformat.writes(read))


if __name__ == "__main__":
    main(*sys.argv[1:])
