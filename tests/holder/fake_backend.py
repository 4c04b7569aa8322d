"""A kernel that is a list, behind the backend's contract: scripted replies, deaths, adoption."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from relay.bridge.messages import Channel, Message
from relay.errors import StartFailed
from relay.holder.backends.base import KernelBackend, KernelChannel, MessageHandler
from relay.kernel_folders import KernelRecord
from tests.virtualtime import settle


class FakeChannel:
    """What was sent to the kernel, and what it answers."""

    def __init__(self, on_message: MessageHandler) -> None:
        self.messages: list[Message] = []
        self.beats = 0
        self.is_alive = False
        self.closed = False
        self.answers = False
        """Whether it answers whatever it is sent, in the next turn of the event loop."""
        self._on_message = on_message

    @property
    def sent(self) -> list[tuple[Channel, dict[str, Any]]]:
        """Channel and header of each message."""
        return [(each.channel, json.loads(bytes(each.header))) for each in self.messages]

    def send(self, message: Message) -> None:
        self.messages.append(message)
        if self.answers:
            header = json.loads(bytes(message.header))
            asyncio.get_running_loop().call_soon(self.answer, header, message.channel)

    def beat(self) -> None:
        self.beats += 1
        self.is_alive = self.is_alive or self.answers

    def close(self) -> None:
        self.closed = True

    def say(
        self, channel: Channel, msg_type: str, parent: dict[str, Any], **content: object
    ) -> None:
        header = {"msg_id": "k", "msg_type": msg_type, "session": "kernel"}
        head, above, rest = (json.dumps(each).encode() for each in (header, parent, content))
        self._on_message(Message(channel, head, above, b"{}", rest))

    def answer(self, request: dict[str, Any], channel: Channel = Channel.SHELL) -> None:
        """Answer a request as a kernel does that has nothing else to do."""
        self.say(Channel.IOPUB, "status", request, execution_state="busy")
        reply = request["msg_type"].replace("_request", "_reply")
        self.say(channel, reply, request, status="ok")
        self.say(Channel.IOPUB, "status", request, execution_state="idle")

    async def answer_probes(self, channel: Channel, subshell: str | None = None) -> int:
        """Answer the probes of a queue until none comes; how many there were."""
        answered = 0
        while True:
            await settle()
            mine = [
                header
                for sent, header in self.sent
                if header["msg_type"] == "kernel_info_request"
                and (sent, header.get("subshell_id")) == (channel, subshell)
            ]
            if len(mine) == answered:
                return answered
            answered += 1
            self.say(channel, "kernel_info_reply", mine[-1], status="ok")
            self.say(Channel.IOPUB, "status", mine[-1], execution_state="idle")


class FakeBackend:
    """Launches kernels that answer at once, unless the test says otherwise.

    ``calls`` has what was asked of it, in order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.channels: list[FakeChannel] = []
        self.exit_code: int | None = None
        self.answers = True
        """Whether kernels answer what they are sent."""
        self.early_ends = 0
        """Launches that end before they answer."""
        self.refused = 0
        """Launches that do not even begin."""
        self.transports = 1
        """Transports that are left after the present one."""
        self.tail = ""

    @property
    def channel(self) -> FakeChannel:
        """The present kernel's."""
        return self.channels[-1]

    @property
    def notes(self) -> Mapping[str, Any]:
        return {"identities": [f"launch {len(self.channels)}"], "provisioner": {}}

    @property
    def log_fields(self) -> Mapping[str, Any]:
        return {"fake": True}

    async def launch(self, on_message: MessageHandler) -> KernelChannel:
        self.calls.append("launch")
        if self.refused:
            self.refused -= 1
            raise StartFailed("It could not be launched.")
        channel = self._connect(on_message)
        self.exit_code = 3 if self.early_ends else None
        channel.answers = self.answers and not self.early_ends
        self.early_ends = max(self.early_ends - 1, 0)
        return channel

    async def adopt(self, record: KernelRecord, on_message: MessageHandler) -> KernelChannel:
        self.calls.append(f"adopt {' '.join(record.identities)}")
        return self._connect(on_message)

    def _connect(self, on_message: MessageHandler) -> FakeChannel:
        self.channels.append(FakeChannel(on_message))
        return self.channel

    def forget_predecessors(self) -> None:
        self.calls.append("forget predecessors")

    async def fall_back(self) -> bool:
        if not self.transports:
            return False
        self.transports -= 1
        self.calls.append("fall back")
        return True

    async def poll(self) -> int | None:
        return self.exit_code

    async def interrupt(self) -> None:
        self.calls.append("interrupt")

    async def end(self, *, now: bool, relaunch: bool = False) -> None:
        self.calls.append(f"end{' now' * now}{' to relaunch' * relaunch}")
        self.exit_code = 0

    async def clean_up(self) -> None:
        self.calls.append("clean up")

    def trim_log(self, limit: int) -> None:
        self.trimmed = limit

    def log_tail(self) -> str:
        return self.tail

    def die(self, exit_code: int) -> None:
        """The kernel process ends by itself."""
        self.exit_code = exit_code


_: type[KernelBackend] = FakeBackend
