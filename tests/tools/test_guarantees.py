from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.planting import keys, plant
from tools import guarantees

MARKED = "import pytest\n@pytest.mark.guarantee\nasync def test_it() -> None: ...\n"
NARROWED = "import pytest\n@pytest.mark.guarantee(v1=True)\ndef test_it(v1) -> None: ...\n"
PLAIN = "import pytest\n@pytest.mark.slow\ndef test_it() -> None: ...\n"


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("| no line is lost | `system/test_marked.py` |", []),
        ("| no line is lost | `system/test_plain.py`, `system/test_marked.py` |", []),
        ("| no line is lost | `system/test_plain.py`; `bridge/test_x.py` |", ["no line is lost"]),
        ("| no line is lost | `system/test_narrowed.py` |", []),
        ("| no line is lost | `system/test_none.py` |", ["no line is lost"]),
        ("| no line is lost | `bridge/test_x.py` |", []),
        ("| no line is lost | |", []),
        ("It is not run (`system/test_plain.py`).", []),
    ],
)
def test_a_row_that_make_test_does_not_show_is_noticed(
    tmp_path: Path, row: str, found: list[str]
) -> None:
    tests = {"marked": MARKED, "narrowed": NARROWED, "plain": PLAIN}
    files = {f"tests/system/test_{name}.py": text for name, text in tests.items()}
    plant(tmp_path, {**files, "docs/guarantees.md": f"# Guarantees\n\n{row}\n"})
    assert keys(guarantees.check, tmp_path) == found
