"""Requests of the holder's own to the kernel, and what has come of them."""

from __future__ import annotations

import asyncio
from typing import Final

from relay.bridge.messages import Channel, Message
from relay.holder.broker.synthetic import SyntheticMessages
from relay.model import ExecutionState

_ANSWERED: Final = 64
"""Probes that are remembered though they were answered."""


class Probe:
    """Whether its reply has come, and the idle status that follows it on iopub."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.idle = asyncio.Event()
        self.lost = False
        """Whether the kernel process ended; then both are set."""

    def lose(self) -> None:
        """The kernel process has ended."""
        self.lost = True
        self.answered.set()
        self.idle.set()


class Probes:
    """The probes of one kernel, by the ``msg_id`` of their requests."""

    def __init__(self, synthetic: SyntheticMessages) -> None:
        self.answered = asyncio.Event()
        """Set when the present kernel process has answered one on shell."""
        self._synthetic = synthetic
        self._probes: dict[str, Probe] = {}

    def new(self, channel: Channel, subshell: str) -> tuple[Probe, Message]:
        """A probe, and the request to send for it."""
        msg_id, message = self._synthetic.ask_info(channel, subshell)
        done = [each for each, probe in self._probes.items() if probe.answered.is_set()]
        for each in done[:-_ANSWERED]:
            # Of those that were answered some wait for an idle status that does not come.
            del self._probes[each]
        probe = self._probes[msg_id] = Probe()
        return probe, message

    def note(self, channel: Channel, msg_id: str, state: ExecutionState | None) -> None:
        """A message has come that belongs to the probe; ``state`` where it is a status."""
        if channel is Channel.SHELL:
            self.answered.set()
        probe = self._probes.get(msg_id)
        if probe is None:
            return
        if channel is not Channel.IOPUB:
            probe.answered.set()
        elif state == "idle":
            probe.idle.set()

    def lose(self) -> None:
        """The kernel process has ended: no answer will come."""
        for probe in self._probes.values():
            probe.lose()
        self._probes.clear()
