"""The hub: kernel messages in, journal, sessions out.

Performs what `bridge.session` decides. Every message is in the journal before any reader is told
of it; readers then read from the journal, each at its own pace, so that the slowest of them
delays nobody and costs no memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog

from relay import limits
from relay.auth.ownership import Grant
from relay.bridge.control import Attach, Detach, HolderFigures
from relay.bridge.events import (
    Acknowledge,
    Action,
    Append,
    ClientAttached,
    ClientDetached,
    CloseConnection,
    DeliveryProved,
    Event,
    Evicted,
    Forward,
    KernelLost,
    MessagePublished,
    MessageSubmitted,
    StartReading,
)
from relay.bridge.messages import (
    Buffer,
    Channel,
    Header,
    Message,
    parse_header,
)
from relay.bridge.session import is_answered
from relay.bridge.zmq_codec import Signer
from relay.errors import BadKernelMessage, MalformedMessage
from relay.holder.backends.sockets import KernelSockets
from relay.holder.broker.activity import NO_PARENT, KernelActivity, state_in
from relay.holder.broker.probe import Probe
from relay.holder.broker.synthetic import SyntheticMessages
from relay.holder.journal.replies import ReplyJournal
from relay.holder.journal.store import Batch, Journal, JournalEntry
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.requests import MAIN, KernelRequest, RequestStore, request
from relay.holder.sessions.store import SessionStore
from relay.model import ExecutionState

log = structlog.get_logger(__name__)


class JournalSubscriber(Protocol):
    """A connection as the hub sees it."""

    def start(self, action: StartReading) -> None:
        """Begin to read."""

    def end(self, code: int, reason: str) -> None:
        """Close the client's WebSocket."""

    def acknowledge(self, number: int) -> None:
        """Tell the edge that a client message arrived."""

    def wake(self) -> None:
        """There is more in the journal."""

    def cut(self, reason: str) -> None:
        """Close the client's WebSocket, whatever it has not read yet: it may not any more."""


_PROBES: Final = 64
"""Requests of the holder's own that are remembered though they were answered."""
_VIEW_ONLY: Final = "RelayViewOnly"
"""The error that answers who may only view and asks for more."""
_ID_CHARACTERS: Final = 1024
"""Of what clients name their messages by; theirs have some 40."""


class Broker:
    """Everything that one kernel's clients share.

    ``on_change`` is called when something that `bridge.control.Status` shows has changed.
    """

    def __init__(
        self,
        memory: SessionStore,
        journal: Journal,
        answers: ReplyJournal,
        requests: RequestStore,
        guests: GrantStore,
        on_change: Callable[[], None],
    ) -> None:
        self.journal = journal
        self.answers = answers
        self.heard = asyncio.Event()
        """Set when iopub has been heard from the present kernel process."""
        self.answered = asyncio.Event()
        """Set when the present kernel process has answered the holder's own request."""
        self.activity = KernelActivity(on_change)
        self.synthetic = SyntheticMessages()
        self._memory = memory
        self._requests = requests
        self._guests = guests
        self._on_change = on_change
        self._readers: dict[int, JournalSubscriber] = {}
        self._next_connection = 0
        self._unwritten: list[JournalEntry] = []
        self._unwritten_answers: list[JournalEntry] = []
        self._finished: list[Callable[[], None]] = []
        """What to note of requests once that is written."""
        self._loop = asyncio.get_running_loop()
        self._probes: dict[str, Probe] = {}
        self._sockets: KernelSockets | None = None
        self._signer = Signer(b"")
        self._disk_failed = False
        self._info: Buffer | None = None
        """The content of the present kernel process's last kernel_info_reply."""
        self._last_info: Buffer | None = None
        """The same of any process that there has been: who only views is never the first to ask."""
        self._curious: dict[int, Message] = {}
        """Who only views and has asked before there was an answer, by connection."""
        self._held: list[Message] | None = None
        """Requests that wait until the kernel has done what an earlier holder sent it."""
        self._gaps = 0
        self._gap_messages = 0

    @property
    def figures(self) -> HolderFigures:
        """What the agent's metrics are made of."""
        failed = self.journal.failed
        return HolderFigures(
            journal_bytes=self.journal.size + self.answers.size,
            journal_problem=None if failed is None else failed.strerror or "it cannot be written",
            messages=self.journal.last_seq,
            unsaved=self.journal.unsaved,
            gaps=self._gaps,
            gap_messages=self._gap_messages,
            sessions=self._memory.sessions.remembered,
            limit_hits=dict(limits.counts),
        )

    def read(self, after: int, max_bytes: int) -> Batch:
        """What a session is to read behind ``after``: the journal, and answers in its gaps."""
        return self.answers.read(self.journal, after, max_bytes)

    def note_gap(self, messages: int, setting: str | None = "journal.bytes") -> None:
        """A reader misses messages, because of ``setting`` or, without one, of the disk."""
        log.warning("gap", messages=messages, setting=setting)
        self._gaps += 1
        self._gap_messages += messages
        if setting is not None:
            limits.record(setting)

    # Towards clients.

    @property
    def epoch(self) -> str:
        """The journal's epoch: a seq means something together with it only."""
        return self._memory.sessions.epoch

    @property
    def connections(self) -> int:
        """How many clients are attached."""
        return self._memory.sessions.connections

    def attach(self, reader: JournalSubscriber, attach: Attach) -> int:
        """A client comes; returns the number its connection has from now on.

        Raises `Forbidden` where the kernel's owner has just taken back that it may.
        """
        self._next_connection += 1
        connection = self._next_connection
        self._guests.admit(
            connection, attach.principal, granted=attach.granted, views_only=attach.views_only
        )
        self._readers[connection] = reader
        self._perform(ClientAttached(connection, attach))
        self._on_change()
        return connection

    def detach(self, connection: int, detach: Detach | None) -> None:
        """A client's connection ended; without a ``detach``, its edge or agent did."""
        self._part(connection)
        told = detach or Detach()
        self._perform(ClientDetached(connection, told.departure, told.seq, told.fragment > 0))
        self._on_change()

    def watch(self, reader: JournalSubscriber, principal: str, *, granted: bool) -> int:
        """Wake and end somebody who only reads; the number is for `unwatch`.

        Raises `Forbidden` as `attach` does.
        """
        self._next_connection += 1
        number = self._next_connection
        self._guests.admit(number, principal, granted=granted, views_only=True)
        self._readers[number] = reader
        return number

    def unwatch(self, number: int) -> None:
        """The reader of `watch` is gone."""
        self._part(number)

    def _part(self, number: int) -> None:
        self._readers.pop(number, None)
        self._guests.leave(number)
        self._curious.pop(number, None)

    def grant(self, principal: str, grant: Grant | None) -> None:
        """Let somebody use or view the kernel, or no more; whom that leaves out is sent away.

        Raises `NotFound`, `TooMany` and `DiskFull`.
        """
        for connection, reason in self._guests.change(principal, grant).items():
            log.info("sent_away", principal=principal, problem=reason)
            reader = self._readers.pop(connection, None)
            # What it says from now on is not heard, though it may hang up later.
            self._perform(ClientDetached(connection))
            if reader is not None:
                reader.cut(reason)

    def views_only(self, connection: int) -> bool:
        """Whether nothing that comes over a connection gets to the kernel."""
        return self._guests.views_only(connection)

    def prove(self, connection: int, seq: int) -> None:
        """A client has received everything up to ``seq``."""
        self._perform(DeliveryProved(connection, seq))

    def submit(self, connection: int, number: int, message: Message) -> None:
        """A client's message for the kernel. Raises `MalformedMessage`."""
        if message.channel is Channel.IOPUB:
            raise MalformedMessage("Nobody but the kernel sends on iopub.")
        header = parse_header(message.header)
        if max(map(len, (header.msg_id, header.session, header.msg_type))) > _ID_CHARACTERS:
            raise MalformedMessage(f"An id in a header has at most {_ID_CHARACTERS} characters.")
        views_only = self._guests.views_only(connection)
        info = self._info if self._is_answered_here(message, header) else None
        event = MessageSubmitted(
            connection,
            number,
            message.channel,
            header.msg_id,
            header.session,
            header.msg_type,
            header.subshell,
            answered=views_only or info is not None,
        )
        if any(isinstance(action, Forward) for action in self._perform(event)):
            if views_only:
                self._hear_viewer(connection, message, header)
                return
            self.activity.asked(header.msg_type)
            if info is not None:
                self._answer(connection, message, info)
            else:
                self._submit(message, header)

    def _submit(self, message: Message, header: Header) -> None:
        asked = request(message.channel, message.header)
        if is_answered(message.channel, header.msg_type) and self._sockets is not None:
            self._requests.add(asked)
        if self._held is not None and asked.lane == MAIN:
            self._held.append(message)
        else:
            self._send(message)

    def _is_answered_here(self, message: Message, header: Header) -> bool:
        """Whether the kernel has no time to say what it has said before."""
        return (
            header.msg_type == "kernel_info_request"
            and message.channel is Channel.SHELL
            and header.subshell_id is None
            and self.activity.state == "busy"
        )

    def _answer(self, connection: int, asked: Message, info: Buffer) -> None:
        """Answer a client's kernel_info_request as the kernel would, without asking it.

        The client takes the kernel for idle after that, as after any request; so it is told once
        more what the kernel does. Nobody else hears of it.
        """
        for message in self.synthetic.known_info(asked.channel, info, asked.header):
            self._tell(message, connection)
        if self.activity.state == "busy":
            # Of no cell: the one that runs has said so itself, to whom it concerns.
            self._tell(self.synthetic.status("busy", NO_PARENT), connection)

    def _hear_viewer(self, connection: int, message: Message, header: Header) -> None:
        """Answer who may only view: nothing that they ask gets to the kernel."""
        if not is_answered(message.channel, header.msg_type):
            return
        # Of a long header no more than what the reply is known by: it is in every answer, and
        # the journal has room for the kernel's output, not for what others say.
        asked = request(message.channel, message.header)
        message = msgspec.structs.replace(message, header=bytes(asked.header))
        if header.msg_type != "kernel_info_request":
            why = "You may only view this kernel."
            for each in self.synthetic.refusal(
                message.channel, header.msg_type, _VIEW_ONLY, why, message.header
            ):
                self._tell(each, connection)
        elif self._last_info is None:
            self._curious[connection] = message
        else:
            self._answer(connection, message, self._last_info)

    def _send(self, message: Message) -> None:
        if self._sockets is None:
            # Between two kernel processes there is nobody to send to; the clients learn of
            # the new one from its status.
            log.info("dropped_request", reason="no kernel process")
            return
        self._sockets.send(message.channel, self._signer.serialize(message))

    # Towards the kernel.

    def open(self, sockets: KernelSockets, signer: Signer) -> None:
        """A kernel process was launched; these are its sockets."""
        self._sockets, self._signer = sockets, signer
        self.heard.clear()
        self.answered.clear()
        self._info = None

    def adopt(self, sockets: KernelSockets, signer: Signer, notice: str) -> None:
        """These are the sockets of a kernel that an earlier holder has used; tell clients so.

        Until it has answered, it may be running anything.
        """
        self.open(sockets, signer)
        self.activity.enter("busy")
        self._held = []
        running = (asked for asked in self._requests if asked.lane == MAIN)
        headers = (bytes(asked.header) for asked in running)
        self.activity.running_cell = next(headers, NO_PARENT)
        self.say(notice)

    def finish(self, asked: KernelRequest, ename: str, evalue: str) -> None:
        """Give a request's asker the reply, and everybody the idle status, that were lost."""
        if not asked.answered:
            to = bytes(asked.header)
            reply = self.synthetic.error(asked.channel, asked.msg_type, ename, evalue, to)
            event = MessagePublished(asked.channel, asked.msg_id, asked.session, asked.subshell)
            self._append(event, reply)
        if not asked.idle:
            idle = self.synthetic.status("idle", bytes(asked.header))
            told = MessagePublished(Channel.IOPUB, asked.msg_id, asked.session)
            self._append(told, idle, state=True)
            self._finished.append(partial(self._requests.idle, asked.msg_id, asked.session))

    def learnt_idle(self, before: Sequence[KernelRequest]) -> None:
        """The kernel has done all that an earlier holder had sent to its main shell."""
        running = parse_header(self.activity.running_cell)
        if any((each.msg_id, each.session) == (running.msg_id, running.session) for each in before):
            self.activity.running_cell = NO_PARENT
        if self.activity.running_cell == NO_PARENT:
            self.announce("idle")
        held, self._held = self._held or [], None
        for message in held:
            self._send(message)

    def drop_inherited(self) -> None:
        """No reply to what an earlier holder sent will come any more."""
        if self._sockets is not None:
            self._sockets.drop_inherited()

    def close(self) -> None:
        """The kernel process has ended; what it had sent is taken first."""
        if self._sockets is not None:
            sockets, self._sockets = self._sockets, None
            sockets.close()
        self._perform(KernelLost())
        if self._unwritten:
            self._write()
        self._requests.clear()
        for probe in self._probes.values():
            probe.lose()
        self._probes.clear()
        self._held = None
        self.activity.running_cell = NO_PARENT

    def ask(self, channel: Channel = Channel.SHELL, subshell: str = "") -> Probe:
        """Send the kernel a kernel_info_request of the holder's own, to a subshell perhaps."""
        msg_id, message = self.synthetic.ask_info(channel, subshell)
        done = [each for each, probe in self._probes.items() if probe.answered.is_set()]
        for each in done[:-_PROBES]:
            # Of those that were answered some wait for an idle status that does not come.
            del self._probes[each]
        probe = self._probes[msg_id] = Probe()
        if self._sockets is None:
            probe.lose()
        self._send(message)
        return probe

    def announce(self, state: ExecutionState) -> None:
        """Tell all clients a state that the kernel itself cannot tell any more."""
        self.activity.enter(state)
        # JupyterLab closes its WebSocket when it hears this one, and comes back.
        event = MessagePublished(Channel.IOPUB, "", "", farewell=state == "restarting")
        status = self.synthetic.status(state, self.activity.running_cell)
        self._append(event, status, state=True)

    def say(self, text: str) -> None:
        """Tell all clients something on stderr of the running cell."""
        content = {"name": "stderr", "text": text}
        parent = self.activity.running_cell
        self._tell(self.synthetic.say(Channel.IOPUB, "stream", content, parent))

    def _tell(self, message: Message, connection: int | None = None) -> None:
        """Have a message read by everybody, or by one connection's session."""
        event = MessagePublished(message.channel, "", "", connection=connection)
        self._append(event, message)

    def on_multipart(self, channel: Channel, parts: list[bytes]) -> None:
        """Take one multipart from the kernel."""
        try:
            message = self._signer.parse(channel, parts)
            header = parse_header(message.header)
            parent = parse_header(message.parent_header)
        except (BadKernelMessage, MalformedMessage) as error:
            log.warning("bad_kernel_message", channel=channel.wire, problem=str(error))
            return
        if channel is Channel.IOPUB:
            self.heard.set()
            if header.msg_type == "iopub_welcome":
                # Meant for the subscriber, which the holder is.
                return
        if header.session:
            self.synthetic.kernel_session = header.session
        if header.msg_type == "status":
            self.activity.note_status(message, parent)
        if header.msg_type == "kernel_info_reply" and channel is Channel.SHELL:
            self._info = self._last_info = message.content
            curious, self._curious = self._curious, {}
            for connection, asked in curious.items():
                self._answer(connection, asked, message.content)
        if parent.session == self.synthetic.own_session:
            self._note_probe(channel, parent.msg_id, message)
            return
        self.activity.heard(parent)
        event = MessagePublished(channel, parent.msg_id, parent.session, parent.subshell)
        is_state = channel is Channel.IOPUB and header.msg_type == "status"
        self._append(event, message, state=is_state)
        if is_state and state_in(message) == "idle":
            self._finished.append(partial(self._requests.idle, parent.msg_id, parent.session))

    def _note_probe(self, channel: Channel, msg_id: str, message: Message) -> None:
        if channel is Channel.SHELL:
            self.answered.set()
        probe = self._probes.get(msg_id)
        if probe is None:
            return
        if channel is not Channel.IOPUB:
            probe.answered.set()
        elif state_in(message) == "idle":
            probe.idle.set()

    # The journal.

    def _append(self, event: MessagePublished, message: Message, *, state: bool = False) -> None:
        for action in self._memory.handle(event, time.time()):
            if isinstance(action, Append):
                entry = JournalEntry(action.seq, message.channel, action.audience, _parts(message))
                self._unwritten.append(entry)
                if state or (action.audience and not self._is_refusal(event)):
                    self._unwritten_answers.append(entry)
                if len(self._unwritten) == 1:
                    self._loop.call_soon(self._write)
                if event.channel in (Channel.SHELL, Channel.CONTROL) and event.connection is None:
                    ids = event.channel, event.parent_msg_id, event.parent_session
                    self._finished.append(partial(self._requests.answered, *ids))
            else:
                log.debug("unasked_reply", channel=message.channel.wire)

    def _is_refusal(self, event: MessagePublished) -> bool:
        """Whether it is for who may only view: what others wait for must not make room for it."""
        return event.connection is not None and self._guests.views_only(event.connection)

    def _write(self) -> None:
        entries, self._unwritten = self._unwritten, []
        self.journal.append(entries)
        answers, self._unwritten_answers = self._unwritten_answers, []
        self.answers.keep(answers)
        finished, self._finished = self._finished, []
        for note in finished:
            note()
        self._note_disk()
        for reader in self._readers.values():
            reader.wake()

    def _note_disk(self) -> None:
        """Log when the journal cannot be written, and when it can again; not every message."""
        failed = self.journal.failed is not None
        if failed != self._disk_failed:
            self._disk_failed = failed
            if failed:
                log.error("journal_not_written", problem=str(self.journal.failed))
            else:
                log.info("journal_written_again", unsaved=self.journal.unsaved)
            self._on_change()

    def _perform(self, event: Event) -> Sequence[Action]:
        actions = self._memory.handle(event, time.time())
        for action in actions:
            match action:
                case StartReading():
                    self._readers[action.connection].start(action)
                case CloseConnection():
                    self._readers.pop(action.connection).end(action.code, action.reason)
                case Acknowledge():
                    self._readers[action.connection].acknowledge(action.number)
                case Evicted():
                    log.warning("forgotten", setting=action.setting)
                    limits.record(action.setting)
        return actions

    def end_all(self, code: int, reason: str) -> None:
        """Close every client's WebSocket once it has read what is in the journal."""
        if self._unwritten:
            self._write()
        for reader in list(self._readers.values()):
            reader.end(code, reason)


def _parts(message: Message) -> tuple[bytes, ...]:
    parts = message.header, message.parent_header, message.metadata, message.content
    return tuple(bytes(part) for part in (*parts, *message.buffers))
