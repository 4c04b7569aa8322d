"""One relay for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from jupyter_kernel_client.wsclient import WSSession

from tests.system.running import MANY, RunningRelay

_TAIL: Final = 8_000
"""Characters of a relay's log that are shown for a failed test."""


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder: `make test` runs only some of it."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.system)
            _narrow_guarantee(item)


def _narrow_guarantee(item: pytest.Item) -> None:
    """Take the mark ``guarantee(v1=True)`` from the cases of a test with other parameters."""
    mark = item.get_closest_marker("guarantee")
    if mark is not None and isinstance(item, pytest.Function):
        parameters = item.callspec.params if mark.kwargs else {}
        if any(parameters[name] != value for name, value in mark.kwargs.items()):
            item.own_markers.remove(mark)


@pytest.fixture(scope="session")
def relay() -> Iterator[RunningRelay]:
    """A relay with the clusters alpha and beta, shared by all test files of a test process.

    Take a `RunningRelay` of your own to kill parts of it, to stop it, or to configure it.
    """
    with RunningRelay(environ=MANY) as running:
        yield running


@pytest.fixture(scope="session")
def kernel(relay: RunningRelay) -> str:
    """The id of a kernel in alpha, shared like its relay: neither end nor restart it."""
    return relay.start_kernel("alpha")


@pytest.fixture(scope="session")
def v1_runs_at_all() -> None:
    """Have jupyter-kernel-client 1.0.2 take v1 messages, which it drops, whoever sent them.

    A line for its log formats each with a "channel" that only legacy messages have, and
    websocket-client swallows the KeyError.
    """
    deserialize = WSSession.deserialize

    def with_channel(self: WSSession, *arguments: Any, **options: Any) -> dict[str, Any]:
        return {"channel": "", **deserialize(self, *arguments, **options)}

    WSSession.deserialize = with_channel


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the log of whatever relay a failed test had."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, RunningRelay):
                report.sections.append((f"log of {name}", value.log_text()[-_TAIL:]))
    return report
