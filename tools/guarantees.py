"""Each row of docs/guarantees.md that names a system test has one that is marked ``guarantee``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding
from tools.sources import Function

PAGE = Path("docs/guarantees.md")
TESTS = Path("tests")
MARK = "pytest.mark.guarantee"
"""With arguments, it is for those cases of a test only that have these parameters."""

_SYSTEM_TEST = re.compile(r"`(system/test_\w+\.py)`")


def check(root: Path) -> Iterator[Finding]:
    """Report rows none of whose system tests is part of `make test`."""
    lines = (root / PAGE).read_text().splitlines()
    for number, line in enumerate(lines, 1):
        files = _SYSTEM_TEST.findall(line) if line.startswith("|") else []
        if files and not any(is_marked(root / TESTS / file) for file in files):
            promise = line.split("|")[1].strip()
            text = f"{PAGE}:{number}: no test in {', '.join(files)} is marked {MARK}"
            yield Finding(promise, text)


def is_marked(file: Path) -> bool:
    """Whether a test in ``file`` has the mark."""
    return file.is_file() and any(
        ast.unparse(decorator).partition("(")[0] == MARK
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, Function)
        for decorator in node.decorator_list
    )
