"""A script that uses `relay.client`, and is told what to ask while the relay is killed around it.

    python -m tests.chaos.script

It knows the relay from its environment. Commands and answers are those of
tests/system/node/chaos.mjs, without the settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from relay.client import Execution, Kernel, RelayClient, Stream
from relay.errors import RelayError
from tests.chaos.tally import LARGE, Heard, digest


class Seat:
    """One kernel. The client resends, and drops, what it must."""

    def __init__(self, name: str, kernel: Kernel, tasks: asyncio.TaskGroup) -> None:
        self._name = name
        self._kernel = kernel
        self._tasks = tasks
        tasks.create_task(self._listen(), name=f"listen {name}")

    def ask(self, key: str, code: str) -> None:
        """Execute code; what comes of it is read beside."""
        execution = self._kernel.execute(code, msg_id=key)
        self._tasks.create_task(self._read(key, execution), name=f"read {key}")

    async def _read(self, key: str, execution: Execution) -> None:
        with contextlib.suppress(RelayError):
            async for output in execution:
                if isinstance(output, Stream):
                    text = output.text
                    if len(text) > LARGE:
                        text = digest(text.removesuffix("\n")) + "\n"
                    self._hear(Heard(key, "stream", text, output.name == "stderr"))
            self._hear(Heard(key, "execute_reply"))
            self._hear(Heard(key, "status", "idle"))

    async def _listen(self) -> None:
        """Hear of states and dates, which an execution's iterator does not tell."""
        with contextlib.suppress(RelayError):
            async for message in self._kernel.messages():
                busy = message.msg_type == "status" and message.state() == "busy"
                kind, text = ("status", "busy") if busy else ("", "")
                date = str(message.header.date or "")
                self._hear(Heard(message.parent.msg_id, kind, text, date=date))

    def _hear(self, heard: Heard) -> None:
        say({"heard": self._name, "messages": [heard]})


async def main() -> None:
    """Do what standard input says, until it ends."""
    seats: dict[str, Seat] = {}
    async with asyncio.TaskGroup() as tasks, RelayClient.from_environment() as relay:
        async for command in _commands():
            name = command.get("open") or command["seat"]
            if "open" in command:
                seats[name] = Seat(name, await relay.connect(command["kernel"]), tasks)
                say({"status": name, "connection": "connected"})
            else:
                seats[name].ask(command["ask"], command["code"])


def say(what: Any) -> None:
    """Tell whoever started it."""
    print(json.dumps(what), flush=True)  # noqa: T201 - that is how it tells


async def _commands() -> AsyncIterator[dict[str, str]]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        yield json.loads(line)


if __name__ == "__main__":
    asyncio.run(main())
