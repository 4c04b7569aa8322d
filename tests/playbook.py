"""Playbooks: tests of a sans-I/O core that read like a script.

::

    Playbook(sessions.handle)
        >> Attached(1, attach)
        << [Start(1, KEY, POSITION, 0)]
        >> Detached(1, clean=True)
        << []

``>>`` hands in an event; ``<<`` is everything that must have come of it, in order. An event with
no ``<<`` behind it sets the scene: it may answer anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Self, TypeVar

Event = TypeVar("Event")
Action = TypeVar("Action")


class Playbook(Generic[Event, Action]):
    """Plays events to ``handle`` and compares what it answers."""

    def __init__(self, handle: Callable[[Event], Iterable[Action]]) -> None:
        self._handle = handle
        self._event: Event | None = None
        self._came: list[Action] = []

    def __rshift__(self, event: Event) -> Self:
        self._event, self._came = event, list(self._handle(event))
        return self

    def __lshift__(self, expected: Sequence[Action]) -> Self:
        assert self._came == list(expected), f"this came of {self._event}"
        return self
