"""JupyterLab's own client library in Node: one process, with a kernel connection per seat."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.chaos.desk import until
from tests.chaos.tally import Heard
from tests.chaos.wiring import ports_of
from tests.system.javascript import FOLDER, install
from tests.system.running import RunningRelay, environment

_LINE: Final = 64 * 1024 * 1024
"""Bytes of a line from Node."""


class Node:
    """The process."""

    def __init__(
        self, relay: RunningRelay, cluster: str, host: str = "", prefix: Sequence[str] = ()
    ) -> None:
        """``host``: the relay's address for it; ``prefix``: a command to run it in."""
        info = relay.info
        urls = {"baseUrl": info.https_url, "wsUrl": info.wss_url}
        self._settings = {name: f"{_at(host, url)}/{cluster}" for name, url in urls.items()}
        self._settings["token"] = info.token
        self._relay = relay
        self._prefix = prefix
        self._ears: dict[str, Callable[[Heard], None]] = {}
        self._connected = Counter[str]()
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Start it, after it was installed."""
        await asyncio.to_thread(install)
        folder = Path(tempfile.mkdtemp(prefix="node-", dir=self._relay.folder))
        with (folder / "node.log").open("w") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix,
                "node",
                "chaos.mjs",
                cwd=FOLDER,
                env={**environment(folder), "NODE_EXTRA_CA_CERTS": self._relay.info.ca},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=_LINE,
            )
        self._say(self._settings)

    async def run(self) -> None:
        """Hand on what it says, until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            match json.loads(line):
                case {"status": seat, "connection": "connected"}:
                    self._connected[seat] += 1
                case {"heard": seat, "messages": messages}:
                    for key, kind, text, stderr, date in messages:
                        self._ears[seat](Heard(key or "", kind, text, stderr, date[:26]))

    async def seat(self, name: str, kernel: str, hear: Callable[[Heard], None]) -> NodeSeat:
        """Connect to a kernel."""
        self._ears[name] = hear
        self._say({"open": name, "kernel": kernel})
        await until(f"Node's connection {name}", lambda: self._connected[name])
        return NodeSeat(self, name)

    def ask(self, seat: str, key: str, code: str) -> None:
        """Ask for the execution of code."""
        self._say({"ask": key, "seat": seat, "code": code})

    def connections(self, seat: str) -> int:
        """How often that connection has come to be."""
        return self._connected[seat]

    def ports(self) -> set[int]:
        """The local ports of its connections to the edge."""
        return ports_of(self._process.pid, self._relay)

    def _say(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")

    async def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class NodeSeat:
    """One kernel connection."""

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._name = name

    @property
    def connections(self) -> int:
        """How often it has come to be."""
        return self._node.connections(self._name)

    def ports(self) -> set[int]:
        """Those of the whole process."""
        return self._node.ports()

    async def ask(self, key: str, code: str) -> None:
        """Ask for the execution of code."""
        self._node.ask(self._name, key, code)

    async def close(self) -> None:
        """Nothing to do: it ends with the process."""


def _at(host: str, url: str) -> str:
    return url.replace("127.0.0.1", host) if host else url
