"""Runs an unmodified Jupyter Server as a client of the relay.

with RunningRelay() as relay, JupyterServer(relay, "beta") as server:
    assert server.request("GET", "/api/kernelspecs").status == 200
"""

from __future__ import annotations

import contextlib
import http
import json
import os
import secrets
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from relay.supervisor import Ready
from tests.system.running import Answer, Program, RunningRelay, environment, http_request


class JupyterServer:
    """An unmodified ``jupyter server --gateway-url`` in front of one cluster."""

    def __init__(
        self,
        relay: RunningRelay,
        cluster: str,
        environ: Mapping[str, str] | None = None,
        application: Literal["server", "lab"] = "server",
    ) -> None:
        """``environ`` is set over what gateway mode needs; "lab" brings the pages with it."""
        self._application = application
        self.token = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix=f"jupyter-{cluster}-", dir=relay.folder))
        self.log = self.folder / "jupyter.log"
        self.notebooks = self.folder / "notebooks"
        self.notebooks.mkdir()
        self._gateway_url = f"{relay.info.https_url}/{cluster}"
        self._environ = {
            **environment(self.folder),
            **gateway_environment(relay.info, cluster),
            "JUPYTER_TOKEN": self.token,
            **(environ or {}),
        }
        self._program: Program | None = None
        self.url = ""
        """``http://127.0.0.1:<port>``, without a slash at the end."""

    def start(self) -> Self:
        """Start it and wait until it knows its cluster's kernelspecs. Raises `NotRunning`."""
        root = ("--allow-root",) if os.geteuid() == 0 else ()
        options = ("--no-browser", "--ip", "127.0.0.1", "--port", "0", *root)
        gateway = ("--gateway-url", self._gateway_url)
        argv = ("-m", "jupyter", self._application, *options, *gateway, str(self.notebooks))
        self._program = program = Program(argv, self.log, self._environ)
        info = Path(self._environ["JUPYTER_RUNTIME_DIR"])
        self.url = program.wait_until("its address", lambda: _server_url(info))
        program.wait_until("its kernelspecs", self._has_kernelspecs)
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its process."""
        assert self._program is not None
        return self._program.process

    def stop(self) -> int:
        """Stop it, which ends the kernels that it started; its exit code."""
        return 0 if self._program is None else self._program.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def request(self, method: str, target: str, body: Any = None) -> Answer:
        """Ask it, with its own token."""
        headers = {"Authorization": f"token {self.token}"}
        return http_request(self.url, method, target, body, headers=headers)

    def _has_kernelspecs(self) -> bool:
        with contextlib.suppress(OSError):
            return self.request("GET", "/api/kernelspecs").status == http.HTTPStatus.OK
        return False


def gateway_environment(ready: Ready, cluster: str) -> dict[str, str]:
    """What Jupyter Server must be told besides ``--gateway-url``."""
    return {
        # A CA of our own: JUPYTER_GATEWAY_CA_CERTS does nothing without a client certificate.
        "SSL_CERT_FILE": ready.ca,
        # Left alone, it is the other URL with "ws" for "http": one port for both.
        "JUPYTER_GATEWAY_WS_URL": f"{ready.wss_url}/{cluster}",
        "JUPYTER_GATEWAY_AUTH_TOKEN": ready.token,
    }


def _server_url(runtime: Path) -> str | None:
    for file in runtime.glob("jpserver-*.json"):
        with contextlib.suppress(ValueError):  # half written
            return str(json.loads(file.read_text())["url"]).rstrip("/")
    return None
