"""When a kernel that nobody uses is shut down: Jupyter Server's rule, without its clock."""

from __future__ import annotations

from typing import NamedTuple

from relay.config import CullSettings
from relay.model import ExecutionState


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
