"""Tracks which messages a client has received, and which of them its script has read. Pure."""

from __future__ import annotations

from collections import Counter

from relay.bridge.control import Position
from relay.errors import BadRequest


def parse_position(text: str) -> Position:
    """Read ``<epoch>-<seq>``. Raises `BadRequest`."""
    try:
        return Position.parse(text)
    except ValueError as error:
        raise BadRequest(f"{error}") from None


class DeliveryTracker:
    """Two positions of one session.

    ``received``: this process has received everything up to here, so the relay is asked to continue
    from here. ``position``: the script has read everything up to here, so this is to be stored for
    another process.
    """

    def __init__(self, start: Position | None) -> None:
        self.received = start
        self.repeated = 0
        """Messages that arrived although they had been received; there should be none."""
        self.held_bytes = 0
        """Bytes of messages that wait to be read."""
        # A Counter keeps the order of arrival, which is that of the seqs.
        self._held: Counter[Position] = Counter()

    @property
    def position(self) -> Position | None:
        """The position before the oldest message that a reader has not finished."""
        for seq in self._held:
            return Position(seq.epoch, seq.seq - 1)
        return self.received

    def receive(self, seq: Position) -> bool:
        """Record a message's arrival; False for one that had been received, which is dropped."""
        last = self.received
        if last is not None and last.epoch == seq.epoch and seq.seq <= last.seq:
            self.repeated += 1
            return False
        self.received = seq
        return True

    def hold(self, seq: Position, size: int) -> None:
        """Record that one more reader is to read this message of ``size`` bytes."""
        self._held[seq] += 1
        self.held_bytes += size

    def fetch(self, size: int) -> None:
        """Record that one reader has taken a message of ``size`` bytes and is processing it."""
        self.held_bytes -= size

    def release(self, seq: Position) -> None:
        """Record that one reader has finished with a message, or does not want it."""
        self._held[seq] -= 1
        if not self._held[seq]:
            del self._held[seq]
