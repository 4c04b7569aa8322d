"""`relay.client`: its iterators feed a desk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from relay.client import Execution, Kernel, Stream
from relay.errors import RelayError
from tests.chaos.tally import LARGE, Heard, digest


class ScriptSeat:
    """A script in front of one kernel. The client resends, and drops, what it must."""

    def __init__(
        self,
        kernel: Kernel,
        hear: Callable[[Heard], None],
        ports: Callable[[], set[int]],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._kernel = kernel
        self._hear = hear
        self._tasks = tasks
        self.ports = ports
        tasks.create_task(self._listen(), name=f"listen {kernel.id}")

    @property
    def connections(self) -> int:
        """How many WebSockets there have been."""
        return self._kernel.connections

    async def ask(self, key: str, code: str) -> None:
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
                date = str(message.header.date or "")[:26]
                busy = message.msg_type == "status" and message.state() == "busy"
                kind, text = ("status", "busy") if busy else ("", "")
                self._hear(Heard(message.parent.msg_id, kind, text, date=date))

    async def close(self) -> None:
        """Leave."""
        await self._kernel.close()
