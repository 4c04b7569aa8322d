"""Iterators for scripts: over the outputs of one cell, or over all messages."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeAlias

from relay.bridge.messages import Channel
from relay.client.inbox import Inbox
from relay.client.kernel_message import KernelMessage, convert
from relay.client.kernel_session import KernelSession
from relay.client.outputs import InputRequest, Output, Result, read_output

OnInput: TypeAlias = Callable[[InputRequest], Awaitable[str]]
"""Answers a cell's request for a line of input."""


class Execution:
    """One running cell: an iterator of its outputs, in order, each once.

    Only one task may read it. It ends when the kernel has replied and is idle again. After the
    outputs that came before, it raises `KernelRestarted`, `KernelGone`, `GaveUp`, or the error that
    ended the connection for good. The request is sent whether or not it is iterated. Unread outputs
    count against ``queue_bytes`` until this object is garbage-collected.
    """

    def __init__(
        self, msg_id: str, inbox: Inbox, session: KernelSession, on_input: OnInput | None
    ) -> None:
        self.msg_id = msg_id
        """The request's id, which another process can resume."""
        self.reply: dict[str, Any] | None = None
        """The content of the ``execute_reply``, once the iteration has ended."""
        self.position: str | None = None
        """The position of the newest output that was returned."""
        self._inbox = inbox
        self._session = session
        self._on_input = on_input
        self._question: KernelMessage | None = None
        self._answered: KernelMessage | None = None
        # A script that leaves its loop early does not read the rest.
        weakref.finalize(self, inbox.close).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        while True:
            message = self._question or await self._next()
            if message is None:
                raise StopAsyncIteration
            if message.raw.channel is Channel.STDIN:
                await self._answer(message)
                continue
            self._inbox.done(message)
            if message.raw.channel is not Channel.IOPUB:
                self.reply = message.content
            elif (output := read_output(message)) is not None:
                self.position = str(message.seq)
                return output

    async def result(self) -> Result:
        """Collect the remaining outputs. Raises as the iteration does."""
        outputs = [output async for output in self]
        return Result(self.msg_id, outputs, self.reply)

    async def _next(self) -> KernelMessage | None:
        message = await self._inbox.get()
        if self._answered is not None:
            # The next message shows that the kernel has received the answer.
            self._inbox.done(self._answered)
            self._answered = None
        return message

    async def _answer(self, question: KernelMessage) -> None:
        # Kept, so that the next turn asks again if the handler fails or is cancelled.
        self._question = question
        value = ""
        if self._on_input is not None:
            asked = convert(question.content, InputRequest) or InputRequest()
            value = await self._on_input(asked)
        self._session.answer(question, value)
        self._question, self._answered = None, question


class Messages:
    """All messages of this session, those of other clients' cells on iopub included."""

    def __init__(self, inbox: Inbox, leave: Callable[[Inbox], None]) -> None:
        self._inbox = inbox
        self._leave = weakref.finalize(self, leave, inbox)
        self._leave.atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KernelMessage:
        message = await self._inbox.get()
        if message is None:
            raise StopAsyncIteration
        self._inbox.done(message)
        return message

    def close(self) -> None:
        """Stop receiving messages; garbage collection does so too."""
        self._leave()
