"""The matrix as a table: for the terminal, and for docs/guarantees.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from rich.table import Table

from tests.chaos.arena import CLIENTS
from tests.chaos.posts import MOMENTS
from tests.chaos.tally import Tally

GUARANTEES: Final = Path(__file__).parents[2] / "docs" / "guarantees.md"
_BEGIN: Final = "<!-- chaos: what is between these marks is written by `make chaos` -->\n"
_END: Final = "<!-- /chaos -->\n"
_HEAD: Final = (
    "kills",
    "lost",
    "repeated",
    "reordered",
    "arrived",
    "replies",
    "idles",
    "back after",
)

Cell = tuple[str, str, str]
"""Row, client and moment."""
Results = Mapping[Cell, Tally]


def cells(tally: Tally) -> Iterator[str]:
    """A tally under the table's head."""
    yield str(tally.hits)
    yield str(tally.lost)
    yield str(tally.repeated)
    yield str(tally.reordered)
    yield f"{tally.arrived} of {tally.asked}"
    yield f"{tally.replies} of {tally.arrived}"
    yield f"{tally.idles} of {tally.arrived}"
    if tally.back:
        yield f"{statistics.median(tally.back):.1f} s, {max(tally.back):.1f} s"
    else:
        yield "-"


def terminal(results: Results, broken: Iterable[Cell]) -> Table:
    """Every cell of the matrix; those that break a promise in red."""
    table = Table("killed", "client", "moment", box=None, pad_edge=False)
    for name in _HEAD:
        table.add_column(name, justify="right", no_wrap=True)
    red = set(broken)
    for (row, client, name), tally in results.items():
        style = "red" if (row, client, name) in red else ""
        table.add_row(row, client, MOMENTS[name], *cells(tally), style=style)
    return table


def markdown(results: Results) -> str:
    """A line for each failure and client, over all moments."""
    lines = [("killed", "client", *_HEAD), ("---",) * (2 + len(_HEAD))]
    for row, client in dict.fromkeys((row, client) for row, client, _ in results):
        of = [tally for key, tally in results.items() if key[:2] == (row, client)]
        lines.append((row, CLIENTS[client], *cells(Tally.sum(of))))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(text: str, path: Path = GUARANTEES) -> None:
    """Put the table between the marks. Raises ``ValueError`` where there are none."""
    before, begin, rest = path.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{path} has no place for the table")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
