"""Contract of a kernel backend: where kernels run, and how messages get there and back.

Everything above this line speaks `Message`. Transport, signatures, processes and whatever else a
kind of kernel needs are known to its backend only. A backend need not have a process on this
machine, nor sockets of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from relay.bridge.messages import Message
from relay.kernel_folders import KernelRecord

MessageHandler = Callable[[Message], None]
"""Called in the event loop for each message from the kernel, in the order of its channel."""


class KernelChannel(Protocol):
    """Messages to and from one run of a kernel, from its launch to its end."""

    @property
    def is_alive(self) -> bool:
        """Whether the kernel has given a sign of life (`beat`)."""

    def send(self, message: Message) -> None:
        """Send a message; it waits in the channel for a kernel that does not listen yet."""

    def beat(self) -> None:
        """Ask for a sign of life, and take note of earlier answers; waits for nothing."""

    def close(self) -> None:
        """Hand over what has arrived, then close. Only once the kernel has ended."""


class KernelBackend(Protocol):
    """One kernel, however often it is launched; one call at a time but for `interrupt`.

    A restart is `end` with ``relaunch``, then `launch`.
    """

    @property
    def notes(self) -> Mapping[str, Any]:
        """Fields of the `KernelRecord` that the next holder needs to adopt the kernel."""

    @property
    def log_fields(self) -> Mapping[str, Any]:
        """What a log line says of the kernel besides its id, such as its pid."""

    async def launch(self, on_message: MessageHandler) -> KernelChannel:
        """Start the kernel. Raises `StartFailed` or `DiskFull`."""

    async def adopt(self, record: KernelRecord, on_message: MessageHandler) -> KernelChannel:
        """Take over the kernel that an earlier holder left, dead or alive: `poll` tells.

        Replies to what earlier holders sent arrive too, where the backend can have them.
        Raises what its launcher raises.
        """

    def forget_predecessors(self) -> None:
        """Stop waiting for replies to what earlier holders sent."""

    async def fall_back(self) -> bool:
        """End a failed launch and choose another transport for the next one, if there is one.

        Nothing happens, and false is returned, where there is none left.
        """

    async def poll(self) -> int | None:
        """None while the kernel runs, then its exit code."""

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs."""

    async def end(self, *, now: bool, relaunch: bool = False) -> None:
        """End the kernel: politely first unless ``now``. What it left behind goes too.

        ``relaunch`` keeps what another launch needs.
        """

    async def clean_up(self) -> None:
        """Prepare another launch, after the kernel has ended by itself."""

    def trim_log(self, limit: int) -> None:
        """Keep what the kernel prints itself from taking more than ``limit`` bytes of disk."""

    def log_tail(self) -> str:
        """The end of what the kernel has printed itself since its launch."""
