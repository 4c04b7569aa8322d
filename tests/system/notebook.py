"""Executes a notebook with nbclient on a kernel of a Jupyter Server.

`execute` runs this module in a process of its own, since nbclient takes over signals and the
gateway client is one global object, configured by whatever is in the environment. The notebook
comes in on standard input and goes out, executed, on standard output.

A cell's metadata says what the person in front of it does: ``answers`` are typed where it asks
for input, ``move`` is a new state that is then sent to the widget it shows. What only such a
person sees is noted there too: ``prompts``, ``widgets`` (what was opened) and ``moved`` (the
outputs that the new state led to).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any, Final

import nbformat
import websocket
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.gateway.managers import GatewayKernelClient, GatewayKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets import DottedObjectName, Type

from tests.system.running import JupyterServer, environment

TIMEOUT: Final = 60.0
"""Seconds for a whole notebook, its kernel's start included."""
_TOKEN: Final = "NOTEBOOK_TOKEN"  # noqa: S105 - the name of a variable


class NotExecuted(Exception):
    """nbclient failed; the message is what it said."""


def execute(notebook: NotebookNode, server: JupyterServer) -> NotebookNode:
    """The executed notebook. Raises `NotExecuted`; errors in cells are outputs."""
    environ = {**environment(server.folder), _TOKEN: server.token, "PYTHONPATH": os.getcwd()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, server.url],
            input=nbformat.writes(notebook),
            capture_output=True,
            text=True,
            env=environ,
            timeout=TIMEOUT,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise NotExecuted(error.stderr) from error
    except subprocess.TimeoutExpired as error:
        raise NotExecuted(f"took more than {TIMEOUT:.0f} s: {error.stderr!r}") from error
    return nbformat.reads(done.stdout, as_version=4)
