"""The project's Python files, parsed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One parsed file; ``path`` is relative to the project's root."""

    path: Path
    text: str
    tree: ast.Module

    def at(self, node: ast.expr | ast.stmt) -> str:
        """Return the place of ``node`` as ``path:line``."""
        return f"{self.path}:{node.lineno}"


def sources(root: Path, *folders: str) -> Iterator[Source]:
    """Parse all Python files below ``folders`` of the project in ``root``, in order."""
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            if "node_modules" not in file.parts:
                text = file.read_text()
                yield Source(file.relative_to(root), text, ast.parse(text))


def named(tree: ast.AST, above: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield each function and class in ``tree`` with its qualified name, ``Class.method``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function | ast.ClassDef):
            name = f"{above}{node.name}"
            yield name, node
            yield from named(node, f"{name}.")
        else:
            yield from named(node, above)
