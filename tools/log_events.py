"""Log events are snake_case literals: an operator searches for them and counts them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding
from tools.sources import Source, sources

LEVELS = frozenset({"debug", "info", "warning", "error", "critical", "exception"})
EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def check(root: Path) -> Iterator[Finding]:
    """Report each call of a structlog logger named ``log`` whose event is not snake_case."""
    for source in sources(root, "relay"):
        if not _is_standard_logging(source.tree):
            yield from _events(source)


def _events(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        match node:
            case ast.Call(func=ast.Attribute(value=logger, attr=level)) if (
                level in LEVELS and _is_log(logger) and not _is_event(node.args[:1])
            ):
                event = ast.unparse(node.args[0]) if node.args else "nothing"
                key = f"{source.path}:{event}"
                text = f"{source.at(node)}: the event {event} is not a snake_case literal"
                yield Finding(key, text)


def _is_log(node: ast.expr) -> bool:
    """Recognise ``log`` and ``log.bind(…)``."""
    match node:
        case ast.Name(id="log"):
            return True
        case ast.Call(func=ast.Attribute(value=inner)):
            return _is_log(inner)
    return False


def _is_event(arguments: list[ast.expr]) -> bool:
    match arguments:
        case [ast.Constant(value=str(event))]:
            return EVENT.fullmatch(event) is not None
    return False


def _is_standard_logging(tree: ast.Module) -> bool:
    """Recognise ``log = logging.getLogger(…)``.

    The client for scripts logs sentences, as libraries do.
    """
    for node in tree.body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="log")],
                value=ast.Call(func=ast.Attribute(value=ast.Name(id="logging"))),
            ):
                return True
    return False
