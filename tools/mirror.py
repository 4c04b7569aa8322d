"""tests/ mirrors relay/ and tools/, both ways: whoever changes a file knows where its tests are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding
from tools.sources import Function, Source, sources

REPOSITORY_CHECKS = frozenset(
    {"test_deploy.py", "test_layers.py", "test_mirror.py", "test_security.py"}
)
"""Tests of the repository itself, at the top of tests/."""
SYSTEM = "system"
"""The folder of tests that run the real thing, which belong to no single file."""
TOOLS = "tools"


def check(root: Path) -> Iterator[Finding]:
    """Report tests without a source file, and files of relay/ with functions but no tests."""
    for test in sorted((root / "tests").rglob("test_*.py")):
        place = test.relative_to(root / "tests")
        if not _belongs_to_no_file(place) and not _has_source(root, place):
            yield Finding(f"tests/{place}", f"tests/{place} mirrors no source file")
    for source in sources(root, "relay"):
        if _has_code(source) and not (root / test_of(source.path)).is_file():
            yield Finding(str(source.path), f"{source.path} has no tests: {test_of(source.path)}")


def test_of(source: Path) -> Path:
    """Return where the tests of ``source``, a file of relay/, have to be."""
    place = Path("tests", *source.parts[1:])
    return place.with_name(f"test_{place.name}")


def _belongs_to_no_file(place: Path) -> bool:
    return place.parts[0] == SYSTEM or str(place) in REPOSITORY_CHECKS


def _has_source(root: Path, place: Path) -> bool:
    above = root if place.parts[0] == TOOLS else root / "relay"
    source = above / place.parent / place.stem.removeprefix("test_")
    return source.with_suffix(".py").is_file() or source.is_dir()


def _has_code(source: Source) -> bool:
    """Whether there is a function; declarations and settings need no tests of their own."""
    return any(isinstance(node, Function) for node in ast.walk(source.tree))
