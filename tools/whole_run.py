"""Run every group of tests, one after the other, and write the results into docs/tests.md.

``python -m tools.whole_run`` runs them all; ``python -m tools.whole_run --forget`` writes the page
without results.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path("docs/tests.md")
"""The path is relative to the project's root."""

TARGETS = {
    "lint": "style, types, layers and the project's own checks",
    "coverage": "the unit tests, and how much of `relay/` they cover",
    "test-system": "the relay as a whole: REST, channels, kills, tokens, settings",
    "test-clients": "JupyterLab's client library, Jupyter Server, nbclient, VS Code's requests, …",
    "test-peers": "other kernels, proxies, Prometheus, the Autobahn suite, storms of clients",
    "test-hub": "a real JupyterHub and an OpenID provider",
    "test-launchers": "kernels as other OS users (root is needed)",
    "test-browser": "JupyterLab and other pages in Chromium",
    "test-docs": "examples and links in the documentation",
    "demo": "real notebooks while agents are killed",
    "chaos": "every part killed under every kind of client",
}
"""Each target of the Makefile that is part of a whole run, and what it shows."""

HEAD = """\
# Tests

Written by `make test-all` after it has run every group of tests; do not edit. What each group needs
is in [CONTRIBUTING.md](../CONTRIBUTING.md#test). A test that is skipped says why when it runs.
"""
NOTHING = "No whole run has been recorded yet."

_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped)\b")
_SUMMARY = re.compile(r"^=*\s*(\d+ \w+,? ?)+.* in [\d.]+s")
"""pytest's last line."""


@dataclass(frozen=True)
class Result:
    """How the run of one target ended."""

    target: str
    succeeded: bool
    counts: str
    """What pytest counted, "12 passed, 1 skipped"; empty where it was not pytest."""
    seconds: float


def counts_in(lines: Iterable[str]) -> str:
    """Add up what pytest's summaries in ``lines`` count."""
    totals: dict[str, int] = {}
    for line in lines:
        if _SUMMARY.match(line):
            for count, what in _COUNT.findall(line):
                name = "errors" if what == "error" else what
                totals[name] = totals.get(name, 0) + int(count)
    return ", ".join(f"{count} {what}" for what, count in totals.items())


def run(target: str, command: Sequence[str]) -> Result:
    """Run ``command``, let its output through, and see how it ends."""
    begun = time.monotonic()
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        for line in process.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
    return Result(target, process.returncode == 0, counts_in(lines), time.monotonic() - begun)


def page(commit: str, when: datetime, results: Sequence[Result]) -> str:
    """Return the page; without ``results``, that there are none."""
    if not results:
        return f"{HEAD}\n{NOTHING}\n"
    return "\n".join([HEAD, *_table(commit, when, results), ""])


def _table(commit: str, when: datetime, results: Sequence[Result]) -> Iterator[str]:
    failed = sum(not result.succeeded for result in results)
    outcome = f"{failed} of {len(results)} groups failed" if failed else "all groups succeeded"
    yield f"The last whole run: {when:%Y-%m-%d}, commit `{commit}`, {outcome}.\n"
    yield "| Group | Shows | Result | Tests | Took |"
    yield "|---|---|---|---|---|"
    for result in results:
        word = "ok" if result.succeeded else "**failed**"
        shows = TARGETS[result.target]
        took = f"{result.seconds / 60:.1f} min"
        yield f"| `make {result.target}` | {shows} | {word} | {result.counts} | {took} |"


def commit_of(root: Path) -> str:
    """Return the commit that is checked out in ``root``, and whether anything else was there."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=, with changes", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def main(arguments: list[str]) -> int:
    """Run what there is to run, write the page, and return the exit code."""
    root = Path()
    if arguments == ["--forget"]:
        (root / PAGE).write_text(page("", datetime.now(UTC), []))
        return 0
    commit, when = commit_of(root), datetime.now(UTC)
    results = [run(target, ["make", "--no-print-directory", target]) for target in TARGETS]
    (root / PAGE).write_text(page(commit, when, results))
    return not all(result.succeeded for result in results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
