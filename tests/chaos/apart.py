"""Clients in processes of their own, which are told what to ask and tell what they hear.

Commands and answers are lines of JSON, the same for every such program: tests/system/node/chaos.mjs
describes them. A process has one connection, so that it is known which one a blow has hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.chaos.desk import until
from tests.chaos.tally import Heard
from tests.chaos.wiring import ports_of
from tests.system.gateway_mode import gateway_environment
from tests.system.javascript import FOLDER, install
from tests.system.running import RunningRelay, environment

_LINE: Final = 64 * 1024 * 1024
"""Bytes of a line from the program."""
_TOP: Final = Path(__file__).parents[2]


class Program(NamedTuple):
    """How such a client is started."""

    argv: Sequence[str]
    cwd: Path
    environ: Mapping[str, str]
    """Set over what every program gets."""
    greeting: Sequence[Any] = ()
    """Commands before any other."""


def node(relay: RunningRelay, cluster: str) -> Program:
    """JupyterLab's own client library in Node."""
    install()
    info = relay.info
    urls = {"baseUrl": f"{info.https_url}/{cluster}", "wsUrl": f"{info.wss_url}/{cluster}"}
    trusting = {"NODE_EXTRA_CA_CERTS": info.ca}
    return Program(["node", "chaos.mjs"], FOLDER, trusting, [{**urls, "token": info.token}])


def script(relay: RunningRelay, cluster: str) -> Program:
    """`relay.client`, likewise."""
    environ = {
        **gateway_environment(relay.info, cluster),
        "JUPYTER_GATEWAY_URL": f"{relay.info.https_url}/{cluster}",
    }
    return Program([sys.executable, "-m", "tests.chaos.script"], _TOP, environ)


class ApartSeat:
    """A process, and its kernel connection."""

    def __init__(self, relay: RunningRelay, name: str, hear: Callable[[Heard], None]) -> None:
        self._relay = relay
        self._name = name
        self._hear = hear
        self._connected = False
        self._process: asyncio.subprocess.Process

    async def start(self, program: Program, prefix: Sequence[str]) -> None:
        """Start it; ``prefix`` is a command to run it in."""
        folder = Path(tempfile.mkdtemp(prefix=f"{self._name}-", dir=self._relay.folder))
        with (folder / f"{self._name}.log").open("w") as log:
            self._process = await asyncio.create_subprocess_exec(
                *prefix,
                *program.argv,
                cwd=program.cwd,
                env={**environment(folder), **program.environ},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=_LINE,
            )
        for command in program.greeting:
            self._say(command)

    async def run(self) -> None:
        """Hand on what it says, until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            match json.loads(line):
                case {"connection": "connected"}:
                    self._connected = True
                case {"messages": messages}:
                    for key, kind, text, stderr, date in messages:
                        self._hear(Heard(key or "", kind, text, stderr, date[:26]))

    async def connect(self, kernel: str) -> None:
        """Connect to a kernel, while it runs."""
        self._say({"open": self._name, "kernel": kernel})
        await until(f"a connection of {self._name}", lambda: self._connected)

    def ports(self) -> set[int]:
        """The local ports of its connections to the edge."""
        return ports_of(self._process.pid, self._relay)

    async def ask(self, key: str, code: str) -> None:
        """Ask for the execution of code."""
        self._say({"ask": key, "seat": self._name, "code": code})

    def _say(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")

    async def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
