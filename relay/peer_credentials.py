"""Credentials of the process at the other end of a unix socket, as the kernel states them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

_UCRED: Final = struct.Struct("iII")
CREDENTIALS_SIZE: Final = _UCRED.size
"""Bytes of ``struct ucred`` (``unix(7)``): pid, uid and gid."""


class PeerCredentials(NamedTuple):
    """A process, and the OS user that it runs as."""

    pid: int
    uid: int


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    """Return the credentials of the peer when it connected or began to listen (SO_PEERCRED)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(data)
    return PeerCredentials(pid, uid)


def sender_pid(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """Return the pid of a datagram's sender from its ancillary data (SCM_CREDENTIALS), else 0."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _UCRED.unpack(data)[0]
            return pid
    return 0
