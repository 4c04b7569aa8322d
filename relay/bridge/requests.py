"""Requests that a kernel has not finished: who asked, and what is still missing.

A request is finished when the kernel has replied to it and was idle after it. Sans I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from relay.bridge.messages import Buffer, Channel, Header

_HEADER_BYTES: Final = 4096
"""Bytes of a header that is kept; of a larger one only what clients match replies by is."""
_UNANSWERED: Final = frozenset({"comm_open", "comm_msg", "comm_close"})
"""Message types that no kernel replies to, and of which widgets send very many."""

RequestQueue = tuple[Channel, str]
"""Channel and subshell ("" for none): a kernel takes the requests of one queue one by one."""
MAIN: Final[RequestQueue] = (Channel.SHELL, "")

RequestIds = tuple[Channel, str, str, str]
"""Where a request queues (channel and subshell), and its ``msg_id`` and ``session``. Clients may
share the latter two; they are answered in turn, but only where they queue in the same place."""


class KernelRequest(msgspec.Struct, array_like=True):
    """One request that was sent to the kernel, and what has come of it."""

    number: int
    asker: bytes
    """The key of the session that gets the reply; empty where no session waits for one."""
    channel: Channel
    header: msgspec.Raw
    msg_id: str
    session: str
    msg_type: str
    subshell: str
    answered: bool = False
    idle: bool = False

    @property
    def queue(self) -> RequestQueue:
        """Where it waits for its turn."""
        return self.channel, self.subshell

    @property
    def ids(self) -> RequestIds:
        """What a reply is matched by."""
        return self.channel, self.subshell, self.msg_id, self.session

    @property
    def finished(self) -> bool:
        """Whether reply and idle status have both been published."""
        return self.answered and self.idle


def is_answered(channel: Channel, msg_type: str) -> bool:
    """Whether a kernel replies to what a client sends."""
    return channel is not Channel.STDIN and msg_type not in _UNANSWERED


def short_header(raw: Buffer, header: Header) -> msgspec.Raw:
    """The header as it is kept: on one line, and of a long one only what replies are matched by.

    ``header`` is what `parse_header` read of ``raw``.
    """
    if len(raw) > _HEADER_BYTES:
        names = ("msg_id", "msg_type", "session")
        return msgspec.Raw(msgspec.json.encode({name: getattr(header, name) for name in names}))
    # Logs have one event a line; JSON may be written on several.
    return msgspec.Raw(bytes(raw).replace(b"\n", b" ").replace(b"\r", b" "))


class UnfinishedRequests:
    """The unfinished requests of one kernel, oldest first, at the most ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: dict[int, KernelRequest] = {}
        self._answered: dict[int, None] = {}
        """Numbers of those that lack the idle status only, in the order of their replies."""
        self._numbers: dict[tuple[str, str], list[int]] = {}
        """By ``msg_id`` and ``session``."""

    def __iter__(self) -> Iterator[KernelRequest]:
        """The unfinished ones of this moment."""
        return iter(list(self._requests.values()))

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def last_number(self) -> int:
        """The newest one's number, 0 where there is none."""
        return next(reversed(self._requests), 0)

    def add(self, request: KernelRequest) -> bool:
        """Take one up, whose number is the highest; whether a reply has no receiver any more."""
        self._requests[request.number] = request
        self._numbers.setdefault((request.msg_id, request.session), []).append(request.number)
        if request.answered:
            self._answered[request.number] = None
        return len(self._requests) > self._limit and self._evict()

    def _evict(self) -> bool:
        # An idle status that is missing costs less than a reply.
        number = next(iter(self._answered), next(iter(self._requests)))
        answered = number in self._answered
        self._remove(number)
        return not answered

    def waiting(self, ids: RequestIds) -> KernelRequest | None:
        """The request that the next reply with these ids answers."""
        _, _, msg_id, session = ids
        for number in self._numbers.get((msg_id, session), ()):
            request = self._requests[number]
            if not request.answered and request.ids == ids:
                return request
        return None

    def waits_for_idle(self, msg_id: str, session: str) -> bool:
        """Whether a request with these ids lacks its idle status."""
        return self._without_idle(msg_id, session) is not None

    def answer(self, request: KernelRequest) -> None:
        """Note that a reply has been published."""
        request.answered = True
        if request.idle:
            self._remove(request.number)
        else:
            self._answered[request.number] = None

    def note_idle(self, msg_id: str, session: str) -> None:
        """Note that the kernel was idle after the request with these ids."""
        request = self._without_idle(msg_id, session)
        if request is not None:
            request.idle = True
            if request.answered:
                self._remove(request.number)

    def clear(self) -> None:
        """Forget all: the kernel process is gone."""
        self._requests.clear()
        self._answered.clear()
        self._numbers.clear()

    def _without_idle(self, msg_id: str, session: str) -> KernelRequest | None:
        numbers = self._numbers.get((msg_id, session), ())
        found = (self._requests[number] for number in numbers)
        return next((request for request in found if not request.idle), None)

    def _remove(self, number: int) -> None:
        request = self._requests.pop(number)
        self._answered.pop(number, None)
        ids = request.msg_id, request.session
        numbers = self._numbers[ids]
        numbers.remove(number)
        if not numbers:
            del self._numbers[ids]
