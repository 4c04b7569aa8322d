"""What becomes of clients' messages for the kernel, and which client a reply is for.

Part of the table in `bridge.session`; sans I/O.
"""

from __future__ import annotations

import enum

from relay.bridge.events import (
    Action,
    AnswerInfo,
    Defer,
    Drop,
    Evicted,
    Forward,
    KernelAdopted,
    KernelEvent,
    KernelInfoLearnt,
    KernelLaunched,
    KernelLost,
    KernelRecovered,
    MessagePublished,
    MessageSubmitted,
    Refuse,
    SendDeferred,
)
from relay.bridge.messages import Channel
from relay.bridge.requests import (
    MAIN,
    KernelRequest,
    RequestIds,
    UnfinishedRequests,
    is_answered,
)
from relay.bridge.session_table import ClientSession

_INFO = "kernel_info_request"


class KernelPresence(enum.Enum):
    """What there is to send to."""

    NONE = "none"
    RECOVERING = "recovering"
    """Requests for the main shell wait: the kernel works off what an earlier holder sent it."""
    RUNNING = "running"


class Submissions:
    """Decides about each client message; remembers the requests that the kernel has not finished.

    ``limit`` bounds these.
    """

    def __init__(self, limit: int) -> None:
        self.kernel = KernelPresence.NONE
        self.informed = False
        """Whether the present kernel process has replied to a kernel_info_request."""
        self.info_known = False
        """Whether any process of this kernel has, since the holder's start."""
        self.requests = UnfinishedRequests(limit)
        self._last_number = 0
        self._awaiting_info: dict[int, MessageSubmitted] = {}
        """Requests of viewers that came before there was a reply, by connection."""

    def change_kernel(self, event: KernelEvent) -> list[Action]:
        """Take note of what happens to the kernel process."""
        match event:
            case KernelLaunched():
                self.kernel, self.informed = KernelPresence.RUNNING, False
            case KernelAdopted():
                self.kernel, self.informed = KernelPresence.RECOVERING, False
            case KernelLost():
                self.kernel = KernelPresence.NONE
                self.requests.clear()
            case KernelInfoLearnt():
                return self._learn_info()
            case KernelRecovered() if self.kernel is KernelPresence.RECOVERING:
                self.kernel = KernelPresence.RUNNING
                return [SendDeferred()]
        return []

    def holder_lost(self) -> None:
        """Only what the kernel was asked outlives the holder."""
        self.kernel = KernelPresence.NONE
        self.informed = self.info_known = False
        self._awaiting_info.clear()

    # Messages to the kernel.

    def decide(self, event: MessageSubmitted, session: ClientSession) -> list[Action]:
        """What is done with a message that this session has not sent before."""
        if session.views_only:
            return self._answer_viewer(event)
        if self.informed and event.busy and _asks_for_info(event):
            # The kernel has no time to repeat what it has replied before.
            return [AnswerInfo(event.connection, event)]
        if self.kernel is KernelPresence.NONE:
            return [Drop()]
        waits = self.kernel is KernelPresence.RECOVERING and _queue(event) == MAIN
        decided: list[Action] = [Defer() if waits else Forward()]
        if not event.answered and is_answered(event.channel, event.msg_type):
            decided += self._remember(event, session)
        return decided

    def _answer_viewer(self, event: MessageSubmitted) -> list[Action]:
        """Nothing of a viewer's gets to the kernel, and its client does not wait for nothing."""
        if not is_answered(event.channel, event.msg_type):
            return []
        if event.msg_type != _INFO:
            return [Refuse(event.connection, event)]
        if self.info_known:
            return [AnswerInfo(event.connection, event)]
        self._awaiting_info[event.connection] = event
        return []

    def _remember(self, event: MessageSubmitted, session: ClientSession) -> list[Action]:
        self._last_number = max(self._last_number, self.requests.last_number) + 1
        request = KernelRequest(
            self._last_number,
            session.key,
            event.channel,
            event.header,
            event.msg_id,
            event.session,
            event.msg_type,
            event.subshell,
        )
        return [Evicted("sessions.requests")] if self.requests.add(request) else []

    def info_changes(self) -> bool:
        """Whether another reply to a kernel_info_request would change anything."""
        return not self.informed or bool(self._awaiting_info)

    def _learn_info(self) -> list[Action]:
        self.informed = self.info_known = True
        awaiting, self._awaiting_info = self._awaiting_info, {}
        return [AnswerInfo(connection, event) for connection, event in awaiting.items()]

    def disconnected(self, connection: int) -> None:
        """Nobody waits on this connection any more."""
        self._awaiting_info.pop(connection, None)

    # Messages from the kernel.

    def receiver(self, event: MessagePublished) -> bytes | None:
        """The session that a reply or a question on stdin is for; notes that a reply came."""
        if event.channel is Channel.STDIN:
            # input_request: the request that it belongs to is not answered yet.
            asked = self._waiting(Channel.SHELL, event) or self._waiting(Channel.CONTROL, event)
            return asked.asker if asked else None
        # A reply comes on its request's channel. Between two channels there is no order, so
        # that ids which two clients share would mix up their replies.
        answered = self._waiting(event.channel, event)
        if answered is None:
            return None
        self.requests.answer(answered)
        return answered.asker

    def _waiting(self, channel: Channel, event: MessagePublished) -> KernelRequest | None:
        ids = channel, event.subshell, event.parent_msg_id, event.parent_session
        return self.requests.waiting(ids)


def request_ids(event: MessageSubmitted) -> RequestIds:
    """What the reply to a message is matched by."""
    return event.channel, event.subshell, event.msg_id, event.session


def _queue(event: MessageSubmitted) -> tuple[Channel, str]:
    return event.channel, event.subshell


def _asks_for_info(event: MessageSubmitted) -> bool:
    return event.msg_type == _INFO and _queue(event) == MAIN
