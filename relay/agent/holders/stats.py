"""What an agent's kernels come to together, for its metrics.

Holders count from their own start, an agent from its own: of a holder that is older than the agent
only what it has counted since they met is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from relay.agent.holders.client import HolderClient
from relay.bridge.records import HolderFigures
from relay.metrics import AgentFigures

_COUNTS: Final = ("messages", "unsaved", "gaps", "gap_messages")
_NOTHING: Final = HolderFigures()


class HolderStats:
    """Sums over kernels, and counts that outlive them."""

    def __init__(self) -> None:
        self.starts = 0
        self.start_failures = 0
        self.holder_deaths = 0
        self._seen: dict[str, HolderFigures] = {}
        self._counts: Counter[str] = Counter()
        self._limit_hits: Counter[str] = Counter()

    def meet(self, line: HolderClient) -> None:
        """A line was opened: what its holder has counted so far is not of our time."""
        self._seen[line.kernel_folder.kernel_id] = _figures(line)

    def part(self, line: HolderClient) -> None:
        """A line is closed: what its holder said last counts still."""
        self._add(line)
        self._seen.pop(line.kernel_folder.kernel_id, None)

    def figures(self, lines: Iterable[HolderClient], limit_hits: Counter[str]) -> AgentFigures:
        """All figures as they are, with the limits that the agent itself has hit."""
        ready = list(lines)
        for line in ready:
            self._add(line)
        told = [_figures(line) for line in ready]
        sizes = [figures.journal_bytes for figures in told]
        return AgentFigures(
            kernels=len(ready),
            sessions=sum(figures.sessions for figures in told),
            connections=sum(line.status.connections for line in ready),
            journal_bytes=sum(sizes),
            largest_journal=max(sizes, default=0),
            journals_failing=sum(figures.journal_problem is not None for figures in told),
            starts=self.starts,
            start_failures=self.start_failures,
            holder_deaths=self.holder_deaths,
            limit_hits=self._limit_hits + limit_hits,
            **{name: self._counts[name] for name in _COUNTS},
        )

    def _add(self, line: HolderClient) -> None:
        now = _figures(line)
        before = self._seen.get(line.kernel_folder.kernel_id, now)
        self._seen[line.kernel_folder.kernel_id] = now
        for name in _COUNTS:
            self._counts[name] += max(getattr(now, name) - getattr(before, name), 0)
        # Counters keep nothing below zero.
        self._limit_hits += Counter(now.limit_hits) - Counter(before.limit_hits)


def _figures(line: HolderClient) -> HolderFigures:
    """What a holder said of itself; those that an older version started say nothing."""
    return line.status.figures or _NOTHING


def failing(lines: Iterable[HolderClient]) -> dict[str, str]:
    """The kernels whose journals cannot be written, and why."""
    problems = {line.kernel_folder.kernel_id: _figures(line).journal_problem for line in lines}
    return {kernel_id: problem for kernel_id, problem in problems.items() if problem is not None}
