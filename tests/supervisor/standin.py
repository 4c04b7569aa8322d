"""Stands in for `relay edge` and `relay agent`: a real process with their manners and no content.

    standin.py relay edge --config FILE --die-with-parent PID

Environment: ``STANDIN_LOG`` is a file to append ``<name> <what>`` lines to; ``STANDIN_EXIT`` is
``<name>=<code>`` for who exits at once; ``STANDIN_STUBBORN`` makes everybody deaf to SIGTERM.

Imports nothing of ours, so that it is there at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType


def die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit(1)


def notify(text: str) -> None:
    address = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(text.encode(), address)


def note(what: str) -> None:
    if path := os.environ.get("STANDIN_LOG"):
        with Path(path).open("a") as file:
            file.write(f"{NAME} {what}\n")


def worker(parent: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)
    while True:
        signal.pause()


def end(_number: int, _frame: FrameType | None) -> None:
    note("stopped")
    sys.exit(0)


NAME = Path(sys.argv[sys.argv.index("--config") + 1]).stem
die_with_parent(int(sys.argv[sys.argv.index("--die-with-parent") + 1]))
name, _, code = os.environ.get("STANDIN_EXIT", "").partition("=")
if name == NAME:
    sys.exit(int(code))
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("STANDIN_STUBBORN") else end)
note("started")
if sys.argv[1:3] == ["relay", "edge"]:
    assert os.environ["LISTEN_FDNAMES"] == "https:wss"
    for descriptor in (3, 4):
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    notify("X_WORKERS=" + ",".join(str(worker(os.getpid())) for _ in range(2)))
notify("READY=1")
while True:
    signal.pause()
