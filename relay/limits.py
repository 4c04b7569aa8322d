"""Counts how often the limits of the configuration were reached in this process.

The code that enforces a limit calls `record`; metrics and logs subscribe or read `counts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

counts: Final[Counter[str]] = Counter()
"""Number of times per setting; names as in the configuration, such as ``kernels.max_kernels``."""

_listeners: Final[list[Callable[[str], None]]] = []


def record(setting: str) -> None:
    """Count that something was refused, cut, dropped or ended because of ``setting``."""
    counts[setting] += 1
    for listener in _listeners:
        listener(setting)


def subscribe(listener: Callable[[str], None]) -> None:
    """Call ``listener`` with the setting each time a limit is reached from now on."""
    _listeners.append(listener)
