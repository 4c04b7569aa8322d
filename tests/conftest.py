"""What every test gets: a guard against calls that stop the event loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relay")

WAITING_CALLS = ("time.", "socket.", "ssl.", "threading.", "builtins.input")
"""Calls that may wait for someone else. Files are not among them: the small files of a state
folder and the journal's writes into the page cache are meant to happen where they stand."""


@pytest.fixture(autouse=True)
def _no_waiting_in_the_loop() -> Iterator[None]:
    """Fail a test when code of the relay waits inside a running event loop."""
    guard = BlockBuster("relay")
    guarded = [call for name, call in guard.functions.items() if name.startswith(WAITING_CALLS)]
    for call in guarded:
        call.activate()
    yield
    for call in guarded:
        call.deactivate()
