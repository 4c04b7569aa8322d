"""Which messages a client has had, and which of them its script has. Pure."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final, NamedTuple, Self

from relay.errors import BadRequest

_FORM: Final = re.compile(r"([0-9a-f]{12})-([0-9]{1,19})", re.ASCII)


class Seq(NamedTuple):
    """A message's number, and the epoch within which it means something; `str` as on the wire."""

    epoch: str
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``<epoch>-<N>``. Raises `BadRequest`."""
        match = _FORM.fullmatch(text)
        if match is None:
            msg = "A position is 12 hex digits, a hyphen and a number."
            raise BadRequest(msg)
        return cls(match[1], int(match[2]))


class Ledger:
    """Two positions of one session.

    ``received``: up to here everything is in this process, so this is what to ask the relay to go
    on from. ``position``: up to here the script has been given everything, so this is what to store
    for another process.
    """

    def __init__(self, start: Seq | None) -> None:
        self.received = start
        self.repeated = 0
        """Messages that came although they had been received. There should be none."""
        self.held_bytes = 0
        """Bytes of messages that wait to be read."""
        # A Counter keeps the order of arrival, which is that of the seqs.
        self._held: Counter[Seq] = Counter()

    @property
    def position(self) -> Seq | None:
        """Just before the oldest message that somebody has still to read."""
        for seq in self._held:
            return Seq(seq.epoch, seq.number - 1)
        return self.received

    def take(self, seq: Seq) -> bool:
        """Note a message that came; False for one that came before, which is to be dropped."""
        last = self.received
        if last is not None and last.epoch == seq.epoch and seq.number <= last.number:
            self.repeated += 1
            return False
        self.received = seq
        return True

    def hold(self, seq: Seq, size: int) -> None:
        """One reader more is still to be given this message of ``size`` bytes."""
        self._held[seq] += 1
        self.held_bytes += size

    def fetch(self, size: int) -> None:
        """One reader took a message of ``size`` bytes, and has not done with it."""
        self.held_bytes -= size

    def release(self, seq: Seq) -> None:
        """One reader has done with it, or does not want it any more."""
        self._held[seq] -= 1
        if not self._held[seq]:
            del self._held[seq]
