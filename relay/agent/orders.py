"""What an agent and its launcher say to each other: one packet each way, with open files.

Over a socket pair that the agent inherits (``SOCK_SEQPACKET``), so nobody else can say anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec

CHANNEL: Final = "launcher"
"""The name under which an agent inherits its end."""
_PACKET: Final = 64 * 1024
"""Bytes of one packet."""
_FILES: Final = 2

T = TypeVar("T", bound=msgspec.Struct)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent wants done with one kernel's folder.

    ``prepare``: make it, for the OS user of ``owner``. ``start``: run a holder in it, with the
    lock and the log that come along. ``bury``: end what is left of it, with the lock taken.
    """

    id: str
    op: Literal["prepare", "start", "bury"]
    kernel_id: str
    owner: str = ""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order: a ``problem`` of the ``kind`` named, or none."""

    id: str
    kind: Literal["", "forbidden", "conflict", "os"] = ""
    problem: str = ""
    errno: int = 0
    pid: int = 0
    """Of the holder that was started."""


def send(channel: socket.socket, message: Order | Done, files: Sequence[int] = ()) -> None:
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
    data, files, _, _ = socket.recv_fds(channel, _PACKET, _FILES, socket.MSG_CMSG_CLOEXEC)
    if not data:
        close(files)
        raise EOFError
    try:
        return msgspec.json.decode(data, type=struct_type), files
    except (msgspec.MsgspecError, UnicodeDecodeError):
        close(files)
        return None, []


def close(files: Sequence[int]) -> None:
    """Close files that came with a packet."""
    for each in files:
        with contextlib.suppress(OSError):
            os.close(each)
