"""Processes of this machine: what one inherits, the ports it listens on, the children it keeps.

Used by every program of the relay; knows none of them.
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
from relay.processes.ports import PortInUse, listen, listen_patiently, reserve
from relay.processes.privileges import become, hide_from_user, refuse_new_privileges
from relay.processes.process_manager import Backoff, ProcessManager, stop_all, until_ready

__all__ = [
    "Backoff",
    "Child",
    "Command",
    "PortInUse",
    "ProcessManager",
    "StartError",
    "become",
    "claim_notify_socket",
    "die_with_parent",
    "hide_from_user",
    "inherited_channel",
    "inherited_listeners",
    "listen",
    "listen_patiently",
    "notify",
    "refuse_new_privileges",
    "reserve",
    "stop_all",
    "until_ready",
]
