from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from relay import limits
from relay.bridge.control import Phase
from relay.config import CullSettings
from relay.holder.culling import Usage, cull, is_idle
from tests.virtualtime import virtual

NOW = 1_000_000.0
SETTINGS = CullSettings(cull_idle_timeout=60.0)


def usage(idle: float, state: Any = "idle", connections: int = 0) -> Usage:
    return Usage(NOW - idle, state, connections)


def test_a_kernel_that_nobody_uses_for_long_enough_is_idle() -> None:
    assert is_idle(usage(60.1), SETTINGS, NOW)
    assert not is_idle(usage(60.0), SETTINGS, NOW)
    assert not is_idle(usage(-5), SETTINGS, NOW)


def test_without_a_timeout_nothing_is_idle() -> None:
    assert not is_idle(usage(1e9), CullSettings(), NOW)
    assert not is_idle(usage(1e9, "dead"), CullSettings(), NOW)


def test_a_dead_kernel_waits_for_nobody() -> None:
    assert is_idle(usage(0, "dead", 3), SETTINGS, NOW)


def test_clients_and_work_keep_a_kernel_unless_told_otherwise() -> None:
    connected, busy = usage(100, "idle", 1), usage(100, "busy")
    assert not is_idle(connected, SETTINGS, NOW)
    assert not is_idle(busy, SETTINGS, NOW)
    assert is_idle(connected, CullSettings(cull_idle_timeout=60, cull_connected=True), NOW)
    assert is_idle(busy, CullSettings(cull_idle_timeout=60, cull_busy=True), NOW)
    both = usage(100, "busy", 1)
    assert not is_idle(both, CullSettings(cull_idle_timeout=60, cull_busy=True), NOW)


@pytest.mark.parametrize(
    ("metadata", "timeout"),
    [
        (None, 60.0),
        ({}, 60.0),
        ({"cull_idle_timeout": 5}, 5.0),
        ({"cull_idle_timeout": 0}, 0.0),
        ({"cull_idle_timeout": 1e9}, 60.0),
        ({"cull_idle_timeout": -1}, 60.0),
        ({"cull_idle_timeout": "5"}, 60.0),
        ({"cull_idle_timeout": True}, 60.0),
        ({"cull_idle_timeout": float("nan")}, 60.0),
    ],
)
def test_a_kernelspec_may_have_a_timeout_of_its_own(metadata: Any, timeout: float) -> None:
    chosen = CullSettings(cull_idle_timeout=60.0, cull_busy=True).for_kernelspec(metadata)
    assert chosen.cull_idle_timeout == timeout
    assert chosen.cull_busy


class Kernel:
    """What is culled, in the place of broker and lifecycle."""

    def __init__(self, phase: Phase = Phase.READY) -> None:
        self.activity: Any = SimpleNamespace(last=0.0, state="idle")
        self.sessions: Any = SimpleNamespace(connections=0)
        self.phase = phase
        self.said: list[str] = []
        self.stopped = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    async def stop(self) -> None:
        self.stopped += 1
        self.phase = Phase.GONE


async def culled(kernel: Any, settings: CullSettings, seconds: float) -> None:
    """Let so many seconds pass, as the event loop counts them."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await cull(kernel, kernel, settings)


@virtual
async def test_a_kernel_that_is_idle_is_told_why_it_ends() -> None:
    kernel = Kernel()
    before = limits.counts["culling.cull_idle_timeout"]
    settings = CullSettings(cull_idle_timeout=60.0, cull_interval=10.0)
    await culled(kernel, settings, 9)
    assert kernel.stopped == 0
    await culled(kernel, settings, 60)
    # Once: it has ended.
    assert kernel.stopped == 1
    (said,) = kernel.said
    assert "nobody has used it for 60 s (culling.cull_idle_timeout)." in said
    assert limits.counts["culling.cull_idle_timeout"] == before + 1


@virtual
async def test_a_kernel_that_is_used_or_has_not_started_stays() -> None:
    settings = CullSettings(cull_idle_timeout=60.0, cull_interval=10.0)
    starting, used = Kernel(Phase.STARTING), Kernel()
    used.sessions.connections = 1
    for kernel in (starting, used):
        await culled(kernel, settings, 100)
        assert (kernel.stopped, kernel.said) == (0, [])


@virtual
async def test_without_a_timeout_nobody_looks() -> None:
    kernel = Kernel()
    await cull(kernel, kernel, CullSettings())  # type: ignore[arg-type] # it is not looked at
    assert kernel.stopped == 0
