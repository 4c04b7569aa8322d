"""A kernel, for scripts."""

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
from relay.client.rest import RestClient
from relay.errors import ClientError, NotFound
from relay.model import KernelModel


class Options(TypedDict, total=False):
    """Optional fields of an ``execute_request``, with the specification's defaults."""

    silent: bool
    """Whether output and counting are suppressed; default False."""
    store_history: bool
    """Whether the cell gets a number and is stored in the history; default True."""
    stop_on_error: bool
    """Whether requests queued behind the cell are aborted when it fails; default True."""


class Kernel:
    """One kernel, and this script's session with it; made by `RelayClient`.

    The WebSocket opens with the first use and is kept open, through any number of failures, until
    `close`. The kernel keeps running after that, until `shutdown`.
    """

    def __init__(
        self, kernel_id: str, rest: RestClient, session: KernelSession, channels: Channels
    ) -> None:
        self.id = kernel_id
        self._path = f"/api/kernels/{kernel_id}"
        self._rest = rest
        self._session = session
        self._channels = channels
        self._task: asyncio.Task[None] | None = None

    def open(self, tasks: asyncio.TaskGroup) -> Self:
        """Run the channels as one of ``tasks``; called by `RelayClient`."""
        self._task = tasks.create_task(self._channels.run(), name=f"relay client: {self.id}")
        return self

    async def close(self) -> None:
        """Disconnect, and leave the kernel running: another process can resume the session."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._session.fail(ClientError("The client was closed."))

    @property
    def closed(self) -> bool:
        """Whether no more messages will arrive."""
        return self._session.failure is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Position.

    @property
    def session_id(self) -> str:
        """The session's id; ``connect`` in another process can take the session over."""
        return self._session.session_id

    @property
    def position(self) -> str | None:
        """How far this script has read, as ``<epoch>-<N>``, for another process to resume.

        The output that the body of a loop is processing counts as read. None before the first
        message.
        """
        position = self._session.tracker.position
        return None if position is None else str(position)

    @property
    def connections(self) -> int:
        """Number of WebSockets so far: one, and one more for each failure."""
        return self._channels.connections

    @property
    def repeated(self) -> int:
        """Messages that arrived twice, one of which was dropped; there should be none."""
        return self._session.tracker.repeated

    # Running code.

    def execute(
        self,
        code: str,
        *,
        on_input: OnInput | None = None,
        msg_id: str | None = None,
        **options: Unpack[Options],
    ) -> Execution:
        """Run code; return an iterator of its outputs.

        The request is sent at once, or as soon as the relay is back, and runs once, after the
        requests before it. ``on_input`` answers ``input()``, which fails without it. ``msg_id``
        must be new; by default one is made. Raises `RelayError` where the kernel is gone,
        `BadRequest` for a ``msg_id`` in use.
        """
        content = _content(code, on_input, options)
        chosen, inbox = self._session.request(
            Channel.SHELL, "execute_request", content, msg_id=msg_id
        )
        return Execution(chosen, inbox, self._session, on_input)

    async def run(
        self, code: str, *, on_input: OnInput | None = None, **options: Unpack[Options]
    ) -> Result:
        """Run code and wait for its end. Options and errors as for `execute`.

        An exception in the code is not raised here; see `Result.ok`.
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
        """Continue a request that another process of this session has executed.

        Call it right after `RelayClient.connect`, for everything that was running, before anything
        is awaited: messages for requests that are not resumed are dropped. With ``code`` (and
        options) the request is run if it never arrived. ``after`` is the position of that
        execution, where it is ahead of the kernel's.
        """
        content = None if code is None else _content(code, on_input, options)
        seq = None if after is None else parse_position(after)
        inbox = self._session.resume(msg_id, content, seq)
        return Execution(msg_id, inbox, self._session, on_input)

    async def request(
        self, msg_type: str, content: Mapping[str, Any] | None = None, *, control: bool = False
    ) -> dict[str, Any]:
        """Send any other request, such as ``complete_request``; return the reply's content."""
        channel = Channel.CONTROL if control else Channel.SHELL
        _, inbox = self._session.request(channel, msg_type, content or {}, waits_for_idle=False)
        try:
            while (message := await inbox.get()) is not None:
                inbox.done(message)
                if message.raw.channel is channel:
                    return message.content
        finally:
            inbox.close()
        # Not reached: an inbox without a reply ends with an error.
        return {}

    def messages(self) -> Messages:
        """Return an iterator of all messages from now on, those of other clients' cells too."""
        return Messages(self._session.listen(), self._session.leave)

    # Control.

    async def model(self) -> KernelModel:
        """Return the kernel's model from REST. Raises `NotFound` where the kernel is gone."""
        return msgspec.json.decode(await self._rest.call("GET", self._path), type=KernelModel)

    async def interrupt(self) -> None:
        """Interrupt the running cell. Raises `AgentError` where a retry might hit the next cell."""
        await self._rest.call("POST", f"{self._path}/interrupt", {}, repeatable=False)

    async def restart(self) -> None:
        """Restart the kernel. Unanswered requests end with `KernelRestarted`."""
        await self._rest.call("POST", f"{self._path}/restart", {}, repeatable=False)
        self._session.restarted()

    async def shutdown(self) -> None:
        """Shut down the kernel; a kernel that is gone already is not an error."""
        try:
            await self._rest.call("DELETE", self._path)
        except NotFound:
            # Gone before, or ended by a first try whose response was lost.
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
