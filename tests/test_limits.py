from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import limits

ROOT = Path(__file__).parents[1] / "relay"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "counts", Counter[str]())
    monkeypatch.setattr(limits, "_listeners", [])


def test_hits_are_counted_and_told() -> None:
    told: list[str] = []
    limits.record("a.b")
    limits.subscribe(told.append)
    limits.record("a.b")
    limits.record("c")
    assert limits.counts == {"a.b": 2, "c": 1}
    assert told == ["a.b", "c"]


def uncounted(source: str) -> Iterator[int]:
    """Lines that log a `setting` in a function that counts no hit."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func).rpartition(".")[2] for call in calls}
        if not names & {"record", "note_gap"}:
            for call in calls:
                logs = ast.unparse(call.func).startswith("log.")
                if logs and any(keyword.arg == "setting" for keyword in call.keywords):
                    yield call.lineno


def test_whatever_logs_a_setting_counts_it() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted(ROOT.rglob("*.py"))
        for line in uncounted(path.read_text())
    ]
    assert found == []


def test_a_setting_that_is_logged_and_not_counted_is_noticed() -> None:
    source = 'def f():\n    log.warning("x", setting="a.b")\n'
    assert list(uncounted(source)) == [2]
    assert list(uncounted(source + '    limits.record("a.b")\n')) == []
