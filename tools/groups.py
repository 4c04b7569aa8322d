"""Which system tests belong together: ``python -m tools.groups peers`` prints their files."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding

GROUPS = Path("tools/groups.toml")
"""Each group's files; the path is relative to the project's root."""
SYSTEM_TESTS = Path("tests/system")
REST = "system"
"""The group of the files that no other one names."""


def read_groups(root: Path) -> dict[str, list[str]]:
    """Return the names of the files of each group of the project in ``root``."""
    groups: dict[str, list[str]] = tomllib.loads((root / GROUPS).read_text())
    named = {file for files in groups.values() for file in files}
    rest = [file for file in _files(root) if file not in named]
    return {**groups, REST: rest}


def check(root: Path) -> Iterator[Finding]:
    """Report files in more than one group, and files that are not there."""
    groups = read_groups(root)
    there = _files(root)
    named = [file for files in groups.values() for file in files]
    for file in sorted(set(named)):
        if named.count(file) > 1:
            yield Finding(file, f"{GROUPS}: {file} is in more than one group")
        if file not in there:
            yield Finding(file, f"{GROUPS}: {SYSTEM_TESTS}/{file} does not exist")


def _files(root: Path) -> list[str]:
    return sorted(file.name for file in (root / SYSTEM_TESTS).glob("test_*.py"))


def main(names: list[str]) -> int:
    """Print the paths of the files of the groups with these ``names``; return the exit code."""
    groups = read_groups(Path())
    unknown = [name for name in names if name not in groups]
    if unknown or not names:
        print(f"usage: python -m tools.groups GROUP…; there are {', '.join(groups)}")
        return 2
    for name in names:
        for file in groups[name]:
            print(SYSTEM_TESTS / file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
