"""Functions, classes and files that have grown too large to be read at a sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding
from tools.sources import Function, Source, named, sources

FUNCTION_LINES = 60
CLASS_METHODS = 19
FILE_LINES = 400
FOLDERS = ("relay", "tools")


def check(root: Path) -> Iterator[Finding]:
    """Report functions and files with too many lines, and classes with too many methods."""
    for source in sources(root, *FOLDERS):
        lines = len(source.text.splitlines())
        if lines > FILE_LINES:
            yield Finding(str(source.path), f"{source.path}: {lines} lines (limit: {FILE_LINES})")
        for name, node in named(source.tree):
            yield from _too_large(source, name, node)


def _too_large(source: Source, name: str, node: Function | ast.ClassDef) -> Iterator[Finding]:
    key = f"{source.path}:{name}"
    if isinstance(node, ast.ClassDef):
        methods = sum(isinstance(child, Function) for child in node.body)
        if methods > CLASS_METHODS:
            text = f"the class {name} has {methods} methods (limit: {CLASS_METHODS})"
            yield Finding(key, f"{source.at(node)}: {text}")
        return
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > FUNCTION_LINES:
        text = f"the function {name} has {lines} lines (limit: {FUNCTION_LINES})"
        yield Finding(key, f"{source.at(node)}: {text}")
