"""Run every check of the project's own: ``python -m tools.lint``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tools import class_names, doc_links, log_events, privates, sizes, sleeps
from tools.findings import Finding, read_exceptions, unexcused

ROOT = Path(__file__).parents[1]

Check = Callable[[Path], Iterator[Finding]]

CHECKS: dict[str, Check] = {
    "class_names": class_names.check,
    "doc_links": doc_links.check,
    "log_events": log_events.check,
    "privates": privates.check,
    "sizes": sizes.check,
    "sleeps": sleeps.check,
}
"""Each check by the name of its table in `tools.findings.EXCEPTIONS`."""


def problems(root: Path, checks: dict[str, Check]) -> Iterator[str]:
    """Yield a line for each thing in ``root`` that breaks a rule and is not excused."""
    exceptions = read_exceptions(root)
    for name in exceptions.keys() - checks.keys():
        yield f"there is no check {name!r} to make exceptions from"
    for name, check in checks.items():
        for text in unexcused(check(root), exceptions.get(name, {})):
            yield f"{text} [{name}]"


def main() -> int:
    """Print what is wrong; return the exit code."""
    found = list(problems(ROOT, CHECKS))
    for line in found:
        print(line)
    print(f"{len(found)} problems" if found else "tools.lint: all checks passed")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
