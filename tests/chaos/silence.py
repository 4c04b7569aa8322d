"""A network that goes silent: packets are dropped, and nobody is told.

Clients live in a network namespace of their own, joined to this one by a pair of virtual
interfaces. Each side knows the other's hardware address for good; while the network is silent both
know a wrong one, and what they send is dropped at the other end without a word.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Self, TypeVar

_NEW_NETWORK: Final = 0x4000_0000
"""CLONE_NEWNET, for setns(2)."""
_NOWHERE: Final = "02:00:00:00:00:fe"
_SIDES: Final = {
    "ours": ("10.213.77.1", "02:00:00:00:77:01"),
    "theirs": ("10.213.77.2", "02:00:00:00:77:02"),
}

T = TypeVar("T")


class Network:
    """The namespace. To be used as a context; one at a time on a machine."""

    address: Final = _SIDES["ours"][0]
    """This side's, for the relay to listen on. From this side it can always be reached."""

    def __init__(self) -> None:
        self.name = f"relay-chaos-{os.getpid()}"
        self._here = f"rc{os.getpid()}"
        self._there = f"rt{os.getpid()}"

    @staticmethod
    def missing() -> str:
        """Why there can be no such network on this machine; empty where there can."""
        if os.geteuid() != 0:
            return "only root may make a network namespace"
        missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
        if missing:
            return f"there is no {', '.join(missing)}. On Debian: apt-get install -y iproute2"
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
        return "" if done.returncode == 0 else "this machine allows no network namespaces"

    def __enter__(self) -> Self:
        (ours, our_mac), (theirs, their_mac) = _SIDES.values()
        peer = ("peer", "name", self._there, "address", their_mac, "netns", self.name)
        self._ip("netns", "add", self.name)
        try:
            self._ip("link", "add", self._here, "address", our_mac, "type", "veth", *peer)
            self._ip("addr", "add", f"{ours}/30", "dev", self._here)
            self._ip("addr", "add", f"{theirs}/30", "dev", self._there, inside=True)
            self._ip("link", "set", self._here, "up")
            self._ip("link", "set", "lo", "up", inside=True)
            self._ip("link", "set", self._there, "up", inside=True)
            self.silence(on=False)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it; the interfaces go with it."""
        self._ip("netns", "del", self.name)

    def silence(self, *, on: bool) -> None:
        """Drop everything, or nothing."""
        (ours, our_mac), (theirs, their_mac) = _SIDES.values()
        for address, mac, device, inside in (
            (theirs, their_mac, self._here, False),
            (ours, our_mac, self._there, True),
        ):
            chosen = ("lladdr", _NOWHERE if on else mac, "nud", "permanent")
            self._ip("neigh", "replace", address, *chosen, "dev", device, inside=inside)

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command that is to run in there."""
        return ("nsenter", f"--net=/run/netns/{self.name}")

    async def connect(self, address: str, port: int) -> socket.socket:
        """A connection from there. Raises ``OSError``, also after 10 s."""
        made = self.inside(socket.socket)
        made.setblocking(False)
        try:
            async with asyncio.timeout(10):
                await asyncio.get_running_loop().sock_connect(made, (address, port))
        except BaseException:
            made.close()
            raise
        return made

    def inside(self, do: Callable[[], T]) -> T:
        """Do something in there, and wait for it; in a thread, for a namespace is a thread's.

        A socket that it makes stays there, and so does a process that it starts.
        """
        done: Future[T] = Future()

        def enter() -> None:
            try:
                library = ctypes.CDLL(None, use_errno=True)
                with Path(f"/run/netns/{self.name}").open() as namespace:
                    if library.setns(namespace.fileno(), _NEW_NETWORK):
                        raise OSError(ctypes.get_errno(), "setns")  # noqa: TRY301
                done.set_result(do())
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                done.set_exception(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return done.result()

    def _ip(self, *arguments: str, inside: bool = False) -> None:
        where = ("-n", self.name) if inside else ()
        subprocess.run(["ip", *where, *arguments], check=True, capture_output=True)
