"""A queue of received messages for one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from relay.client.delivery_tracker import DeliveryTracker
from relay.client.kernel_message import KernelMessage
from relay.errors import RelayError


class Inbox:
    """A queue of messages for one reader; ``on_room`` is called when the reader takes one."""

    def __init__(self, tracker: DeliveryTracker, on_room: Callable[[], None]) -> None:
        self._tracker = tracker
        self._on_room = on_room
        self._messages: deque[KernelMessage] = deque()
        self._ended = False
        self._error: RelayError | None = None
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, message: KernelMessage) -> None:
        """Add a message, unless the inbox is closed or at its end."""
        if not (self._closed or self._ended):
            self._tracker.hold(message.seq, message.size)
            self._messages.append(message)
            self._changed.set()

    def end(self, error: RelayError | None) -> None:
        """Mark the end; ``error`` is the reason, None for a regular end."""
        if not self._ended:
            self._ended, self._error = True, error
            self._changed.set()

    async def get(self) -> KernelMessage | None:
        """Return the next message, for `done`; None at the end. Raises the error of the end."""
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._fetch()

    def done(self, message: KernelMessage) -> None:
        """Finish with a message: another process need not read it again."""
        self._tracker.release(message.seq)

    def _fetch(self) -> KernelMessage:
        message = self._messages.popleft()
        self._tracker.fetch(message.size)
        self._on_room()
        return message

    def close(self) -> None:
        """Drop all messages, and those that are still to come."""
        self._closed = True
        while self._messages:
            self.done(self._fetch())
