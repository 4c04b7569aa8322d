"""What an agent and its launcher say to each other: one packet each way, with open files.

Over a socket pair that the agent inherits (``SOCK_SEQPACKET``), so nobody else can say anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
from array import array
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec

CHANNEL: Final = "launcher"
"""The name under which an agent inherits its end."""
_PACKET: Final = 64 * 1024
"""Bytes of one packet."""
_ROOM: Final = socket.CMSG_SPACE(2 * array("i").itemsize)
"""Bytes for two files."""

T = TypeVar("T", bound=msgspec.Struct)


class HelperRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent wants done with one kernel's folder.

    ``prepare``: make it, for the OS user of ``owner``. ``start``: run a holder in it, with the
    lock and the log that come along. ``bury``: end what is left of it, with the lock taken.
    """

    id: str
    op: Literal["prepare", "start", "bury"]
    kernel_id: str
    owner: str = ""


class HelperResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order: a ``problem`` of the ``kind`` named, or none."""

    id: str
    kind: Literal["", "forbidden", "conflict", "os"] = ""
    problem: str = ""
    errno: int = 0
    pid: int = 0
    """Of the holder that was started."""


def send(
    channel: socket.socket, message: HelperRequest | HelperResponse, files: Sequence[int] = ()
) -> None:
    """Send one packet, at once. Raises ``OSError``, also where the other side does not read."""
    data = msgspec.json.encode(message)
    if files:
        socket.send_fds(channel, [data], list(files))
    else:
        channel.send(data)


def receive(channel: socket.socket, struct_type: type[T]) -> tuple[T | None, list[int]]:
    """The next packet and its files, which are to be closed; None for what is not understood.

    Raises ``BlockingIOError`` where there is none, ``EOFError`` at the end.
    """
    # Before Python 3.12 `socket.recv_fds` leaves its flags out.
    data, ancillary, flags, _ = channel.recvmsg(_PACKET, _ROOM, socket.MSG_CMSG_CLOEXEC)
    files = [each for found in ancillary for each in _files(*found)]
    if not data:
        close(files)
        raise EOFError
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        close(files)
        return None, []
    try:
        return msgspec.json.decode(data, type=struct_type), files
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        close(files)
        return None, []


def _files(level: int, kind: int, data: bytes) -> list[int]:
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return []
    files = array("i")
    files.frombytes(data[: len(data) - len(data) % files.itemsize])
    return list(files)


def close(files: Sequence[int]) -> None:
    """Close files that came with a packet."""
    for each in files:
        with contextlib.suppress(OSError):
            os.close(each)
