"""Which settings were hit, and how often, in this process.

As with a logger, whoever meets a limit says so where it stands, and knows nothing of who counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

counts: Final[Counter[str]] = Counter()
"""How often each setting was hit; its name is as in the configuration, ``kernels.max_kernels``."""

_listeners: Final[list[Callable[[str], None]]] = []


def record(setting: str) -> None:
    """A limit was hit: something was refused, cut, dropped or ended because of ``setting``."""
    counts[setting] += 1
    for listener in _listeners:
        listener(setting)


def subscribe(listener: Callable[[str], None]) -> None:
    """Have ``listener`` called with the setting at each hit from now on."""
    _listeners.append(listener)
