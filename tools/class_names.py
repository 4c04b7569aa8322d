"""A public class name means one thing within one program."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from tools.findings import Finding
from tools.sources import Source, sources

PROGRAMS = frozenset({"edge", "agent", "holder", "client", "cli", "supervisor"})
"""Rooms of one program each. What else is in relay/ is shared by all of them."""

SHARED = "shared"


def program_of(path: Path) -> str:
    """Return the program whose file ``path`` is, or `SHARED`."""
    room = path.parts[1]
    return room if room in PROGRAMS else SHARED


def check(root: Path) -> Iterator[Finding]:
    """Report each public class name that two modules define where one sees the other.

    Sister programs never import each other, so a name may mean the same role in both.
    """
    definitions: defaultdict[str, list[Source]] = defaultdict(list)
    for source in sources(root, "relay"):
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                definitions[node.name].append(source)
    for name, places in sorted(definitions.items()):
        if any(_meet(first.path, second.path) for first, second in combinations(places, 2)):
            files = ", ".join(str(place.path) for place in places)
            yield Finding(name, f"the class name {name} means more than one thing: {files}")


def _meet(first: Path, second: Path) -> bool:
    programs = {program_of(first), program_of(second)}
    return len(programs) == 1 or SHARED in programs
