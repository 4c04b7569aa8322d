from __future__ import annotations

from typing import Any

import pytest

from relay.config import CullSettings
from relay.holder.culling import Usage, is_idle

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
