"""One child process: spawned, watched through its notify socket, waited for.

Children are spawned with ``posix_spawn(3)``, which hands over listening sockets as descriptors 3
and up without running Python between fork and exec, and does so from the calling thread, as
``PR_SET_PDEATHSIG`` requires.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from relay.peer_credentials import CREDENTIALS_SIZE, sender_pid

_FIRST_LISTENER: Final = 3
_NOTIFY_BYTES: Final = 4096
_POLL_INTERVAL: Final = 0.05
_OF_ONE_PROCESS: Final = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID")
# A child would inherit ignored signals, down to the kernels, which then could not be interrupted:
# "relay up &" in a script ignores SIGINT, and Python itself SIGPIPE and SIGXFSZ.
_DEFAULT_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A program to run; ``listeners`` are the sockets to hand over, by name, as descriptors."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    listeners: Mapping[str, int] = {}


class Child:
    """A running process in a session of its own, which the terminal's Ctrl-C does not reach."""

    def __init__(
        self, command: Command, pid: int, channel: socket.socket, on_notify: Callable[[], None]
    ) -> None:
        """Use `start`."""
        self.command = command
        self.pid = pid
        self.ready = False
        self.workers: tuple[int, ...] = ()
        self._channel = channel
        self._on_notify = on_notify
        self._pidfd = _open_pidfd(pid)
        self._ended = False
        asyncio.get_running_loop().add_reader(channel.fileno(), self._read_notifications)

    @classmethod
    def start(cls, command: Command, on_notify: Callable[[], None]) -> Self:
        """Spawn the command; ``on_notify`` is called after each notification.

        Standard input is /dev/null; output and error are those of this process. `wait` must be
        awaited once, to its end. Raises ``OSError`` where the program cannot be run.
        """
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            channel.settimeout(0)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            # An abstract address of the kernel's choice (unix(7)), which leaves no file.
            channel.bind(b"")
            pid = _spawn(command, channel.getsockname())
        except BaseException:
            channel.close()
            raise
        return cls(command, pid, channel, on_notify)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has been waited for."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> int:
        """Wait for the end; return the exit code, negative for the signal that killed it."""
        try:
            status = await self._reap()
        finally:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._read_notifications()
            self._channel.close()
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None
        return os.waitstatus_to_exitcode(status)

    async def _reap(self) -> int:
        while True:
            status = self._status()
            if status is not None:
                self._ended = True
                return status
            if self._pidfd is None:
                await asyncio.sleep(_POLL_INTERVAL)
            else:
                await _readable(self._pidfd)

    def _status(self) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # SIGCHLD is ignored, as our parent set it: the status is lost
            return 0
        return status if pid else None

    def _read_notifications(self) -> None:
        while True:
            try:
                text, ancillary, _, _ = self._channel.recvmsg(
                    _NOTIFY_BYTES, socket.CMSG_SPACE(CREDENTIALS_SIZE)
                )
            except OSError:
                return
            # Every process of the machine can write to an abstract socket.
            if sender_pid(ancillary) == self.pid:
                self._apply(text.decode(errors="replace"))
                self._on_notify()

    def _apply(self, text: str) -> None:
        for line in text.splitlines():
            name, _, value = line.partition("=")
            if name == "READY" and value == "1":
                self.ready = True
            elif name == "X_WORKERS":
                self.workers = tuple(int(pid) for pid in value.split(",") if pid.isdecimal())


def _spawn(command: Command, address: bytes) -> int:
    environment = {k: v for k, v in command.environment.items() if k not in _OF_ONE_PROCESS}
    environment["NOTIFY_SOCKET"] = "@" + os.fsdecode(address[1:])
    if command.listeners:
        environment["LISTEN_FDS"] = str(len(command.listeners))
        environment["LISTEN_FDNAMES"] = ":".join(command.listeners)
    past = _FIRST_LISTENER + len(command.listeners)
    # Copies beyond the targets: dup2(4, 3) followed by dup2(3, 4) would hand over one socket twice.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, past) for fd in command.listeners.values()]
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()),
        *((os.POSIX_SPAWN_DUP2, fd, _FIRST_LISTENER + i) for i, fd in enumerate(copies)),
    ]
    try:
        return os.posix_spawn(
            command.argv[0],
            command.argv,
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    finally:
        for copy in copies:
            os.close(copy)


def _inheritable() -> list[int]:
    """Find descriptors beyond the standard three that our own parent left inheritable."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        descriptor = int(entry.name)
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
            if descriptor >= _FIRST_LISTENER and os.get_inheritable(descriptor):
                found.append(descriptor)
    return found


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # Linux before 5.3
        return None


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)
