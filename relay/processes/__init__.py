"""Processes of one machine, for every program of the relay; the room knows none of them.

``children`` spawns one and watches it, ``process_manager`` keeps it running, ``inherited`` takes
over what a parent hands down, ``ports`` opens listening sockets, ``privileges`` gives up rights,
``errors`` is the error of a failed start.
"""

from __future__ import annotations

from relay.processes.children import Child, Command
from relay.processes.errors import StartError
from relay.processes.inherited import (
    claim_notify_socket,
    die_with_parent,
    inherited_channel,
    inherited_listeners,
    notify,
)
from relay.processes.ports import PortInUse, listen, listen_with_retry, reserve
from relay.processes.privileges import become, hide_from_user, refuse_new_privileges
from relay.processes.process_manager import (
    ProcessManager,
    RestartDelay,
    stop_all,
    wait_until_ready,
)

__all__ = [
    "Child",
    "Command",
    "PortInUse",
    "ProcessManager",
    "RestartDelay",
    "StartError",
    "become",
    "claim_notify_socket",
    "die_with_parent",
    "hide_from_user",
    "inherited_channel",
    "inherited_listeners",
    "listen",
    "listen_with_retry",
    "notify",
    "refuse_new_privileges",
    "reserve",
    "stop_all",
    "wait_until_ready",
]
