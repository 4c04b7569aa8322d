"""Unit tests do not sleep: a test that waits for time to pass is slow, and fails on a busy machine.

A function that `tests.virtualtime.virtual` decorates may sleep, since no time passes in it. So may
a helper by `tests.virtualtime.elapse`, which only works there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding
from tools.sources import Function, Source, sources

REAL = frozenset({"system", "chaos", "fixtures"})
"""Folders whose files run, or record, real programs and may wait for them."""
SLEEPS = frozenset({"asyncio.sleep", "time.sleep", "sleep"})


def check(root: Path) -> Iterator[Finding]:
    """Report sleeps in unit tests and their helpers."""
    for source in sources(root, "tests"):
        if source.path.parts[1] not in REAL:
            yield from _sleeps(source, source.tree, "")


def _sleeps(source: Source, tree: ast.AST, inside: str) -> Iterator[Finding]:
    for node in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(node, Function | ast.ClassDef):
            if _is_virtual(node):
                continue
            name = f"{inside}.{node.name}".removeprefix(".")
        if isinstance(node, ast.Call) and _waits(node):
            key = f"{source.path}:{name}"
            yield Finding(key, f"{source.at(node)}: {ast.unparse(node)} in a unit test")
        yield from _sleeps(source, node, name)


def _is_virtual(node: Function | ast.ClassDef) -> bool:
    return any(ast.unparse(decorator) == "virtual" for decorator in node.decorator_list)


def _waits(call: ast.Call) -> bool:
    if ast.unparse(call.func) not in SLEEPS:
        return False
    match call.args:
        case [ast.Constant(value=0)]:
            return False
    return True
