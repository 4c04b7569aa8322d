from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from relay.agent.holders.stats import HolderStats, failing
from relay.bridge.control import HolderFigures


def client(kernel_id: str, figures: HolderFigures | None, connections: int = 0) -> Any:
    return SimpleNamespace(
        kernel_folder=SimpleNamespace(kernel_id=kernel_id),
        status=SimpleNamespace(figures=figures, connections=connections),
    )


NO_HITS: Counter[str] = Counter()


def test_gauges_are_sums_over_the_kernels_there_are() -> None:
    lines = [
        client("a", HolderFigures(journal_bytes=10, sessions=1), connections=1),
        client(
            "b", HolderFigures(journal_bytes=30, sessions=2, journal_problem="full"), connections=2
        ),
        # A holder that an older version started.
        client("c", None, connections=3),
    ]
    found = HolderStats().figures(lines, NO_HITS)
    assert (found.kernels, found.sessions, found.connections) == (3, 3, 6)
    assert (found.journal_bytes, found.largest_journal, found.journals_failing) == (40, 30, 1)
    assert failing(lines) == {"b": "full"}
    assert HolderStats().figures([], NO_HITS).largest_journal == 0


def test_counts_begin_where_agent_and_holder_met_and_outlive_the_kernel() -> None:
    stats = HolderStats()
    kernel = client("a", HolderFigures(messages=100, gaps=1, limit_hits={"a.b": 5}))
    stats.add(kernel)
    assert stats.figures([kernel], NO_HITS).messages == 0
    kernel.status.figures = HolderFigures(
        messages=110, gaps=2, gap_messages=7, limit_hits={"a.b": 6}
    )
    found = stats.figures([kernel], Counter({"a.b": 1, "c": 1}))
    assert (found.messages, found.gaps, found.gap_messages) == (10, 1, 7)
    assert found.limit_hits == {"a.b": 2, "c": 1}
    # What it said last counts, though nobody looked since.
    kernel.status.figures = HolderFigures(
        messages=115, gaps=2, gap_messages=7, limit_hits={"a.b": 6}
    )
    stats.remove(kernel)
    assert stats.figures([], NO_HITS).messages == 15
    # Another holder of the same kernel begins anew.
    again = client("a", HolderFigures(messages=3))
    stats.add(again)
    again.status.figures = HolderFigures(messages=4)
    assert stats.figures([again], NO_HITS).messages == 16
