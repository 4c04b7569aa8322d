"""Small projects with something wrong in them, for the checks to find."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tools.findings import Finding


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write ``files``, by their paths in the project ``root``."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    return root


def keys(check: Callable[[Path], Iterator[Finding]], root: Path) -> list[str]:
    """Return the keys of what ``check`` finds in ``root``."""
    return [finding.key for finding in check(root)]
