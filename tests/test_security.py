"""SECURITY.md names tests that exist; what is installed is what was locked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_TEST = re.compile(r"`(tests/[\w/]+\.py)`")
_PACKAGE = re.compile(r"^([a-z0-9._-]+)==", re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """The cells of each row of a table that has three columns, but for its head."""
    found = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in found if len(row) == 3]


def missing(text: str, root: Path) -> list[str]:
    """The tests that are named and do not exist."""
    return sorted({name for name in _TEST.findall(text) if not (root / name).is_file()})


def unshown(text: str) -> list[str]:
    """The defences for which no test is named."""
    heads = {"Shown by", "Wants"}
    claims = [row for row in rows(text) if not heads & {cell.strip() for cell in row}]
    threats = text.partition("## Client → edge")[0]
    model = {row[0] for row in rows(threats)}
    return [row[0].strip() for row in claims if row[0] not in model and not _TEST.search(row[2])]


def test_every_test_that_is_named_exists() -> None:
    assert missing((ROOT / "SECURITY.md").read_text(), ROOT) == []


def test_every_defence_names_its_test() -> None:
    assert unshown((ROOT / "SECURITY.md").read_text()) == []


def test_a_wrong_name_and_a_missing_one_are_noticed(tmp_path: Path) -> None:
    text = "## Client → edge\n| a | b | `tests/test_no.py` |\n| c | d | by nobody |\n"
    assert missing(text, tmp_path) == ["tests/test_no.py"]
    assert unshown(text) == ["c"]


def test_every_boundary_has_its_part() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    for boundary in (
        *("Threat model", "Client → edge", "Edge → agent", "Agent → holder", "Holder → kernel"),
        *("Kernel → everything", "Operator → files", "Supply chain", "What is not defended"),
    ):
        assert boundary in heads


def unhashed(lock: str) -> list[str]:
    """Packages of a lock without a hash."""
    parts = re.split(r"^(?=[a-z0-9._-]+==)", lock, flags=re.MULTILINE)
    return [part.split("==")[0] for part in parts if "==" in part and "--hash=sha256:" not in part]


def test_every_package_is_locked_with_its_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert len(_PACKAGE.findall(lock)) > 20
    assert unhashed(lock) == []


@pytest.mark.parametrize("lock", ["a==1\n", "a==1 \\\n    --hash=sha256:aa\nb==2\n"])
def test_a_package_without_a_hash_is_noticed(lock: str) -> None:
    assert len(unhashed(lock)) == 1
