"""Kernels' folders are the registry: where a kernel's files are and which process owns them.

``STATE_DIR/<cluster>/kernels/<kernel_id>/`` holds everything about one kernel. The process that has
the kernel's sockets holds an exclusive ``flock`` on the folder's lock file; no other may act as
its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from relay.auth.ownership import Grant
from relay.bridge.versions import FIRST, FOLDER, JOURNAL
from relay.errors import OtherVersion
from relay.files import (
    open_regular,
    read_regular,
    read_struct,
    try_flock,
)

_HIDDEN: Final = "."
"""The first character of the name of a folder that is being deleted: no kernel id has it."""

KernelState = Literal["starting", "ready", "dead", "ending"]
"""``ready`` once the kernel has answered, ``dead`` when its restarts are used up."""


class KernelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A holder's note of itself and its kernel, for agents and for the next holder.

    ``*_started`` is the process's start time in clock ticks since boot (``proc(5)``, field 22):
    a pid together with it names one process for good.
    """

    version: int = FOLDER.writes
    """Of the folder's files."""
    journal: int = JOURNAL.writes
    """The journal's version. To be noted before anything of another version is in the journal."""
    holder_pid: int
    holder_started: int
    epoch: str
    state: KernelState = "starting"
    identities: list[str] = []
    """Identities of ZMQ sockets: the holder's own first, then those under which dead holders have
    sent requests that may still be answered. A socket that bears one gets the replies."""
    kernel_pid: int | None = None
    """The kernel's process, where it is one on this machine."""
    kernel_started: int | None = None
    kernel_session: str = ""
    """The ``session`` in the headers of the kernel's own messages."""
    kernelspec: dict[str, Any] = {}
    """The kernelspec as it was launched, its parameters filled in."""
    provisioner: dict[str, Any] | None = None
    """What jupyter_client's ``get_provisioner_info`` gave; None before the launch."""

    @property
    def adoptable(self) -> bool:
        """Whether another holder may adopt the kernel: it was up, and is not being ended."""
        return self.state in {"ready", "dead"} and self.provisioner is not None


class _Versions(msgspec.Struct, frozen=True):
    """The part of ``request.json`` and ``record.json`` that all versions have."""

    version: int = FIRST
    journal: int = FIRST


class HolderAddress(msgspec.Struct, frozen=True):
    """The part of a ``HolderConfig`` that agents of every version read."""

    socket: Path
    owner: str
    """The principal whose kernel it is."""
    name: str
    """The kernelspec's name."""


Grants = dict[str, Grant]
"""What others may do with a kernel, by principal."""


class _Child:
    """A path in a kernel's folder, by its name there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: KernelFolder, owner: type[KernelFolder]) -> Path:
        return folder.path / self._name


class KernelFolder(msgspec.Struct, frozen=True):
    """One kernel's folder."""

    path: Path

    request = _Child("request.json")
    """The agent's request for the kernel (a ``HolderConfig``)."""
    record = _Child("record.json")
    """The holder's note (a `KernelRecord`)."""
    replacements = _Child("replacements.json")
    """When holders that died were replaced: a list of seconds since the machine started."""
    requests = _Child("requests.log")
    """Requests that the kernel has not finished (``holder/sessions/requests.py``)."""
    journal = _Child("journal")
    """The folder of the journal's segments."""
    sessions = _Child("sessions.jsonl")
    """The sessions of the holder's clients (``holder/sessions/store.py``)."""
    kernel_log = _Child("kernel.log")
    """The kernel process's own stdout and stderr."""
    holder_log = _Child("holder.log")
    """The holder's log."""
    grants = _Child("grants.json")
    """What the kernel's owner grants to others (`Grants`)."""
    connection_file = _Child("connection.json")
    """Jupyter's connection file."""
    _lock = _Child("lock")

    @property
    def kernel_id(self) -> str:
        """The folder's name is the kernel's id."""
        return self.path.name

    @property
    def uid(self) -> int:
        """The uid of the folder's OS user. Raises ``OSError``."""
        return self.path.lstat().st_uid

    def exists(self) -> bool:
        """Return whether a kernel has been asked for in this folder."""
        return self.request.exists()

    def check_versions(self) -> None:
        """Return where this code reads the folder's files and its journal.

        Raises:
            OtherVersion: it does not: the folder is to be left as it is.
            OSError: that cannot be found out just now.
        """
        for path in (self.request, self.record):
            noted = read_struct(path, _Versions) or _Versions()
            FOLDER.check(noted.version, "kernel's folder", "relay")
            JOURNAL.check(noted.journal, "kernel's folder", "relay")

    def is_understood(self) -> bool:
        """Return whether the folder, as far as can be read, is of a version that is known here."""
        try:
            self.check_versions()
        except OtherVersion:
            return False
        except OSError:
            pass
        return True

    def try_lock(self) -> int | None:
        """Take the folder's lock: return a descriptor to keep open, or None where it is taken.

        A process that has the lock may change everything in the folder, and delete it.

        Raises:
            OtherVersion: as `check_versions`.
            OSError: the folder is gone (``FileNotFoundError``), or cannot be locked just now.
        """
        try:
            # Linux may refuse O_CREAT for another user's file that is there (`proc(5)`,
            # protected_regular).
            descriptor = open_regular(self._lock, os.O_RDWR)
        except FileNotFoundError:
            descriptor = open_regular(self._lock, os.O_RDWR | os.O_CREAT)
        if not try_flock(descriptor):
            os.close(descriptor)
            return None
        if not self._is_ours(descriptor):
            # The folder was removed in between, and another may stand in its place by now.
            os.close(descriptor)
            raise FileNotFoundError(self.path)
        try:
            self.check_versions()
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def is_locked(self) -> bool:
        """Return whether a process has the folder's lock. Raises ``OSError``.

        The look itself shares the lock with other looks: they do not disturb each other.
        """
        try:
            descriptor = open_regular(self._lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _is_ours(self, lock: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(lock), self._lock.lstat())
        return False

    def read_address(self) -> HolderAddress | None:
        """Return where the holder serves, or None where that is not noted (yet)."""
        try:
            return msgspec.json.decode(
                read_regular(self.request), type=HolderAddress, dec_hook=_socket_path
            )
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def read_record(self) -> KernelRecord | None:
        """Return the holder's note, or None where there is none (yet) or it cannot be decoded.

        Raises ``OSError`` where it cannot be read just now: what it names may be running.
        """
        return read_struct(self.record, KernelRecord)

    def clear(self) -> None:
        """Delete what is in the folder, its lock last: a process that then gets it finds nothing.

        For a user who may not delete the folder itself, since it is among other users' folders.
        """
        for entry in list(self.path.iterdir()):
            if entry == self._lock:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)

    def is_ending(self) -> bool:
        """Return whether the kernel's end has begun, as far as its holder has noted."""
        try:
            record = self.read_record()
        except OSError:
            return False
        return record is not None and record.state == "ending"

    def read_grants(self) -> Grants:
        """Return what the owner grants to others; nothing where that cannot be read."""
        try:
            return read_struct(self.grants, Grants) or {}
        except OSError:
            return {}


def _socket_path(_: type, text: object) -> Path:
    if not isinstance(text, str) or "\0" in text:
        raise ValueError("no path")
    return Path(text)


def kernels_folder(state_dir: Path, cluster: str) -> Path:
    """Return the folder of a cluster's kernels."""
    return state_dir / cluster / "kernels"


def find_folders(state_dir: Path, cluster: str) -> list[KernelFolder]:
    """Return every kernel folder of a cluster."""
    try:
        with os.scandir(kernels_folder(state_dir, cluster)) as entries:
            return [
                KernelFolder(Path(entry.path))
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name)
            ]
    except FileNotFoundError:
        return []


def remove(kernel_folder: KernelFolder) -> None:
    """Delete a kernel's folder; its id is free from the first step on."""
    doomed = kernel_folder.path.with_name(hidden_name(kernel_folder.kernel_id))
    try:
        kernel_folder.path.rename(doomed)
    except PermissionError:
        # The folder that it is in is another user's, who deletes it once it is empty.
        with contextlib.suppress(OSError):
            kernel_folder.clear()
    except OSError:
        return
    else:
        shutil.rmtree(doomed, ignore_errors=True)


def hidden_name(kernel_id: str) -> str:
    """Return a new name for a kernel's folder that is being deleted."""
    return f"{_HIDDEN}{kernel_id}.{secrets.token_hex(4)}"


def is_hidden(name: str) -> bool:
    """Return whether a kernel's folder of that name is being deleted."""
    return name.startswith(_HIDDEN)


def sweep(state_dir: Path, cluster: str) -> None:
    """Delete what processes that died in `remove` left behind."""
    for folder in kernels_folder(state_dir, cluster).glob(f"{_HIDDEN}*"):
        shutil.rmtree(folder, ignore_errors=True)


def process_started(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot, or None for no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The command name stands in parentheses and may hold anything; fields count from behind it.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])
