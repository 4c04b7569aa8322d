"""TCP ports: listening, reserving, and finding the process that uses one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from typing import Final

from relay.processes.errors import StartError

BACKLOG: Final = 1024
_RETRY_INTERVAL: Final = 0.05
_TCP_LISTEN: Final = "0A"
_COMMAND_SHOWN: Final = 120


class PortInUse(StartError):
    """Another process listens on the port; the message names it where that is known."""


def listen(host: str, port: int) -> socket.socket:
    """Open a listening TCP socket; port 0 takes a free one.

    It is not inherited, does not block, and has ``SO_REUSEADDR``.

    Raises:
        PortInUse: another process listens there.
        StartError: the address cannot be used.
    """
    family, address = _resolve(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # SO_REUSEADDR lets two sockets bind one address; the second one fails here.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _refusal(host, port, error) from error
    listener.settimeout(0)
    return listener


def listen_with_retry(host: str, port: int, *, timeout: float = 2.0) -> socket.socket:
    """Listen as `listen`, but retry for ``timeout`` seconds: a killed predecessor may still exist.

    Blocks; for the start, before an event loop runs.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return listen(host, port)
        except PortInUse:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_RETRY_INTERVAL)


def reserve(host: str) -> socket.socket:
    """Reserve a free port without listening on it, for as long as the socket is open.

    A child that binds with ``SO_REUSEADDR`` gets the port, also after each restart; no process that
    asks for a free port gets it.
    """
    family, address = _resolve(host, 0)
    reservation = socket.socket(family, socket.SOCK_STREAM)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(address)
    return reservation


def user_of(port: int) -> str:
    """Describe the process that listens on a TCP port: ``process 12 (nginx -g ...)``, if known."""
    inodes = _listening_inodes(port)
    if not inodes:
        return "a process that /proc does not show"
    for pid in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        if inodes & _socket_inodes(pid):
            return f"process {pid} ({_command(pid)})"
    return "a process of another user"


def _resolve(host: str, port: int) -> tuple[int, tuple[str, int] | tuple[str, int, int, int]]:
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"cannot listen on {host!r}: no such host") from error
    family, _, _, _, address = found[0]
    return family, address  # type: ignore[return-value]  # no bytes form for TCP


def _refusal(host: str, port: int, error: OSError) -> StartError:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"port {port} on {host} is in use by {user_of(port)}")
    return StartError(f"cannot listen on {host} port {port}: {error.strerror}")


def _listening_inodes(port: int) -> set[str]:
    """Return inodes of sockets that listen on the port at any address (``proc(5)``, net/tcp)."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    # Processes may end meanwhile, and those of other users are not accessible.
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found.add(str(Path(entry.path).readlink()))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        raw = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").strip()
        text = "".join(c if c.isprintable() else "?" for c in raw.decode(errors="replace"))
        return text if len(text) <= _COMMAND_SHOWN else text[: _COMMAND_SHOWN - 1] + "…"
    return "?"
