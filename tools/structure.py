"""Figures of the structure of relay/: ``python -m tools.structure [PROJECT]`` prints them.

For relay/ as a whole and for each program: files, and the rooms of a program with their floors and
arrows. A room is a file or a folder directly below the program's folder. An arrow is a room that
imports another one, a floor a step in the longest chain of such imports.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tools.sources import Function, Source, named, sources

PROGRAMS = ("edge", "agent", "holder")
_DEPTH = 3
"""Parts of a room's name: ``relay.edge.http``."""

Arrows = Mapping[str, set[str]]


class Shape(NamedTuple):
    """Rooms of a program and how they lie upon each other."""

    files: int
    rooms: int
    floors: int
    arrows: int


def module(source: Source) -> str:
    """Return the dotted name of a file's module."""
    parts = source.path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: Source) -> Iterator[str]:
    """Yield the dotted names that a file imports; of ``from a import b`` both ``a.b`` and ``a``."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def shape(files: list[Source], program: str) -> Shape:
    """Return the figures of one program."""
    inside = f"relay.{program}."
    own = [source for source in files if module(source).startswith(inside)]
    names = {module(source) for source in own}
    arrows: dict[str, set[str]] = defaultdict(set)
    for source in own:
        here = _room(module(source))
        found = {_room(name) for name in imported(source) if name in names}
        arrows[here] |= found - {here}
    floors = max((_floor(room, arrows, ()) for room in arrows), default=0)
    return Shape(len(own), len(arrows), floors, sum(map(len, arrows.values())))


def _room(name: str) -> str:
    return ".".join(name.split(".")[:_DEPTH])


def _floor(room: str, arrows: Arrows, above: tuple[str, ...]) -> int:
    if room in above:
        msg = f"a circle: {' -> '.join((*above, room))}"
        raise ValueError(msg)
    below = (_floor(each, arrows, (*above, room)) for each in arrows[room])
    return 1 + max(below, default=0)


def figures(root: Path) -> Iterator[tuple[str, str]]:
    """Yield what is printed: a name and its figure."""
    files = list(sources(root, "relay"))
    lines = [len(source.text.splitlines()) for source in files]
    nodes = [node for source in files for _, node in named(source.tree)]
    functions = sorted(_lines(node) for node in nodes if isinstance(node, Function))
    methods = [
        sum(isinstance(child, Function) for child in node.body)
        for node in nodes
        if isinstance(node, ast.ClassDef)
    ]
    yield "files, lines, longest file", f"{len(files)}, {sum(lines)}, {max(lines)}"
    ninth = functions[len(functions) * 9 // 10]
    yield "functions: 90 % have at most, longest", f"{ninth} lines, {functions[-1]} lines"
    yield "most methods of a class", str(max(methods))
    for program in PROGRAMS:
        found = shape(files, program)
        text = f"{found.files} files, {found.rooms} rooms"
        yield program, f"{text}, {found.floors} floors, {found.arrows} arrows"


def _lines(node: Function | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def main() -> None:
    """Print the figures of the project in the folder named, or of this one."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    for name, figure in figures(root):
        sys.stdout.write(f"{name + ':':40} {figure}\n")


if __name__ == "__main__":
    main()
