"""The protocol between an agent and its privileged helper: one packet each way, with open files.

The packets go over a socket pair that the agent inherits (``SOCK_SEQPACKET``), so no other process
can send any.
"""

from __future__ import annotations

import contextlib
import os
import socket
from array import array
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec

CHANNEL: Final = "privileged-helper"
"""The name under which an agent inherits its end."""
_PACKET: Final = 64 * 1024
"""Bytes of one packet."""
_MAX_FILES: Final = 3
_ANCILLARY: Final = socket.CMSG_SPACE(_MAX_FILES * array("i").itemsize)
"""Bytes for the descriptors of one packet."""

T = TypeVar("T", bound=msgspec.Struct)


class HelperRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on one kernel's folder.

    ``prepare``: make the folder, for the OS user of ``owner``. ``start``: run a holder in it, with
    the files that come along (`HolderFiles`). ``clean_up``: end what runs for the kernel and delete
    the folder; the lock comes along where the agent has it, so that it stays taken.
    """

    id: str
    op: Literal["prepare", "start", "clean_up"]
    kernel_id: str
    owner: str = ""


class HelperResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the request with the same ``id``: a ``problem`` of some ``kind``, or none."""

    id: str
    kind: Literal["", "forbidden", "conflict", "os"] = ""
    problem: str = ""
    errno: int = 0
    pid: int = 0
    """The holder that was started."""


def send(
    channel: socket.socket, message: HelperRequest | HelperResponse, files: Sequence[int] = ()
) -> None:
    """Send one packet without waiting.

    Raises:
        OSError: the other side is gone or does not read (``BlockingIOError``).
    """
    data = msgspec.json.encode(message)
    if files:
        socket.send_fds(channel, [data], list(files))
    else:
        channel.send(data)


def receive(channel: socket.socket, struct_type: type[T]) -> tuple[T | None, list[int]]:
    """Return the next packet, None for one that cannot be decoded, and its files, to be closed.

    Raises:
        BlockingIOError: there is no packet.
        EOFError: the other side is gone.
    """
    # Before Python 3.12 `socket.recv_fds` leaves its flags out.
    data, ancillary, flags, _ = channel.recvmsg(_PACKET, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
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
