"""The contract of launchers: submit, watch, cancel, list.

A launcher alone knows whether a kernel has a holder: other rooms ask it, and look at no lock and no
process. Nothing here says where a holder runs, or how long it waits until it may.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from relay.config.holder import HolderConfig
from relay.kernel_folders import KernelFolder


class HolderState(enum.Enum):
    """What a launcher knows of a kernel's holder."""

    ABSENT = enum.auto()
    """There is no such kernel."""
    UNSTARTED = enum.auto()
    """The kernel was submitted, and no holder has run."""
    STARTING = enum.auto()
    """A holder is to run, or runs, and does not serve yet."""
    RUNNING = enum.auto()
    """A holder runs. It serves, or is about to, or to end."""
    LOST = enum.auto()
    """The holder has ended and the kernel has not: a `Claim` decides what becomes of it."""
    UNKNOWN = enum.auto()
    """The launcher cannot find out just now."""


class HolderStatus(NamedTuple):
    """The state of a kernel's holder."""

    state: HolderState
    reason: str = ""
    """What the holder waits for, or why nothing is known; "" where there is nothing to say."""


class Claim(Protocol):
    """The exclusive right to decide what becomes of a kernel without a holder."""

    async def resume(self, owner: str) -> None:
        """Start a holder that adopts the kernel. Raises `RelayError` and ``OSError``."""

    async def cancel(self) -> None:
        """End the kernel and free its id. Raises `RelayError` and ``OSError``."""


class Launcher(Protocol):
    """Has holders run for the kernels of one cluster."""

    def open_folders(self) -> None:
        """Make the folders that kernels' folders are in. Raises ``OSError`` and `FolderError`."""

    def list(self) -> Sequence[KernelFolder]:
        """Return every kernel that was submitted and has not ended."""

    async def submit(self, kernel_folder: KernelFolder, config: HolderConfig) -> None:
        """Have a holder run for a new kernel.

        Nothing happens where the kernel has, or had, a holder. Nothing is left where it fails. The
        launcher adds to ``config`` what its place brings along: the socket, variables, a folder.

        Raises:
            RelayError: the kernel is refused, or the launcher cannot be reached.
            OSError: the kernel's files cannot be written, or its holder cannot be run.
        """

    async def watch(
        self, kernel_folder: KernelFolder, seen: HolderStatus | None = None
    ) -> HolderStatus:
        """Return the status of a kernel's holder, once it is not ``seen`` any more.

        It may return ``seen`` again after a moment, where nothing tells of the change. It has no
        end of its own: bound it with a timeout.
        """

    def claim(self, kernel_folder: KernelFolder) -> AbstractAsyncContextManager[Claim | None]:
        """Claim a kernel that is UNSTARTED or LOST; no other agent can until the context ends.

        None for a kernel that has a holder, or is claimed, and for one whose holders are replaced
        where they run.

        Raises:
            OtherVersion: the folder is of a version that is not known here: it is to be left alone.
            OSError: the kernel is gone (``FileNotFoundError``), or cannot be claimed just now.
        """

    async def cancel(self, kernel_folder: KernelFolder) -> None:
        """End a kernel, with its holder, and free its id.

        Raises:
            RelayError: another agent has given the kernel a new holder meanwhile, or the folder is
                of another version (`OtherVersion`).
            OSError: something of it could not be ended.
        """

    def owner_matches(self, kernel_folder: KernelFolder, owner: str) -> bool:
        """Return whether a folder can hold a kernel of ``owner``, whatever its files say."""
