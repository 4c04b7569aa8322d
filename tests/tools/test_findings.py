from __future__ import annotations

from pathlib import Path

from tests.tools.planting import plant
from tools.findings import Finding, read_exceptions, unexcused

LARGE, LONG = Finding("a.py:A", "A is large"), Finding("b.py", "b is long")


def test_what_is_excused_is_not_reported() -> None:
    assert list(unexcused([LARGE, LONG], {"a.py:A": "a table"})) == ["b is long"]


def test_an_exception_without_a_finding_is_an_error() -> None:
    (text,) = unexcused([LARGE], {"a.py:A": "a table", "b.py": "a table"})
    assert text.endswith("'b.py' is not needed any more")


def test_an_exception_without_a_reason_is_an_error() -> None:
    (text,) = unexcused([LARGE], {"a.py:A": " "})
    assert text.endswith("'a.py:A' has no reason")


def test_exceptions_are_tables(tmp_path: Path) -> None:
    plant(tmp_path, {"tools/exceptions.toml": '[sizes]\n"a.py:A" = "a table"\n'})
    assert read_exceptions(tmp_path) == {"sizes": {"a.py:A": "a table"}}
