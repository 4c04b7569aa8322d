"""Run the project's own checks: ``python -m tools.lint``, or some of them by their names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tools import (
    class_names,
    doc_links,
    groups,
    guarantees,
    log_events,
    mirror,
    privates,
    sizes,
    sleeps,
)
from tools.findings import Finding, read_exceptions, unexcused

ROOT = Path(__file__).parents[1]

Check = Callable[[Path], Iterator[Finding]]

CHECKS: dict[str, Check] = {
    "class_names": class_names.check,
    "doc_links": doc_links.check,
    "guarantees": guarantees.check,
    "groups": groups.check,
    "log_events": log_events.check,
    "mirror": mirror.check,
    "privates": privates.check,
    "sizes": sizes.check,
    "sleeps": sleeps.check,
}
"""Each check by the name of its table in `tools.findings.EXCEPTIONS`."""


def problems(root: Path, checks: dict[str, Check]) -> Iterator[str]:
    """Yield a line for each thing in ``root`` that breaks a rule and is not excused."""
    exceptions = read_exceptions(root)
    for name in exceptions.keys() - CHECKS.keys():
        yield f"there is no check {name!r} to except from"
    for name, check in checks.items():
        for text in unexcused(check(root), exceptions.get(name, {})):
            yield f"{text} [{name}]"


def main(names: list[str]) -> int:
    """Run the checks with these ``names``, or all; print what is wrong; return the exit code."""
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        print(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
        return 2
    chosen = {name: CHECKS[name] for name in names or CHECKS}
    found = list(problems(ROOT, chosen))
    for line in found:
        print(line)
    print(f"{len(found)} problems" if found else f"tools.lint: {', '.join(chosen)}: nothing found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
