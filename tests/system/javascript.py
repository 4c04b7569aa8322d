"""The real JavaScript clients: installs what ``node/package-lock.json`` names, and runs it.

    come = services("execute", relay, "alpha", legacy=False)

npm brings the packages, from whatever registry it is set up with, and runs none of their scripts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.system.gateway_mode import JupyterServer
from tests.system.running import RunningRelay, environment

FOLDER: Final = Path(__file__).parent / "node"
_LOCK: Final = FOLDER / "package-lock.json"
_MODULES: Final = FOLDER / "node_modules"
_INSTALLED: Final = _MODULES / ".installed"
"""A copy of the lock that the modules were installed from."""


class NotInstalled(Exception):
    """The packages could not be installed; the message says why, or what to install first."""


class Failed(Exception):
    """A scenario failed; the message is what node said."""


def install() -> None:
    """Install the packages where that hasn't been done yet. Raises `NotInstalled`."""
    with _one_at_a_time():
        if not _INSTALLED.exists() or _INSTALLED.read_bytes() != _LOCK.read_bytes():
            if not (shutil.which("npm") and shutil.which("node")):
                raise NotInstalled(
                    "There is no node, or no npm. On Debian: apt-get install -y nodejs npm"
                )
            _perform(["npm", "ci", "--no-progress"])
            shutil.copyfile(_LOCK, _INSTALLED)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """pytest may run in several processes."""
    descriptor = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _perform(argv: list[str]) -> None:
    done = subprocess.run(
        argv,
        cwd=FOLDER,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotInstalled(f"{argv} ended with {done.returncode}: {done.stdout}")


def services(
    scenario: str,
    relay: RunningRelay,
    cluster: str,
    *,
    legacy: bool = False,
    kernel: str = "",
    token: str | None = None,
    on_event: Callable[[str], object] = lambda _: None,
) -> Any:
    """Run a scenario of ``services.mjs``: its result. Raises `Failed`.

    ``token`` is by default the relay's first.
    """
    info = relay.info
    settings = {
        "baseUrl": f"{info.https_url}/{cluster}",
        "wsUrl": f"{info.wss_url}/{cluster}",
        "token": info.token if token is None else token,
        "legacy": legacy,
        "kernel": kernel,
    }
    return _run(["services.mjs", scenario], settings, relay, on_event)


def jupyterlab(
    server: JupyterServer,
    notebook: str,
    cells: int,
    screenshot: Path,
    relay: RunningRelay,
    on_event: Callable[[str], object],
) -> Any:
    """Run a notebook's cells in JupyterLab's page: what it shows. Raises `Failed`."""
    settings = {
        "url": server.url,
        "token": server.token,
        "notebook": notebook,
        "cells": cells,
        "chromium": shutil.which("chromium"),
        "profile": tempfile.mkdtemp(prefix="chromium-", dir=relay.folder),
        "screenshot": str(screenshot),
    }
    return _run(["jupyterlab.mjs"], settings, relay, on_event)


def install_chromium() -> None:
    """Install Debian's Chromium where there is none. Raises `NotInstalled`."""
    if shutil.which("chromium"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NotInstalled("There is no Chromium. On Debian: apt-get install -y chromium")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300"]
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        _perform([*apt, *arguments])


def _run(
    argv: list[str],
    settings: Mapping[str, Any],
    relay: RunningRelay,
    on_event: Callable[[str], object],
) -> Any:
    """The result of a script that reads settings and writes events and a result."""
    folder = Path(tempfile.mkdtemp(prefix="node-", dir=relay.folder))
    environ = {**environment(folder), "NODE_EXTRA_CA_CERTS": relay.info.ca}
    log = folder / "node.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            ["node", *argv],
            cwd=FOLDER,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin:
                json.dump(settings, process.stdin)
            for line in process.stdout:
                match json.loads(line):
                    case {"event": event}:
                        on_event(event)
                    case {"result": result}:
                        return result
        finally:
            process.kill()
    raise Failed(f"{' '.join(argv)} ended with {process.returncode}: {log.read_text()}")
