"""Links, file names and tests that are named in the documentation lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding

PAGES = ("*.md", "docs/**/*.md", "deploy/**/*.md")
BASES = ("", "relay", "tests")
"""Folders that the documentation names files from."""

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: +(\S+)")
"""``](target)``, for a link's text may begin on the line before; or ``[name]: target``."""
_HEADING = re.compile(r"^#+ +(.*?) *#*$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_PYTEST = re.compile(r"pytest (\S+\.py) -k (\w+)")
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)*/([\w.-]+\.\w+)?")


def pages(root: Path) -> Iterator[Path]:
    """Yield every page of the documentation."""
    for pattern in PAGES:
        yield from sorted(root.glob(pattern))


def check(root: Path) -> Iterator[Finding]:
    """Report links to files and headings that are not there, and names of files that are not."""
    for page in pages(root):
        text = _without_fences(page.read_text())
        here = page.relative_to(root)
        for number, line in enumerate(text.splitlines(), 1):
            named = (*_missing_files(root, line), *_missing_tests(root, line))
            for problem in (*_dead_links(page, line), *named):
                yield Finding(f"{here}:{problem}", f"{here}:{number}: {problem} does not exist")


def _without_fences(text: str) -> str:
    """Blank the code blocks, and keep the numbers of the lines."""
    return _FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)


def _dead_links(page: Path, line: str) -> Iterator[str]:
    for inline, reference in _LINK.findall(_CODE.sub("", line)):
        target = inline or reference
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of ``page``; a repeated one is numbered."""
    found: set[str] = set()
    for heading in _HEADING.findall(_without_fences(page.read_text())):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = 0
        while (anchor := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(anchor)
    return found


def _missing_files(root: Path, line: str) -> Iterator[str]:
    for name in _CODE.findall(line):
        is_there = any((root / base / name).exists() for base in BASES)
        if _FILE.fullmatch(name) and _is_of_the_tree(root, name) and not is_there:
            yield name


def _is_of_the_tree(root: Path, name: str) -> bool:
    """Whether ``name`` can only be a file of the project: Python, or below a folder it has."""
    top = name.partition("/")[0]
    return name.endswith(".py") or top in {"relay", "tests"} or (root / top).is_dir()


def _missing_tests(root: Path, line: str) -> Iterator[str]:
    """Yield the calls of pytest that select nothing."""
    for name, words in _PYTEST.findall(line):
        file = root / name
        if not file.is_file() or not re.search(rf"def test_\w*{words}", file.read_text()):
            yield f"{name} -k {words}"
