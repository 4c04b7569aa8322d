"""Checks of files that only their owner should read; a setting's type marks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

from relay.cli.checks import files
from relay.cli.checks.finding import Finding, check
from relay.config import AgentConfig, EdgeConfig, UpConfig

Value = Any  # of a setting, or of a section

_MARK: Final = "secret"
"""Key of a type's extra; see `relay.config.values`."""


@check(EdgeConfig, AgentConfig, UpConfig)
def secret_files(config: msgspec.Struct) -> Iterator[Finding]:
    """Warn of secret files that other users may read or replace."""
    for path, name, mark in _marked(inspect.type_info(type(config)), config, ""):
        # A file that cannot be read is reported by the check of its setting.
        if mark is True or mark(files.read(path, name)[0]):
            yield from files.secret(path, name)


def _marked(kind: inspect.Type, value: Value, path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the path, value and mark of every marked setting in ``value``."""
    if value is None:
        return
    if isinstance(kind, inspect.Metadata):
        extra = kind.extra or {}
        if _MARK in extra:
            yield path, value, extra[_MARK]
        yield from _marked(kind.type, value, path)
    for inner, part, name in _parts(kind, value):
        yield from _marked(inner, part, f"{path}.{name}" if path and name else f"{path}{name}")


def _parts(kind: inspect.Type, value: Value) -> Iterable[tuple[inspect.Type, Value, object]]:
    """Return the parts of a value: type, value and name of each."""
    if isinstance(kind, inspect.UnionType):
        return ((each, value, "") for each in kind.types)
    if isinstance(kind, inspect.StructType):
        return ((each.type, getattr(value, each.name), each.name) for each in kind.fields)
    if isinstance(kind, inspect.DictType):
        return ((kind.value_type, part, name) for name, part in value.items())
    if isinstance(kind, inspect.ListType):
        return ((kind.item_type, part, number) for number, part in enumerate(value))
    return ()
