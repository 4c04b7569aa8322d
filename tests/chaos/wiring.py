"""Which process has which connection, and which process is which part of the relay."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import psutil

from relay.kernel_folders import process_started
from tests.system.running import RunningRelay

CROWD: Final = {"RELAY_QUOTAS__USER_KERNELS": "null", "RELAY_QUOTAS__USER_SOCKETS": "1000"}
"""For a relay all of whose clients are one user's."""


def end_in_order() -> None:
    """Have SIGTERM, and SIGINT in the background too, end what ``asyncio.run`` runs from now on.

    Relays, kernels and namespaces that were made are then ended as well.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


class Parts(NamedTuple):
    """The pids of what serves one cluster."""

    parent: int
    """The edge's."""
    workers: tuple[int, ...]
    agent: int
    supervisor: int

    @property
    def complete(self) -> bool:
        """Whether all of them run."""
        return all(process_started(pid) is not None for pid in self.all)

    @property
    def youngest(self) -> float:
        """How long the youngest of them has lived, in seconds. Raises psutil's NoSuchProcess."""
        return time.time() - max(psutil.Process(pid).create_time() for pid in self.all)

    @property
    def all(self) -> set[int]:
        """All of them."""
        return {self.parent, *self.workers, self.agent, self.supervisor}


def parts_of(relay: RunningRelay, cluster: str) -> Parts | None:
    """Who runs, by ``relay.json``; None while anything is missing."""
    with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
        pids = relay.info.pids
        if pids.edge and pids.agents[cluster]:
            parts = Parts(
                psutil.Process(pids.edge[0]).ppid(),
                pids.edge,
                pids.agents[cluster][0],
                pids.supervisor,
            )
            return parts if parts.complete else None
    return None


def edge_ports(relay: RunningRelay) -> set[int]:
    """The ports that the edge listens on."""
    found = {urlsplit(url).port for url in (relay.info.https_url, relay.info.wss_url)}
    return {port for port in found if port is not None}


def ports_of(pid: int, relay: RunningRelay) -> set[int]:
    """The local ports of a client process's connections to the edge."""
    with contextlib.suppress(psutil.NoSuchProcess):
        ours = edge_ports(relay)
        connections = _connections(pid)
        return {here[1] for here, there in connections if there and there[1] in ours}
    return set()


def clients_of(worker: int, relay: RunningRelay) -> set[int]:
    """The ports at the other end of an edge worker's connections with clients."""
    with contextlib.suppress(psutil.NoSuchProcess):
        ours = edge_ports(relay)
        connections = _connections(worker)
        return {there[1] for here, there in connections if there and here[1] in ours}
    return set()


def _connections(pid: int) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Local and remote address of each."""
    found = psutil.Process(pid).net_connections("inet")
    return [(tuple(each.laddr), tuple(each.raddr)) for each in found]
