"""The folders that kernels' OS users have among the agent's, made and moved with root's rights.

The agent owns the folders above them. Each folder is opened without following a link, and changed
through that descriptor: an agent in the wrong hands cannot lead root to another place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from relay.agent.privsep.os_users import OsUser
from relay.agent.privsep.protocol import close
from relay.errors import Conflict
from relay.kernel_folders import KernelFolder, hidden_name, kernels_folder

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KERNEL_MODE: Final = 0o3770
"""Mode of a kernel's folder: its user's, and the agent's by the group. Sticky, because
jupyter_client makes it so, and would take the setgid bit away in passing."""
_SOCKETS_MODE: Final = 0o2750
"""Mode of the folder of a user's sockets: the agent passes through."""


class UserFolders:
    """The folders of one cluster's kernels and of their users' sockets."""

    def __init__(self, state_dir: Path, cluster: str, runtime: Path, agent: OsUser) -> None:
        self._state_dir = state_dir
        self._cluster = cluster
        self._runtime = runtime
        self._agent = agent

    def kernel_folder(self, name: str) -> KernelFolder:
        """Return a kernel's folder, by its path."""
        return KernelFolder(kernels_folder(self._state_dir, self._cluster) / name)

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[int]:
        opened: list[int] = []
        try:
            opened.append(os.open(self._state_dir, _FOLDER))
            for name in (self._cluster, kernels_folder(Path(), self._cluster).name):
                opened.append(os.open(name, _FOLDER, dir_fd=opened[-1]))
            yield opened[-1]
        finally:
            close(opened)

    def names(self) -> list[str]:
        """Return the name of every kernel's folder, those that are being deleted included."""
        try:
            with self._kernels() as kernels:
                return [entry.name for entry in os.scandir(kernels)]
        except FileNotFoundError:
            return []

    def uid(self, name: str) -> int:
        """Return the uid of a kernel's folder. Raises ``OSError``."""
        with self._kernels() as kernels:
            status = os.stat(name, dir_fd=kernels, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return status.st_uid

    def make_kernel_folder(self, name: str, user: OsUser) -> None:
        """Make a kernel's folder for a user.

        Raises:
            Conflict: another user's folder has the name.
            OSError: the folder cannot be made.
        """
        with self._kernels() as kernels:
            if self._make(kernels, name, user, _KERNEL_MODE):
                return
            # A kernel that has ended may leave an empty folder.
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=kernels)
            if not self._make(kernels, name, user, _KERNEL_MODE):
                raise Conflict("This kernel id is taken.")

    def make_socket_folder(self, user: OsUser) -> None:
        """Make the folder of a user's sockets. Raises ``OSError``."""
        runtime = os.open(self._runtime, _FOLDER)
        try:
            if not self._make(runtime, str(user.uid), user, _SOCKETS_MODE):
                raise PermissionError(errno.EPERM, "the folder of sockets is another user's")
        finally:
            os.close(runtime)

    def _make(self, parent: int, name: str, user: OsUser, mode: int) -> bool:
        """Return whether there is a folder of this user now."""
        made = False
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            made = True
        folder = os.open(name, _FOLDER, dir_fd=parent)
        try:
            if made and os.fstat(folder).st_uid == 0:
                os.fchown(folder, user.uid, self._agent.gid)
                os.fchmod(folder, mode)
            return os.fstat(folder).st_uid == user.uid
        finally:
            os.close(folder)

    def hide(self, name: str) -> str:
        """Free a kernel's id and return its folder's new name. Raises ``OSError``."""
        hidden = hidden_name(name)
        with self._kernels() as kernels:
            os.rename(name, hidden, src_dir_fd=kernels, dst_dir_fd=kernels)
        return hidden

    def drop(self, name: str) -> bool:
        """Delete a kernel's folder that its holder has emptied; return whether it is gone."""
        try:
            with self._kernels() as kernels:
                os.rmdir(name, dir_fd=kernels)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True
