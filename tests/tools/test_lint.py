from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.planting import plant
from tools import lint
from tools.findings import Finding


def one(_: Path) -> Iterator[Finding]:
    yield Finding("a", "a is wrong")


@pytest.mark.parametrize(
    ("exceptions", "found"),
    [
        ("", ["a is wrong [sizes]"]),
        ('[sizes]\na = "a table"', []),
        ('[sleeps]\na = "a table"', ["a is wrong [sizes]"]),
        (
            '[size]\na = "a table"',
            ["there is no check 'size' to except from", "a is wrong [sizes]"],
        ),
    ],
)
def test_problems_name_their_check(tmp_path: Path, exceptions: str, found: list[str]) -> None:
    plant(tmp_path, {"tools/exceptions.toml": exceptions})
    assert list(lint.problems(tmp_path, {"sizes": one})) == found


def test_problems_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path, {"tools/exceptions.toml": ""})
    monkeypatch.setattr(lint, "ROOT", tmp_path)
    monkeypatch.setattr(lint, "CHECKS", {"sizes": one, "sleeps": lambda _: iter(())})
    assert lint.main([]) == 1
    assert "a is wrong [sizes]" in capsys.readouterr().out
    assert lint.main(["sleeps"]) == 0
    assert capsys.readouterr().out == "tools.lint: sleeps: nothing found\n"


def test_an_unknown_check_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint.main(["size"]) == 2
    assert "there is no check size" in capsys.readouterr().out
