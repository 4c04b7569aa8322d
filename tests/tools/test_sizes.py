from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.planting import keys, plant
from tools import sizes


def function(lines: int, name: str = "f") -> str:
    return f"def {name}():\n" + "    x = 1\n" * (lines - 1)


def methods(count: int) -> str:
    return "class A:\n" + "".join(f"    async def f{n}(self): ...\n" for n in range(count))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (function(60), []),
        (function(61), ["relay/a.py:f"]),
        ("async " + function(61), ["relay/a.py:f"]),
        ("class A:\n" + "".join(f"    {line}\n" for line in function(61).splitlines()),
         ["relay/a.py:A.f"]),
        (methods(19), []),
        (methods(20), ["relay/a.py:A"]),
        ("x = 1\n" * 400, []),
        ("x = 1\n" * 401, ["relay/a.py"]),
    ],
    ids=range(8),
)  # fmt: skip
def test_what_is_too_large_is_noticed(tmp_path: Path, text: str, found: list[str]) -> None:
    plant(tmp_path, {"relay/a.py": text})
    assert keys(sizes.check, tmp_path) == found
