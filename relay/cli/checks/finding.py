"""The findings, and the register of checks."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

Severity = Literal["error", "warning"]


class Finding(NamedTuple):
    """One message about a setting."""

    severity: Severity
    path: str
    """The setting's path, such as ``policy.rules.0``."""
    text: str


Check = Callable[[Any], Iterator[Finding]]
F = TypeVar("F", bound=Check)

_CHECKS: Final[dict[type[msgspec.Struct], list[Check]]] = {}
_FINAL_CHECKS: Final[dict[type[msgspec.Struct], list[Check]]] = {}


def check(*kinds: type[msgspec.Struct]) -> Callable[[F], F]:
    """Register a function as a check of settings of these kinds."""

    def register(function: F) -> F:
        for kind in kinds:
            _CHECKS.setdefault(kind, []).append(function)
        return function

    return register


def final_check(*kinds: type[msgspec.Struct]) -> Callable[[F], F]:
    """Register a function that is called only where no `check` has found an error."""

    def register(function: F) -> F:
        for kind in kinds:
            _FINAL_CHECKS.setdefault(kind, []).append(function)
        return function

    return register


def findings_of(settings: msgspec.Struct) -> list[Finding]:
    """Run all checks for settings of this kind, in the order of their registration."""
    kind = type(settings)
    found = [each for run in _CHECKS[kind] for each in run(settings)]
    if not any(each.severity == "error" for each in found):
        found += [each for run in _FINAL_CHECKS.get(kind, ()) for each in run(settings)]
    return list(dict.fromkeys(found))


def error(path: str, text: str) -> Finding:
    """Make a finding that keeps a program from starting or working."""
    return Finding("error", path, text)


def warning(path: str, text: str) -> Finding:
    """Make a finding about a setting that works but is dangerous."""
    return Finding("warning", path, text)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only; False for other host names."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
