from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.tools.planting import plant
from tools import whole_run
from tools.whole_run import Result

ROOT = Path(__file__).parents[2]
WHEN = datetime(2025, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        (["5845 passed, 1 skipped in 64.93s (0:01:04)\n"], "5845 passed, 1 skipped"),
        (["=== 2 failed, 480 passed in 60.61s ===\n"], "2 failed, 480 passed"),
        (["1 error in 0.10s\n", "2 errors in 0.10s\n"], "3 errors"),
        (["3 passed in 1.0s\n", "4 passed in 1.0s\n"], "7 passed"),
        (["the test said 3 passed\n", "All checks passed!\n"], ""),
        ([], ""),
    ],
)
def test_what_pytest_counts_is_added_up(lines: list[str], counts: str) -> None:
    assert whole_run.counts_in(lines) == counts


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_lets_the_output_through(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"print('3 passed in 1.0s'); raise SystemExit({code})"
    result = whole_run.run("test-hub", [sys.executable, "-c", source])
    assert (result.succeeded, result.counts) == (code == 0, "3 passed")
    assert capsys.readouterr().out == "3 passed in 1.0s\n"


def test_the_page_has_a_row_for_each_group() -> None:
    results = [Result("lint", True, "", 30.0), Result("test-hub", False, "1 failed", 120.0)]
    lines = whole_run.page("a1b2c3d", WHEN, results).splitlines()
    assert "The last whole run: 2025-03-01, commit `a1b2c3d`, 1 of 2 groups failed." in lines
    assert lines[-2].startswith("| `make lint` |")
    assert lines[-2].endswith("| ok |  | 0.5 min |")
    assert lines[-1].endswith("| **failed** | 1 failed | 2.0 min |")


def test_a_page_without_results_says_so() -> None:
    assert "No whole run has been recorded yet." in whole_run.page("", WHEN, [])


def test_every_target_is_run_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, {"docs/tests.md": ""})
    monkeypatch.chdir(tmp_path)
    asked: list[list[str]] = []

    def run(target: str, command: list[str]) -> Result:
        asked.append(command)
        return Result(target, target != "chaos", "", 1.0)

    monkeypatch.setattr(whole_run, "run", run)
    assert whole_run.main([]) == 1
    assert [command[-1] for command in asked] == list(whole_run.TARGETS)
    text = (tmp_path / whole_run.PAGE).read_text()
    assert "commit `unknown`" in text
    assert text.count("| ok |") == len(whole_run.TARGETS) - 1


def test_results_are_forgotten_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, {"docs/tests.md": "old"})
    monkeypatch.chdir(tmp_path)
    assert whole_run.main(["--forget"]) == 0
    assert whole_run.NOTHING in (tmp_path / whole_run.PAGE).read_text()


def test_make_has_every_target_and_every_group_is_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in whole_run.TARGETS if f"\n{name}:" not in makefile] == []
    groups = {line.split(":")[0] for line in makefile.splitlines() if line.startswith("test-")}
    assert groups - {"test-all", "test-unit"} <= whole_run.TARGETS.keys()
