from __future__ import annotations

from pathlib import Path

import pytest
from coverage import CoverageData

from tests.tools.planting import plant
from tools import coverage
from tools.coverage import Floors, Lines

APART = {"relay/__main__.py": "an entry point"}
FLOORS = Floors(75, {"relay": 90, "relay/edge": 50}, APART)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three of four lines of one room are covered, one of two of the other."""
    files = {
        "relay/__main__.py": "x = 1\n",
        "relay/model.py": "a = 1\nb = 2\nif a > b:\n    c = 3\n",
        "relay/edge/rest.py": "def f():\n    return 1\n",
        "relay/edge/__init__.py": "",
    }
    plant(tmp_path, files)
    data = CoverageData(str(tmp_path / ".coverage"))
    lines = {"relay/model.py": [1, 2, 3], "relay/edge/rest.py": [1]}
    data.add_lines({str(tmp_path / file): covered for file, covered in lines.items()})
    data.write()
    FLOORS.write(plant(tmp_path, {"tools/coverage.toml": ""}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_lines_are_counted_per_file_run_or_not(project: Path) -> None:
    assert coverage.measured(project, project / ".coverage") == {
        "relay/__main__.py": Lines(0, 1),
        "relay/edge/__init__.py": Lines(0, 0),
        "relay/edge/rest.py": Lines(1, 2),
        "relay/model.py": Lines(3, 4),
    }


def test_rooms_are_folders_without_what_stands_apart() -> None:
    files = {
        "relay/__main__.py": Lines(0, 9),
        "relay/model.py": Lines(1, 2),
        "relay/edge/a.py": Lines(1, 1),
        "relay/edge/b.py": Lines(0, 3),
        "relay/edge/http/c.py": Lines(5, 5),
        "relay/agent/__init__.py": Lines(0, 0),
    }
    rooms = coverage.by_room(files, APART)
    assert rooms == {
        "relay": Lines(1, 2),
        "relay/edge": Lines(1, 4),
        "relay/edge/http": Lines(5, 5),
    }
    assert coverage.total(rooms) == Lines(7, 11)


@pytest.mark.parametrize(
    ("rooms", "found"),
    [
        ({"relay": Lines(9, 10), "relay/edge": Lines(5, 10)}, ["all: 70.0 % is below the floor"]),
        ({"relay": Lines(90, 100), "relay/edge": Lines(5, 10)}, []),
        ({"relay": Lines(90, 100), "relay/edge": Lines(4, 10)}, ["relay/edge: 40.0 % is below"]),
        ({"relay": Lines(90, 100)}, ["relay/edge: there is no such room"]),
        (
            {"relay": Lines(90, 100), "relay/edge": Lines(1, 1), "relay/new": Lines(1, 1)},
            ["relay/new: there is no floor"],
        ),
    ],
)
def test_what_is_below_its_floor_is_noticed(rooms: dict[str, Lines], found: list[str]) -> None:
    problems = list(coverage.problems(rooms, FLOORS))
    assert len(problems) == len(found)
    assert all(text.startswith(begin) for text, begin in zip(problems, found, strict=True))


def test_a_figure_below_its_floor_is_an_error(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert coverage.main([]) == 1
    assert "relay: 75.0 % is below the floor, 90 %" in capsys.readouterr().out.splitlines()


def test_todays_figures_become_the_floors(project: Path) -> None:
    assert coverage.main(["--write-floors"]) == 0
    assert Floors.read(project) == Floors(66, {"relay": 75, "relay/edge": 50}, APART)
    assert coverage.main([]) == 0


def test_a_floor_is_never_all_lines() -> None:
    rooms = {"relay": Lines(10, 10)}
    assert coverage.lifted(rooms, FLOORS) == Floors(99, {"relay": 99}, APART)


def test_files_that_stand_apart_are_there_and_have_a_reason() -> None:
    root = Path(__file__).parents[2]
    apart = Floors.read(root).apart
    assert all((root / file).is_file() and reason.strip() for file, reason in apart.items())
