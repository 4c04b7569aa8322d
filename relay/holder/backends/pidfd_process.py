"""A kernel process that another holder launched: no child of this one, held by its pidfd.

Such a process cannot be waited for, so its exit code is nobody's to know; init collects it. A
pidfd names one process for good: unlike a pid it never means another one later (``pidfd_open(2)``).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from typing import Final, Self

from relay.kernel_folders import process_started

UNKNOWN_EXIT: Final = 255
"""Stands for the exit code of a process that was not our child."""
_PROCESS_GROUP: Final = 4
"""``PIDFD_SIGNAL_PROCESS_GROUP`` of ``pidfd_send_signal(2)``, since Linux 6.9."""


class PidfdProcess:
    """Acts as the ``subprocess.Popen`` that jupyter_client's local provisioner works with.

    Signals go to the process's whole group, which it leads, as that provisioner does it.
    """

    stdin = stdout = stderr = None

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    @classmethod
    def find(cls, pid: int, started: int) -> Self | None:
        """The process with this pid and start time (ticks since boot), if it still runs."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return None
        # Looked at after it was opened: if it is the right one now, the descriptor is for it.
        if process_started(pid) != started:
            os.close(descriptor)
            return None
        return cls(pid, descriptor)

    def poll(self) -> int | None:
        """None while it runs, then `UNKNOWN_EXIT`."""
        if self.returncode is None and self._poll.poll(0):
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, ``timeout`` seconds at most. Raises ``subprocess.TimeoutExpired``."""
        if self.returncode is None:
            if not self._poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self._end()
        return UNKNOWN_EXIT

    def send_signal(self, number: int) -> None:
        """Signal the process group; nothing happens where the process has ended."""
        if self.poll() is not None:
            return
        try:
            signal.pidfd_send_signal(self._descriptor, number, None, _PROCESS_GROUP)
        except ProcessLookupError:
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # An older Linux. The leader has just been seen alive, so the group is still its own.
            os.killpg(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM for the group."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL for the group."""
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode = UNKNOWN_EXIT
        self._poll.unregister(self._descriptor)
        os.close(self._descriptor)
