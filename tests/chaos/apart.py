"""Clients in processes of their own, which are told what to ask and tell what they hear.

Commands and answers are lines of JSON, the same for every such program: tests/system/node/chaos.mjs
describes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.chaos.desk import until
from tests.chaos.tally import Heard
from tests.chaos.wiring import ports_of
from tests.system.gateway_mode import gateway_environment
from tests.system.javascript import FOLDER, install
from tests.system.running import RunningRelay, environment

_LINE: Final = 64 * 1024 * 1024
"""Bytes of a line from the program."""
_TOP: Final = Path(__file__).parents[2]


class Apart:
    """The process, with a connection per seat."""

    def __init__(
        self,
        relay: RunningRelay,
        argv: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str],
    ) -> None:
        """``environ`` is set over what every program gets."""
        self._relay = relay
        self._argv = argv
        self._cwd = cwd
        self._environ = environ
        self._ears: dict[str, Callable[[Heard], None]] = {}
        self._connected = set[str]()
        self._process: asyncio.subprocess.Process

    async def start(self, name: str) -> None:
        """Start it; ``name`` is that of its folder and log."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._relay.folder))
        with (folder / f"{name}.log").open("w") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                cwd=self._cwd,
                env={**environment(folder), **self._environ},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=_LINE,
            )

    async def run(self) -> None:
        """Hand on what it says, until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            match json.loads(line):
                case {"status": seat, "connection": "connected"}:
                    self._connected.add(seat)
                case {"heard": seat, "messages": messages}:
                    for key, kind, text, stderr, date in messages:
                        self._ears[seat](Heard(key or "", kind, text, stderr, date[:26]))

    async def seat(self, name: str, kernel: str, hear: Callable[[Heard], None]) -> ApartSeat:
        """Connect to a kernel."""
        self._ears[name] = hear
        self.say({"open": name, "kernel": kernel})
        await until(f"a connection of {name}", lambda: name in self._connected)
        return ApartSeat(self, name)

    def say(self, what: Any) -> None:
        """Send it a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")

    def ports(self) -> set[int]:
        """The local ports of its connections to the edge."""
        return ports_of(self._process.pid, self._relay)

    async def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class ApartSeat:
    """One kernel connection."""

    def __init__(self, process: Apart, name: str) -> None:
        self._process = process
        self._name = name

    def ports(self) -> set[int]:
        """Those of the whole process."""
        return self._process.ports()

    async def ask(self, key: str, code: str) -> None:
        """Ask for the execution of code."""
        self._process.say({"ask": key, "seat": self._name, "code": code})

    async def close(self) -> None:
        """Nothing to do: it ends with the process."""


async def start_node(relay: RunningRelay, cluster: str, prefix: Sequence[str]) -> Apart:
    """JupyterLab's own client library in Node; ``prefix`` is a command to run it in."""
    await asyncio.to_thread(install)
    info = relay.info
    trusting = {"NODE_EXTRA_CA_CERTS": info.ca}
    process = Apart(relay, [*prefix, "node", "chaos.mjs"], FOLDER, trusting)
    await process.start("node")
    urls = {"baseUrl": f"{info.https_url}/{cluster}", "wsUrl": f"{info.wss_url}/{cluster}"}
    process.say({**urls, "token": info.token})
    return process


async def start_script(relay: RunningRelay, cluster: str, prefix: Sequence[str]) -> Apart:
    """`relay.client`, likewise."""
    environ = {
        **gateway_environment(relay.info, cluster),
        "JUPYTER_GATEWAY_URL": f"{relay.info.https_url}/{cluster}",
    }
    argv = [*prefix, sys.executable, "-m", "tests.chaos.script"]
    process = Apart(relay, argv, _TOP, environ)
    await process.start("script")
    return process
