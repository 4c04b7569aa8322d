"""Compare the unit tests' coverage with its floors: ``python -m tools.coverage``.

Reads the data that ``pytest --cov`` has left. With ``--write-floors`` it makes today's figures the
floors. A room is a folder of relay/; its floor holds for the files that are right in it.
"""

from __future__ import annotations

import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import coverage

FLOORS = Path("tools/coverage.toml")
"""The path is relative to the project's root."""
HEAD = """\
# What the unit tests cover at least, in percent of lines: of all of relay/, and of each room. After
# a change for the better: make coverage ARGS=--write-floors
"""


@dataclass(frozen=True)
class Lines:
    """How many lines there are to run, and how many of them tests have run."""

    covered: int = 0
    total: int = 0

    def __add__(self, other: Lines) -> Lines:
        return Lines(self.covered + other.covered, self.total + other.total)

    @property
    def percent(self) -> float:
        """The covered part; all of nothing is 100."""
        return 100 * self.covered / self.total if self.total else 100.0


@dataclass(frozen=True)
class Floors:
    """The table in `FLOORS`: percentages, and files that do not count, with the reason."""

    total: int
    rooms: Mapping[str, int]
    apart: Mapping[str, str]

    @classmethod
    def read(cls, root: Path) -> Floors:
        """Read the table of the project in ``root``."""
        table = tomllib.loads((root / FLOORS).read_text())
        return cls(table["total"], table["rooms"], table["apart"])

    def write(self, root: Path) -> None:
        """Replace the table of the project in ``root``."""
        rooms = [f'"{room}" = {floor}' for room, floor in sorted(self.rooms.items())]
        apart = [f'"{file}" = "{reason}"' for file, reason in sorted(self.apart.items())]
        lines = [f"{HEAD}\ntotal = {self.total}", "\n[rooms]", *rooms, "\n[apart]", *apart, ""]
        (root / FLOORS).write_text("\n".join(lines))


def measured(root: Path, data: Path) -> dict[str, Lines]:
    """Return the lines of each file of relay/, by its path in the project, from coverage's data."""
    measurement = coverage.Coverage(data_file=str(data))
    measurement.load()
    found = {}
    for file in sorted((root / "relay").rglob("*.py")):
        _, lines, _, missing, _ = measurement.analysis2(str(file))
        found[str(file.relative_to(root))] = Lines(len(lines) - len(missing), len(lines))
    return found


def by_room(files: Mapping[str, Lines], apart: Mapping[str, str]) -> dict[str, Lines]:
    """Add up the files of each room, without those that stand apart."""
    rooms: defaultdict[str, Lines] = defaultdict(Lines)
    for file, lines in files.items():
        if file not in apart:
            rooms[str(Path(file).parent)] += lines
    return {room: lines for room, lines in rooms.items() if lines.total}


def total(rooms: Mapping[str, Lines]) -> Lines:
    """Add up all rooms."""
    return sum(rooms.values(), Lines())


def problems(rooms: Mapping[str, Lines], floors: Floors) -> Iterator[str]:
    """Yield a line for each figure below its floor, and for rooms and floors that do not match."""
    if total(rooms).percent < floors.total:
        yield f"all: {total(rooms).percent:.1f} % is below the floor, {floors.total} %"
    for room in sorted(rooms.keys() | floors.rooms.keys()):
        if room not in rooms:
            yield f"{room}: there is no such room any more"
        elif room not in floors.rooms:
            yield f"{room}: there is no floor for this room"
        elif rooms[room].percent < floors.rooms[room]:
            figure = f"{rooms[room].percent:.1f} %"
            yield f"{room}: {figure} is below the floor, {floors.rooms[room]} %"


def lifted(rooms: Mapping[str, Lines], floors: Floors) -> Floors:
    """Return today's figures as floors, rounded down, and never 100.

    Some tests draw their examples at random, so that a rare line may be missed in one run.
    """
    figures = {room: min(int(lines.percent), 99) for room, lines in rooms.items()}
    return Floors(min(int(total(rooms).percent), 99), figures, floors.apart)


def main(arguments: list[str]) -> int:
    """Print the figures and what is wrong with them; return the exit code."""
    root = Path()
    floors = Floors.read(root)
    rooms = by_room(measured(root, Path(".coverage")), floors.apart)
    if arguments == ["--write-floors"]:
        floors = lifted(rooms, floors)
        floors.write(root)
    for room, lines in sorted(rooms.items()):
        print(f"{room:24} {lines.percent:5.1f} %  of {lines.total} lines")
    print(f"{'all':24} {total(rooms).percent:5.1f} %  of {total(rooms).total} lines")
    found = list(problems(rooms, floors))
    for line in found:
        print(line)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
