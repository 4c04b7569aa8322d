from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.planting import plant
from tools import groups

FILES = dict.fromkeys(["tests/system/test_a.py", "tests/system/test_b.py"], "")
ROOT = Path(__file__).parents[2]


def project(root: Path, table: str) -> Path:
    return plant(root, {**FILES, "tools/groups.toml": table})


def test_what_is_named_nowhere_is_in_the_rest(tmp_path: Path) -> None:
    root = project(tmp_path, 'hub = ["test_b.py"]')
    assert groups.read_groups(root) == {"hub": ["test_b.py"], "system": ["test_a.py"]}
    assert list(groups.check(root)) == []


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ('hub = ["test_b.py"]\npeers = ["test_b.py"]', "test_b.py is in more than one group"),
        ('hub = ["test_c.py"]', "tests/system/test_c.py does not exist"),
    ],
)
def test_a_mistake_is_noticed(tmp_path: Path, table: str, text: str) -> None:
    (finding,) = groups.check(project(tmp_path, table))
    assert finding.text.endswith(text)


def test_files_are_printed_for_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project(tmp_path, 'hub = ["test_b.py"]'))
    assert groups.main(["hub", "system"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tests/system/test_b.py",
        "tests/system/test_a.py",
    ]


@pytest.mark.parametrize("names", [[], ["nothing"]])
def test_an_unknown_group_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
) -> None:
    monkeypatch.chdir(project(tmp_path, 'hub = ["test_b.py"]'))
    assert groups.main(names) == 2
    assert "there are hub, system" in capsys.readouterr().out


def test_make_has_a_target_for_each_group() -> None:
    makefile = (ROOT / "Makefile").read_text()
    missing = [name for name in groups.read_groups(ROOT) if f"\ntest-{name}:" not in makefile]
    assert missing == []
