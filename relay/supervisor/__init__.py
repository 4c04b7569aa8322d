"""`relay up`: one edge and one agent per local cluster, from nothing to ready, and kept so.

``state`` is the folder, ``secrets`` fills it with keys, ``plan`` says what runs, ``run`` runs it.
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
