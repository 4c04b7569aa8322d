"""Figures of all kernels of an agent, for its metrics.

Holders count from their own start, an agent from its own: of a holder that is older than the agent
only what it has counted since they connected is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from relay.agent.holders.client import HolderClient
from relay.bridge.control import HolderFigures
from relay.metrics import AgentFigures

_COUNTS: Final = ("messages", "unsaved", "gaps", "gap_messages")
_NOTHING: Final = HolderFigures()


class HolderStats:
    """Sums over kernels, and counts that outlive them."""

    def __init__(self) -> None:
        self.starts = 0
        self.start_failures = 0
        self.holder_deaths = 0
        self._counted: dict[str, HolderFigures] = {}
        self._counts: Counter[str] = Counter()
        self._limit_hits: Counter[str] = Counter()

    def add(self, client: HolderClient) -> None:
        """Begin to count for a holder, from what it has counted so far."""
        self._counted[client.kernel_folder.kernel_id] = _figures(client)

    def remove(self, client: HolderClient) -> None:
        """Add what a holder has counted last; its connection is closed."""
        self._add(client)
        self._counted.pop(client.kernel_folder.kernel_id, None)

    def figures(self, clients: Iterable[HolderClient], limit_hits: Counter[str]) -> AgentFigures:
        """Return all figures as they are, with the limits that the agent itself has met."""
        ready = list(clients)
        for client in ready:
            self._add(client)
        reported = [_figures(client) for client in ready]
        sizes = [figures.journal_bytes for figures in reported]
        return AgentFigures(
            kernels=len(ready),
            sessions=sum(figures.sessions for figures in reported),
            connections=sum(client.status.connections for client in ready),
            journal_bytes=sum(sizes),
            largest_journal=max(sizes, default=0),
            journals_failing=sum(figures.journal_problem is not None for figures in reported),
            starts=self.starts,
            start_failures=self.start_failures,
            holder_deaths=self.holder_deaths,
            limit_hits=self._limit_hits + limit_hits,
            **{name: self._counts[name] for name in _COUNTS},
        )

    def _add(self, client: HolderClient) -> None:
        now = _figures(client)
        before = self._counted.get(client.kernel_folder.kernel_id, now)
        self._counted[client.kernel_folder.kernel_id] = now
        for name in _COUNTS:
            self._counts[name] += max(getattr(now, name) - getattr(before, name), 0)
        # Counters keep nothing below zero.
        self._limit_hits += Counter(now.limit_hits) - Counter(before.limit_hits)


def _figures(client: HolderClient) -> HolderFigures:
    """Return what a holder counts; holders that an older version started do not."""
    return client.status.figures or _NOTHING


def failing(clients: Iterable[HolderClient]) -> dict[str, str]:
    """Return the kernels whose journals cannot be written, by id, and why."""
    problems = {
        client.kernel_folder.kernel_id: _figures(client).journal_problem for client in clients
    }
    return {kernel_id: problem for kernel_id, problem in problems.items() if problem is not None}
