"""tests/ mirrors relay/: whoever changes a file knows where its tests are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

REPOSITORY_CHECKS = {"test_deploy.py", "test_layers.py", "test_mirror.py", "test_security.py"}
"""Tests of the repository itself, at the top of tests/."""

SYSTEM = "system"
"""The folder of tests that run the real thing, which belong to no single file."""


def strays(root: Path) -> Iterator[str]:
    """Name the test files under ``root`` that stand for no source file or package."""
    tests = root / "tests"
    for test in sorted(tests.rglob("test_*.py")):
        place = test.relative_to(tests)
        if place.parts[0] == SYSTEM or str(place) in REPOSITORY_CHECKS:
            continue
        source = root / "relay" / place.parent / place.stem.removeprefix("test_")
        if not (source.with_suffix(".py").is_file() or source.is_dir()):
            yield str(place)


def test_every_test_file_mirrors_a_source_file() -> None:
    assert list(strays(ROOT)) == []


@pytest.mark.parametrize(
    ("test", "stray"),
    [
        ("auth/test_tokens.py", False),
        ("test_auth.py", False),
        ("test_layers.py", False),
        ("system/test_anything.py", False),
        ("test_tokens.py", True),
        ("auth/test_layers.py", True),
        ("bridge/test_tokens.py", True),
    ],
)
def test_a_stray_is_noticed(tmp_path: Path, test: str, stray: bool) -> None:
    for file in ("relay/auth/tokens.py", f"tests/{test}"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert list(strays(tmp_path)) == ([test] if stray else [])
