"""What a check reports, and the table of exceptions from it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

EXCEPTIONS = Path("tools/exceptions.toml")
"""One table per check, key → reason; the path is relative to the project's root."""


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    ``key``: the name of the offender, by which a table of exceptions excuses it.
    """

    key: str
    text: str


def read_exceptions(root: Path) -> dict[str, dict[str, str]]:
    """Return the tables of exceptions of the project in ``root``, by the name of their check."""
    return tomllib.loads((root / EXCEPTIONS).read_text())


def unexcused(findings: Iterable[Finding], excused: dict[str, str]) -> Iterator[str]:
    """Yield the text of each finding without an exception, and each exception without a finding."""
    met = set()
    for finding in findings:
        met.add(finding.key)
        if finding.key not in excused:
            yield finding.text
    for key, reason in excused.items():
        if not reason.strip():
            yield f"{EXCEPTIONS}: the exception {key!r} has no reason"
        if key not in met:
            yield f"{EXCEPTIONS}: the exception {key!r} is not needed any more"
