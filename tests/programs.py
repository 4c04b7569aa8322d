"""Small real programs for tests of whatever runs processes: plain Python, quick to start."""

from __future__ import annotations

import sys

NOTIFY = """
import os, signal, socket, sys, time
def notify(text):
    address = os.environ["NOTIFY_SOCKET"].replace("@", chr(0), 1)
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(text.encode(), address)
"""

READY = NOTIFY + "notify('READY=1'); signal.pause()"
"""Says that it is ready and waits to be told to end."""

STUBBORN = (
    NOTIFY
    + "signal.signal(signal.SIGTERM, signal.SIG_IGN); notify('READY=1')\n"
    + ("while True: signal.pause()")
)
"""Ready, and deaf to SIGTERM."""

MORTAL = NOTIFY + "notify('READY=1'); sys.exit(3)"
"""Ready for a moment."""


def python(source: str, *arguments: str) -> tuple[str, ...]:
    """The argv that runs ``source`` without site packages."""
    return (sys.executable, "-I", "-S", "-c", source, *arguments)
