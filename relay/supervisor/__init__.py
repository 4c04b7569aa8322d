"""`relay up`: starts one edge and one agent per local cluster, and keeps them running.

``state`` is the state directory, ``secrets`` fills it with keys, ``plan`` makes the configurations
and commands of the processes, ``run`` runs them.
"""

from __future__ import annotations

from relay.supervisor.run import ProgramFailed, run
from relay.supervisor.state import (
    Lock,
    MetricsUrls,
    Ready,
    StateFolder,
    default_state_dir,
    living_kernels,
    lock_owner,
)

__all__ = [
    "Lock",
    "MetricsUrls",
    "ProgramFailed",
    "Ready",
    "StateFolder",
    "default_state_dir",
    "living_kernels",
    "lock_owner",
    "run",
]
