from __future__ import annotations

import ast
from pathlib import Path

from tests.tools.planting import plant
from tools.sources import named, sources


def test_files_come_in_order_and_without_those_of_others(tmp_path: Path) -> None:
    files = ["tests/b.py", "tests/a/a.py", "tests/node_modules/x.py", "relay/c.py", "other/d.py"]
    plant(tmp_path, dict.fromkeys(files, "x = 1\n"))
    found = [str(source.path) for source in sources(tmp_path, "relay", "tests")]
    assert found == ["relay/c.py", "tests/a/a.py", "tests/b.py"]


def test_a_place_is_a_path_and_a_line(tmp_path: Path) -> None:
    plant(tmp_path, {"relay/a.py": "\n\nx = 1\n"})
    (source,) = sources(tmp_path, "relay")
    assert source.at(source.tree.body[0]) == "relay/a.py:3"


def test_names_are_qualified_wherever_they_are_defined() -> None:
    text = (
        "if x:\n    class A:\n        def f(self):\n            def g(): ...\nasync def h(): ...\n"
    )
    assert [name for name, _ in named(ast.parse(text))] == ["A", "A.f", "A.f.g", "h"]
