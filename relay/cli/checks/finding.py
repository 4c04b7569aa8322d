"""Findings, and the register of checks."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

Severity = Literal["error", "warning"]


class Finding(NamedTuple):
    """One thing to say about a setting."""

    severity: Severity
    path: str
    """The setting's, as ``policy.rules.0``."""
    text: str


Check = Callable[[Any], Iterator[Finding]]
S = TypeVar("S", bound=msgspec.Struct)
F = TypeVar("F", bound=Check)

_CHECKS: Final[dict[type[msgspec.Struct], list[Check]]] = {}
_LAST: Final[dict[type[msgspec.Struct], list[Check]]] = {}


def check(*kinds: type[msgspec.Struct]) -> Callable[[F], F]:
    """Have a function called with settings of these kinds."""

    def register(function: F) -> F:
        for kind in kinds:
            _CHECKS.setdefault(kind, []).append(function)
        return function

    return register


def last_resort(*kinds: type[msgspec.Struct]) -> Callable[[F], F]:
    """Have a function called where no `check` has found an error."""

    def register(function: F) -> F:
        for kind in kinds:
            _LAST.setdefault(kind, []).append(function)
        return function

    return register


def findings_of(settings: msgspec.Struct) -> list[Finding]:
    """What all checks for settings of this kind find, in the order of the checks."""
    kind = type(settings)
    found = [each for look in _CHECKS[kind] for each in look(settings)]
    if not any(each.severity == "error" for each in found):
        found += [each for look in _LAST.get(kind, ()) for each in look(settings)]
    return list(dict.fromkeys(found))


def error(path: str, text: str) -> Finding:
    """Say that a program will not start so, or will not work."""
    return Finding("error", path, text)


def warning(path: str, text: str) -> Finding:
    """Say that it works, and what it opens."""
    return Finding("warning", path, text)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address; what must be looked up counts as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
