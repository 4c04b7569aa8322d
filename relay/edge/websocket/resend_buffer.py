"""The client's messages that no holder has acknowledged: they are sent again on a new link."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from relay.bridge.messages import Buffer
from relay.bridge.records import message_record


class ResendBuffer:
    """Numbers a client's messages and keeps each until it is acknowledged.

    ``limit``: bytes of records beyond which the buffer is full. A full buffer takes more messages
    all the same; its owner stops reading from the client.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unacked: deque[tuple[int, bytes]] = deque()
        self._last_number = 0
        self.bytes = 0
        """Size of all unacknowledged records."""

    def add(self, payload: Buffer, *, text: bool) -> bytes:
        """Give a message the next number and keep it; return its MESSAGE record."""
        self._last_number += 1
        record = message_record(self._last_number, text=text, payload=payload)
        self._unacked.append((self._last_number, record))
        self.bytes += len(record)
        return record

    def acknowledge(self, number: int) -> None:
        """Drop all messages up to ``number``: the holder has them."""
        while self._unacked and self._unacked[0][0] <= number:
            self.bytes -= len(self._unacked.popleft()[1])

    @property
    def full(self) -> bool:
        """Whether more than ``limit`` bytes are unacknowledged."""
        return self.bytes > self._limit

    def __iter__(self) -> Iterator[bytes]:
        """The unacknowledged records, oldest first."""
        return (record for _, record in self._unacked)
