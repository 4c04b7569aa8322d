"""A kernel as a script has it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Self, TypedDict, Unpack

import msgspec

from relay.bridge.messages import Channel
from relay.client.channels import Channels
from relay.client.delivery_tracker import parse_position
from relay.client.executions import Execution, Messages, OnInput
from relay.client.kernel_session import KernelSession
from relay.client.outputs import Result
from relay.client.rest import Rest
from relay.errors import ClientError, NotFound
from relay.model import KernelModel


class Options(TypedDict, total=False):
    """More of an ``execute_request``, with the specification's defaults."""

    silent: bool
    """Nothing is shown or counted; False."""
    store_history: bool
    """It gets a number, and a place in the history; True."""
    stop_on_error: bool
    """When it fails, what is queued behind it is not run; True."""


class Kernel:
    """One kernel, and this script's session with it. Made by `RelayClient`.

    The WebSocket opens with the first use and stays, through any number of failures, until
    `close`. The kernel lives on after that, and until `shutdown`.
    """

    def __init__(
        self, kernel_id: str, rest: Rest, conversation: KernelSession, channels: Channels
    ) -> None:
        self.id = kernel_id
        self._path = f"/api/kernels/{kernel_id}"
        self._rest = rest
        self._conversation = conversation
        self._channels = channels
        self._task: asyncio.Task[None] | None = None

    def open(self, tasks: asyncio.TaskGroup) -> Self:
        """Run the channels as one of ``tasks``; for `RelayClient`."""
        self._task = tasks.create_task(self._channels.run(), name=f"relay client: {self.id}")
        return self

    async def close(self) -> None:
        """Leave the kernel as it is: whoever comes with this session and position goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._conversation.fail(ClientError("The client was closed."))

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more."""
        return self._conversation.failure is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Where it stands.

    @property
    def session_id(self) -> str:
        """Names the session; ``connect`` in another process takes it over."""
        return self._conversation.session_id

    @property
    def position(self) -> str | None:
        """Up to here this script has been given everything, as ``<epoch>-<N>``: store it.

        The output that a loop's body has in its hands counts. None until something came.
        """
        position = self._conversation.ledger.position
        return None if position is None else str(position)

    @property
    def connections(self) -> int:
        """How many WebSockets there have been: one, and one more for each failure."""
        return self._channels.connections

    @property
    def repeated(self) -> int:
        """Messages that came twice, of which one was dropped. There should be none."""
        return self._conversation.ledger.repeated

    # Running code.

    def execute(
        self,
        code: str,
        *,
        on_input: OnInput | None = None,
        msg_id: str | None = None,
        **options: Unpack[Options],
    ) -> Execution:
        """Run code: an iterator of its outputs.

        It is sent at once, or as soon as the relay is back, and runs once, after what was sent
        before it. ``on_input`` answers ``input()``; without it the cell's call fails. ``msg_id``
        should be new; None makes one. Raises `RelayError` where the kernel is
        gone, `BadRequest` for a ``msg_id`` in use.
        """
        content = _content(code, on_input, options)
        chosen, inbox = self._conversation.ask(
            Channel.SHELL, "execute_request", content, msg_id=msg_id
        )
        return Execution(chosen, inbox, self._conversation, on_input)

    async def run(
        self, code: str, *, on_input: OnInput | None = None, **options: Unpack[Options]
    ) -> Result:
        """Run code and wait for all that comes of it. Options and errors as for `execute`.

        An exception in the code is no error here; see `Result.ok`.
        """
        return await self.execute(code, on_input=on_input, **options).result()

    def resume(
        self,
        msg_id: str,
        code: str | None = None,
        *,
        after: str | None = None,
        on_input: OnInput | None = None,
        **options: Unpack[Options],
    ) -> Execution:
        """Go on with what another process of this session executed.

        To be called right after `RelayClient.connect`, for all that was running, before anything
        is awaited: what comes for a request that nobody has resumed is dropped. With the ``code``
        (and options) it is also run, if it never arrived. ``after`` is the position of that
        execution, where it was ahead of the kernel's.
        """
        content = None if code is None else _content(code, on_input, options)
        seq = None if after is None else parse_position(after)
        inbox = self._conversation.resume(msg_id, content, seq)
        return Execution(msg_id, inbox, self._conversation, on_input)

    async def request(
        self, msg_type: str, content: Mapping[str, Any] | None = None, *, control: bool = False
    ) -> dict[str, Any]:
        """Ask anything else, ``complete_request`` for example: the content of the reply."""
        channel = Channel.CONTROL if control else Channel.SHELL
        _, inbox = self._conversation.ask(channel, msg_type, content or {}, waits_for_idle=False)
        try:
            while (message := await inbox.get()) is not None:
                inbox.done(message)
                if message.raw.channel is channel:
                    return message.content
        finally:
            inbox.close()
        # Not reached: without a reply there is no end but an error.
        return {}

    def messages(self) -> Messages:
        """All messages from now on, of other clients' cells too, as they came."""
        return Messages(self._conversation.listen(), self._conversation.leave)

    # Its life.

    async def model(self) -> KernelModel:
        """The kernel as REST shows it. Raises `NotFound` where it is gone."""
        return msgspec.json.decode(await self._rest.call("GET", self._path), type=KernelModel)

    async def interrupt(self) -> None:
        """Interrupt what runs. Not repeated where that might hit the next cell: `AgentError`."""
        await self._rest.call("POST", f"{self._path}/interrupt", {}, repeatable=False)

    async def restart(self) -> None:
        """Restart the kernel. What it had not answered ends with `KernelRestarted`."""
        await self._rest.call("POST", f"{self._path}/restart", {}, repeatable=False)
        self._conversation.restarted()

    async def shutdown(self) -> None:
        """End the kernel, if it has not ended already."""
        try:
            await self._rest.call("DELETE", self._path)
        except NotFound:
            # Gone, which is what was wanted, or ended by a first try whose answer was lost.
            return


def _content(code: str, on_input: OnInput | None, options: Options) -> dict[str, Any]:
    return {
        "code": code,
        "silent": False,
        "store_history": True,
        "stop_on_error": True,
        "user_expressions": {},
        "allow_stdin": on_input is not None,
        **options,
    }
