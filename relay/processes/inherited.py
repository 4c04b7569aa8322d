"""What a parent hands down to a process: its lifetime, a notify socket, listening sockets.

The protocols are systemd's, so that the same programs run under systemd: sd_notify(3) for
readiness, sd_listen_fds(3) for sockets. Each variable is removed from the environment once it
is read: otherwise a grandchild would notify or listen in this process's place.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import signal
import socket
import sys
from typing import Final

from relay.processes.errors import StartError

_PR_SET_PDEATHSIG: Final = 1
_FIRST_LISTENER: Final = 3


def die_with_parent(expected: int) -> None:
    """Have the kernel kill this process with SIGKILL when its parent ends (``prctl(2)``).

    ``expected`` is the pid of that parent. If it has ended already, this process exits, since the
    signal is only sent for a later death. The signal is sent when the *thread* that forked ends, so
    parents fork from their main thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != expected:
        sys.exit(f"relay: the parent, process {expected}, has ended")


@functools.cache
def claim_notify_socket() -> str:
    """Take ``$NOTIFY_SOCKET`` out of the environment; "" where it is not set.

    Call it before the first child is spawned. Later calls return the same value.
    """
    return os.environ.pop("NOTIFY_SOCKET", "")


def notify(text: str) -> bool:
    r"""Send lines to the supervisor, such as ``READY=1`` or ``X_WORKERS=12,13``, joined by ``\n``.

    Returns whether they were sent. Never raises, since a process works without a supervisor too.
    """
    address = claim_notify_socket()
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(0)
        try:
            channel.sendto(text.encode(), address)
        except OSError:
            return False
    return True


def inherited_channel(name: str) -> socket.socket:
    """Take over the one socket of ``$LISTEN_FDS``, which must have this name and be connected.

    It does not block and is not inherited any further. Raises `StartError` without such a socket.
    """
    if (os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_FDNAMES", "")) != ("1", name):
        raise StartError(f"this program can only be started by its {name}")
    try:
        fcntl.fcntl(_FIRST_LISTENER, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        channel = socket.socket(fileno=_FIRST_LISTENER)
    except OSError as error:
        raise StartError(f"LISTEN_FDS: descriptor 3 is not a socket: {error.strerror}") from error
    channel.settimeout(0)
    return channel


def inherited_listeners() -> dict[str, socket.socket]:
    """Take over the listening sockets of ``$LISTEN_FDS``, by their ``$LISTEN_FDNAMES``.

    Empty where there are none. ``$LISTEN_PID`` is checked if it is set; the relay's own parents do
    not know the pid before the exec and leave it out. The sockets do not block and are not
    inherited any further. Raises `StartError` where the variables contradict each other.
    """
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    pid = os.environ.pop("LISTEN_PID", "")
    if not count or (pid and pid != str(os.getpid())):
        return {}
    if count != str(len(names)) or len(set(names)) != len(names) or not all(names):
        raise StartError(f"LISTEN_FDS={count} needs as many different names in LISTEN_FDNAMES")
    return {name: _adopt(_FIRST_LISTENER + index, name) for index, name in enumerate(names)}


def _adopt(descriptor: int, name: str) -> socket.socket:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        listener = socket.socket(fileno=descriptor)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise StartError(
            f"LISTEN_FDS: descriptor {descriptor} ({name}) is not a socket: {error.strerror}"
        ) from error
    if not listening:
        listener.close()
        raise StartError(f"LISTEN_FDS: descriptor {descriptor} ({name}) does not listen")
    listener.settimeout(0)
    return listener
