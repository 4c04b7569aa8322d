"""The broker: everything that one kernel's clients share.

`bridge.session` decides, and what it decides is carried out in one place, `Broker.perform`.
`inbound` is the way from clients to the kernel, `outbound` the way back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from relay import limits
from relay.bridge.control import HolderFigures
from relay.bridge.events import (
    Acknowledge,
    Action,
    AnswerInfo,
    Append,
    CloseConnection,
    Defer,
    Discard,
    Drop,
    Event,
    Evicted,
    Forward,
    KernelAdopted,
    KernelInfoLearnt,
    KernelLaunched,
    KernelLost,
    MessagePublished,
    MessageSubmitted,
    Refuse,
    SendDeferred,
    StartReading,
)
from relay.bridge.messages import Buffer, Channel, Header, Message, parse_header
from relay.bridge.requests import MAIN
from relay.bridge.session import ClientSessions
from relay.errors import MalformedMessage
from relay.holder.backends.base import KernelChannel
from relay.holder.broker.activity import NO_PARENT, KernelActivity
from relay.holder.broker.inbound import Inbound, KernelQueue
from relay.holder.broker.outbound import Keep, Outbound
from relay.holder.broker.probe import Probe, Probes
from relay.holder.broker.synthetic import SyntheticMessages
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Journal
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.store import SessionStore
from relay.model import ExecutionState

log = structlog.get_logger(__name__)

_VIEW_ONLY: Final = "RelayViewOnly"
"""The error that answers requests of clients that may only view."""


class Broker:
    """Passes messages between one kernel and its clients.

    ``on_change`` is called when something that `bridge.control.Status` shows has changed.
    """

    def __init__(
        self,
        store: SessionStore,
        journal: Journal,
        replies: ReplyJournal,
        grants: GrantStore,
        on_change: Callable[[], None],
    ) -> None:
        self.heard = asyncio.Event()
        """Set when the present kernel process has sent something on iopub."""
        self.activity = KernelActivity(on_change)
        self.synthetic = SyntheticMessages()
        self.probes = Probes(self.synthetic)
        self.outbound = Outbound(journal, replies, store.in_journal, on_change)
        self.inbound = Inbound(
            self.perform, self.outbound.readers, grants, self.activity, on_change
        )
        self._store = store
        self._queue = KernelQueue()
        self._info: Buffer = b"{}"
        """The content of the last kernel_info_reply."""

    @property
    def sessions(self) -> ClientSessions:
        """The table of clients and requests."""
        return self._store.sessions

    @property
    def figures(self) -> HolderFigures:
        """What the agent's metrics are made of."""
        outbound = self.outbound
        failed = outbound.journal.failed
        return HolderFigures(
            journal_bytes=outbound.journal.size + outbound.replies.size,
            journal_problem=None if failed is None else failed.strerror or "it cannot be written",
            messages=outbound.journal.last_seq,
            unsaved=outbound.journal.unsaved,
            gaps=outbound.gaps,
            gap_messages=outbound.gap_messages,
            sessions=self.sessions.remembered,
            limit_hits=dict(limits.counts),
        )

    # The kernel process.

    def open(self, channel: KernelChannel) -> None:
        """A kernel process was launched."""
        self._connect(channel)
        self.perform(KernelLaunched())

    def adopt(self, channel: KernelChannel, notice: str) -> None:
        """A kernel that an earlier holder has used was adopted; tell clients so.

        Until it has answered, it may be running anything.
        """
        self._connect(channel)
        self.perform(KernelAdopted())
        self.activity.enter("busy")
        running = (request for request in self.sessions.unfinished if request.queue == MAIN)
        headers = (bytes(request.header) for request in running)
        self.activity.running_cell = next(headers, NO_PARENT)
        self.say(notice)

    def _connect(self, channel: KernelChannel) -> None:
        self._queue.open(channel)
        self.heard.clear()
        self.probes.answered.clear()

    def close(self) -> None:
        """The kernel process has ended; what it had sent is taken first."""
        self._queue.close()
        self.perform(KernelLost())
        self.outbound.flush()
        self.probes.lose()
        self.activity.running_cell = NO_PARENT

    def ask(self, channel: Channel = Channel.SHELL, subshell: str = "") -> Probe:
        """Send the kernel a kernel_info_request of the holder's own, to a subshell perhaps."""
        probe, message = self.probes.new(channel, subshell)
        if not self._queue.is_open:
            probe.lose()
        self._queue.send(message)
        return probe

    # Messages that no kernel sent.

    def announce(self, state: ExecutionState) -> None:
        """Tell all clients a state that the kernel itself cannot tell any more."""
        self.activity.enter(state)
        # JupyterLab closes its WebSocket when it receives this one, and comes back.
        event = MessagePublished(Channel.IOPUB, "", "", close_trigger=state == "restarting")
        status = self.synthetic.status(state, self.activity.running_cell)
        self.perform(event, status, Keep.ALWAYS)

    def say(self, text: str) -> None:
        """Tell all clients something on stderr of the running cell."""
        content = {"name": "stderr", "text": text}
        parent = self.activity.running_cell
        message = self.synthetic.say(Channel.IOPUB, "stream", content, parent)
        self.perform(MessagePublished(Channel.IOPUB, "", ""), message)

    def _tell(self, messages: Sequence[Message], connection: int) -> None:
        """Have messages read by one connection's session only."""
        # What other clients wait for must not make room for a viewer's refusals.
        keep = Keep.NEVER if self.inbound.views_only(connection) else Keep.REPLIES
        for message in messages:
            event = MessagePublished(message.channel, "", "", connection=connection)
            self.perform(event, message, keep)

    # Messages from the kernel.

    def on_message(self, message: Message) -> None:
        """Take one message from the kernel."""
        channel = message.channel
        try:
            header = parse_header(message.header)
            parent = parse_header(message.parent_header)
        except MalformedMessage as error:
            log.warning("malformed_kernel_message", channel=channel.wire, problem=str(error))
            return
        if channel is Channel.IOPUB:
            self.heard.set()
            if header.msg_type == "iopub_welcome":
                # Meant for the subscriber, which the holder is.
                return
        state = self._learn(message, header, parent)
        if parent.session == self.synthetic.own_session:
            self.probes.note(channel, parent.msg_id, state)
            return
        self.activity.heard(parent)
        is_state = channel is Channel.IOPUB and header.msg_type == "status"
        event = MessagePublished(
            channel,
            parent.msg_id,
            parent.session,
            parent.subshell,
            idle=is_state and state == "idle",
        )
        self.perform(event, message, Keep.ALWAYS if is_state else Keep.REPLIES)

    def _learn(self, message: Message, header: Header, parent: Header) -> ExecutionState | None:
        """Take note of what a message tells of the kernel; the state in it, if it is a status."""
        if header.session:
            self.synthetic.kernel_session = header.session
        if header.msg_type == "status":
            return self.activity.note_status(message, parent)
        if header.msg_type == "kernel_info_reply" and message.channel is Channel.SHELL:
            self._info = message.content
            self.perform(KernelInfoLearnt())
        return None

    # Decisions.

    def perform(
        self, event: Event, message: Message | None = None, keep: Keep = Keep.REPLIES
    ) -> Sequence[Action]:
        """Have an event decided, and do what is decided; returns it.

        ``message`` is the one that was submitted or is to be published, ``keep`` for the latter.
        """
        actions = self._store.handle(event, time.time())
        for action in actions:
            if message is None:
                self._answer(action)
            elif isinstance(action, Append):
                self.outbound.append(action, message, keep)
            elif not self._pass_on(action, message):
                self._answer(action)
        return actions

    def _pass_on(self, action: Action, message: Message) -> bool:
        """Do what is decided about a client's message; false for what is not about it."""
        match action:
            case Forward():
                self._queue.send(message)
            case Defer():
                self._queue.defer(message)
            case Drop():
                # Between two kernel processes: clients learn of the new one from its status.
                log.info("request_dropped", reason="no kernel process")
            case Discard():
                log.debug("unmatched_reply", channel=message.channel.wire)
            case _:
                return False
        return True

    def _answer(self, action: Action) -> None:
        """Do what is decided about clients."""
        readers = self.outbound.readers
        match action:
            case StartReading():
                readers[action.connection].start(action)
            case CloseConnection():
                readers.pop(action.connection).end(action.code, action.reason)
            case Acknowledge():
                readers[action.connection].acknowledge(action.number)
            case AnswerInfo():
                self._answer_info(action.connection, action.request)
            case Refuse():
                self._refuse(action.connection, action.request)
            case SendDeferred():
                self._queue.send_deferred()
            case Evicted():
                log.warning("session_evicted", setting=action.setting)
                limits.record(action.setting)

    def _answer_info(self, connection: int, request: MessageSubmitted) -> None:
        """Answer a client's kernel_info_request as the kernel would, without asking it.

        The client takes the kernel for idle after that, as after any request; so it is told once
        more what the kernel does. No other client receives any of it.
        """
        header = bytes(request.header)
        messages = self.synthetic.known_info(request.channel, self._info, header)
        if self.activity.state == "busy":
            # Of no cell: the one that runs has said so itself, to its clients.
            messages.append(self.synthetic.status("busy", NO_PARENT))
        self._tell(messages, connection)

    def _refuse(self, connection: int, request: MessageSubmitted) -> None:
        """Answer a viewer's request: nothing that viewers ask gets to the kernel."""
        why = "You may only view this kernel."
        self._tell(
            self.synthetic.refusal(
                request.channel, request.msg_type, _VIEW_ONLY, why, bytes(request.header)
            ),
            connection,
        )
