"""tests/ mirrors relay/ and tools/: whoever changes a file knows where its tests are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import mirror
from tools.findings import read_exceptions, unexcused

ROOT = Path(__file__).parents[1]
CODE = "def f() -> None: ...\n"


def test_tests_and_sources_mirror_each_other() -> None:
    assert list(unexcused(mirror.check(ROOT), read_exceptions(ROOT)["mirror"])) == []


def plant(root: Path, **files: str) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("test", "stray"),
    [
        ("auth/test_tokens.py", False),
        ("test_auth.py", False),
        ("test_layers.py", False),
        ("system/test_anything.py", False),
        ("tools/test_lint.py", False),
        ("test_tokens.py", True),
        ("auth/test_layers.py", True),
        ("bridge/test_tokens.py", True),
        ("tools/test_tokens.py", True),
        ("test_lint.py", True),
    ],
)
def test_a_stray_is_noticed(tmp_path: Path, test: str, stray: bool) -> None:
    plant(tmp_path, **{"relay/auth/tokens.py": "", "tools/lint.py": "", f"tests/{test}": ""})
    found = [finding.key for finding in mirror.check(tmp_path)]
    assert found == ([f"tests/{test}"] if stray else [])


@pytest.mark.parametrize(
    ("source", "text", "tests", "missing"),
    [
        ("relay/auth/tokens.py", CODE, "tests/auth/test_tokens.py", False),
        ("relay/auth/tokens.py", CODE, "tests/test_auth.py", True),
        ("relay/auth/tokens.py", "class A:\n    async def f(self): ...\n", "tests/x.py", True),
        ("relay/auth/tokens.py", "import os\nLIMIT = 1\n", "tests/x.py", False),
        ("relay/auth/__init__.py", CODE, "tests/auth/test___init__.py", False),
        ("relay/auth/__init__.py", CODE, "tests/test_auth.py", True),
        ("relay/model.py", CODE, "tests/test_model.py", False),
    ],
)
def test_a_source_without_tests_is_noticed(
    tmp_path: Path, source: str, text: str, tests: str, missing: bool
) -> None:
    plant(tmp_path, **{source: text, tests: ""})
    found = [finding.key for finding in mirror.check(tmp_path)]
    assert found == ([source] if missing else [])
