"""Which messages a client has had, and which of them its script has. Pure."""

from __future__ import annotations

from collections import Counter

from relay.bridge.records import Position
from relay.errors import BadRequest


def parse_position(text: str) -> Position:
    """Read ``<epoch>-<seq>``. Raises `BadRequest`."""
    try:
        return Position.parse(text)
    except ValueError as error:
        raise BadRequest(f"{error}") from None


class DeliveryTracker:
    """Two positions of one session.

    ``received``: up to here everything is in this process, so this is what to ask the relay to go
    on from. ``position``: up to here the script has been given everything, so this is what to store
    for another process.
    """

    def __init__(self, start: Position | None) -> None:
        self.received = start
        self.repeated = 0
        """Messages that came although they had been received. There should be none."""
        self.held_bytes = 0
        """Bytes of messages that wait to be read."""
        # A Counter keeps the order of arrival, which is that of the seqs.
        self._held: Counter[Position] = Counter()

    @property
    def position(self) -> Position | None:
        """Just before the oldest message that somebody has still to read."""
        for seq in self._held:
            return Position(seq.epoch, seq.seq - 1)
        return self.received

    def take(self, seq: Position) -> bool:
        """Note a message that came; False for one that came before, which is to be dropped."""
        last = self.received
        if last is not None and last.epoch == seq.epoch and seq.seq <= last.seq:
            self.repeated += 1
            return False
        self.received = seq
        return True

    def hold(self, seq: Position, size: int) -> None:
        """One reader more is still to be given this message of ``size`` bytes."""
        self._held[seq] += 1
        self.held_bytes += size

    def fetch(self, size: int) -> None:
        """One reader took a message of ``size`` bytes, and has not done with it."""
        self.held_bytes -= size

    def release(self, seq: Position) -> None:
        """One reader has done with it, or does not want it any more."""
        self._held[seq] -= 1
        if not self._held[seq]:
            del self._held[seq]
