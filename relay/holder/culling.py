"""Shutting down a kernel that nobody uses, by Jupyter Server's rule."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import structlog

from relay import limits
from relay.bridge.control import Phase
from relay.config import CullSettings
from relay.holder.broker.broker import Broker
from relay.holder.lifecycle import Lifecycle
from relay.model import ExecutionState

log = structlog.get_logger(__name__)


class Usage(NamedTuple):
    """What is known of a kernel's use. ``last_activity`` is in seconds since the epoch."""

    last_activity: float
    execution_state: ExecutionState
    connections: int


def is_idle(usage: Usage, settings: CullSettings, now: float) -> bool:
    """Whether the kernel is to be shut down at ``now``; a dead one is, whoever looks at it."""
    if settings.cull_idle_timeout <= 0:
        return False
    if usage.execution_state == "dead":
        return True
    if usage.connections and not settings.cull_connected:
        return False
    if usage.execution_state == "busy" and not settings.cull_busy:
        return False
    return now - usage.last_activity > settings.cull_idle_timeout


async def cull(broker: Broker, lifecycle: Lifecycle, settings: CullSettings) -> None:
    """Shut the kernel down when nobody has used it for long enough."""
    while settings.cull_idle_timeout > 0:
        await asyncio.sleep(settings.cull_interval)
        activity = broker.activity
        usage = Usage(activity.last, activity.state, broker.sessions.connections)
        if lifecycle.phase is Phase.READY and is_idle(usage, settings, time.time()):
            log.warning("kernel_culled", setting="culling.cull_idle_timeout")
            limits.record("culling.cull_idle_timeout")
            broker.say(
                "[relay] This kernel is shut down: nobody has used it for "
                f"{settings.cull_idle_timeout:g} s (culling.cull_idle_timeout).\n"
            )
            await lifecycle.stop()
