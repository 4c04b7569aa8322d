"""A folder is the registry: where a kernel's files are and who owns them.

``STATE_DIR/<cluster>/kernels/<kernel_id>/`` holds everything about one kernel. Whoever has the
kernel's sockets holds an exclusive ``flock`` on the folder's lock file; nobody else may act as
its holder. Unix sockets live in the runtime folder, whose paths are short enough for them
(``sun_path`` takes 107 bytes).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from relay.auth.ownership import Grant

_HIDDEN: Final = "."
"""Begins the names of folders that are being deleted: no kernel id begins like that."""
_DISK_TROUBLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
_SOCKET_PATH_BYTES: Final = 107
_SOCKET_NAME_BYTES: Final = len("/0123456789ab.sock")


KernelState = Literal["starting", "ready", "dead", "ending"]
"""``ready`` from the moment it was heard first, ``dead`` when its restarts are used up."""


class RegistryError(Exception):
    """The state or runtime folder cannot be used; the message says why."""


class KernelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a holder notes of itself and its kernel, for agents and for its successor.

    ``*_started`` is the process's start time in clock ticks since boot (``proc(5)``, field 22):
    a pid together with it names one process for good.
    """

    holder_pid: int
    holder_started: int
    epoch: str
    state: KernelState = "starting"
    identities: list[str] = []
    """Of ZMQ sockets: the holder's own first, then those under which dead ones have asked for
    something that may still be answered. Whoever bears one gets the replies."""
    kernel_pid: int | None = None
    """The kernel's process, where it is one on this machine."""
    kernel_started: int | None = None
    kernel_session: str = ""
    """What the kernel calls its own session in its messages' headers."""
    kernelspec: dict[str, Any] = {}
    """The kernelspec as it was launched, its parameters filled in."""
    provisioner: dict[str, Any] | None = None
    """What jupyter_client's ``get_provisioner_info`` gave; None before the launch."""

    @property
    def adoptable(self) -> bool:
        """Whether another holder may take the kernel over: it was up, and nobody is ending it."""
        return self.state in {"ready", "dead"} and self.provisioner is not None


class HolderAddress(msgspec.Struct, frozen=True):
    """The part of a ``HolderConfig`` that agents of every version read."""

    socket: Path
    owner: str
    """The principal whose kernel it is."""
    name: str
    """The kernelspec's name."""


Grants = dict[str, Grant]
"""What others may do with a kernel, by principal."""


class Place(msgspec.Struct, frozen=True):
    """One kernel's folder."""

    folder: Path

    @property
    def kernel_id(self) -> str:
        """The folder's name is the kernel's id."""
        return self.folder.name

    @property
    def request(self) -> Path:
        """What the agent asked for (a ``HolderConfig``)."""
        return self.folder / "request.json"

    @property
    def record(self) -> Path:
        """What the holder notes (a `KernelRecord`)."""
        return self.folder / "record.json"

    @property
    def replacements(self) -> Path:
        """When holders that died were replaced: a list of seconds since the machine started."""
        return self.folder / "replacements.json"

    @property
    def requests(self) -> Path:
        """What the kernel has been asked and has not finished (``holder/requests.py``)."""
        return self.folder / "requests.log"

    @property
    def journal(self) -> Path:
        """The folder of the journal's segments."""
        return self.folder / "journal"

    @property
    def sessions(self) -> Path:
        """What the holder remembers of its clients (``holder/memory.py``)."""
        return self.folder / "sessions.jsonl"

    @property
    def kernel_log(self) -> Path:
        """The kernel process's own stdout and stderr."""
        return self.folder / "kernel.log"

    @property
    def holder_log(self) -> Path:
        """The holder's log."""
        return self.folder / "holder.log"

    @property
    def grants(self) -> Path:
        """Whom the kernel's owner lets in (`Grants`)."""
        return self.folder / "grants.json"

    @property
    def connection_file(self) -> Path:
        """Jupyter's connection file."""
        return self.folder / "connection.json"

    def exists(self) -> bool:
        """Whether anything is noted of this kernel."""
        return self.request.exists()

    def try_lock(self) -> int | None:
        """Take the folder's lock: a file descriptor to keep open, or None where it is taken."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_flock(descriptor):
            os.close(descriptor)
            return None
        if not self._is_ours(descriptor):
            # The folder was removed in between, and another may stand in its place by now.
            os.close(descriptor)
            raise FileNotFoundError(self.folder)
        return descriptor

    def _is_ours(self, lock: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(lock), (self.folder / "lock").stat())
        return False

    def read_address(self) -> HolderAddress | None:
        """Where the holder serves, or None where that is not noted (yet)."""
        try:
            return msgspec.json.decode(
                self.request.read_bytes(), type=HolderAddress, dec_hook=lambda _, text: Path(text)
            )
        except (OSError, msgspec.MsgspecError):
            return None

    def read_record(self) -> KernelRecord | None:
        """The holder's note, or None where there is none (yet), or nothing can be made of it.

        Raises ``OSError`` where it cannot be read just now: what it tells of may be running.
        """
        try:
            return msgspec.json.decode(self.record.read_bytes(), type=KernelRecord)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def is_ending(self) -> bool:
        """Whether the kernel's end has begun, as far as its holder has noted."""
        try:
            record = self.read_record()
        except OSError:
            return False
        return record is not None and record.state == "ending"

    def read_grants(self) -> Grants:
        """Whom the owner lets in; nobody where that cannot be read."""
        try:
            return msgspec.json.decode(self.grants.read_bytes(), type=Grants)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}


def kernels_folder(state_dir: Path, cluster: str) -> Path:
    """Where a cluster's kernels are."""
    return state_dir / cluster / "kernels"


def places(state_dir: Path, cluster: str) -> list[Place]:
    """Every kernel folder of a cluster."""
    try:
        with os.scandir(kernels_folder(state_dir, cluster)) as entries:
            return [
                Place(Path(entry.path))
                for entry in entries
                if entry.is_dir() and not entry.name.startswith(_HIDDEN)
            ]
    except FileNotFoundError:
        return []


def remove(place: Place) -> None:
    """Delete a kernel's folder; its id is free from the first moment on."""
    doomed = place.folder.with_name(f"{_HIDDEN}{place.kernel_id}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        place.folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(state_dir: Path, cluster: str) -> None:
    """Delete what processes that died in `remove` left behind."""
    for folder in kernels_folder(state_dir, cluster).glob(f"{_HIDDEN}*"):
        shutil.rmtree(folder, ignore_errors=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - opens a descriptor
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_disk_trouble(error: OSError) -> bool:
    """Whether a file could not be written because of the disk: full, broken, read-only."""
    return error.errno in _DISK_TROUBLE


def _write_new(path: Path, data: bytes) -> None:
    """Create a file in one step, whole. Raises ``FileExistsError``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o600)
        path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def first_come(path: Path, text: str) -> str:
    """What a file says, written by whoever came first: ``text`` where that is us."""
    try:
        _write_new(path, text.encode(errors="surrogatepass"))
    except FileExistsError:
        return path.read_bytes().decode(errors="surrogatepass")
    return text


def try_flock(descriptor: int) -> bool:
    """Lock an open file for this process alone; false where another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def private_folder(path: Path) -> Path:
    """Make a folder for this user only. Raises `RegistryError` where somebody else could write."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        msg = f"{path} is not a folder of this user"
        raise RegistryError(msg)
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def runtime_folder(state_dir: Path, setting: str | None) -> Path:
    """Where unix sockets go: the setting, the XDG runtime folder, or a short one of our own.

    The last is noted in the state folder, so that all processes of that state agree on it.
    """
    if setting is not None:
        return _short_enough(private_folder(Path(setting)))
    noted = state_dir / "runtime"
    with contextlib.suppress(OSError):
        return _short_enough(private_folder(Path(noted.read_text().strip())))
    private_folder(state_dir)
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    shared = bool(xdg) and os.access(xdg, os.W_OK)
    if shared:
        folder = private_folder(Path(xdg) / "kernel-relay")
    else:
        folder = Path(tempfile.mkdtemp(prefix="relay-"))
    try:
        # Whoever comes second takes the folder of whoever came first, and never reads half a note.
        _write_new(noted, f"{folder}\n".encode())
    except FileExistsError:
        if not shared:
            # Ours alone, and of no use now.
            folder.rmdir()
        return _short_enough(private_folder(Path(noted.read_text().strip())))
    return _short_enough(folder)


def _short_enough(folder: Path) -> Path:
    if len(os.fsencode(folder)) + _SOCKET_NAME_BYTES > _SOCKET_PATH_BYTES:
        msg = f"runtime_dir {folder} is too long for unix sockets, choose a shorter one"
        raise RegistryError(msg)
    return folder


def socket_name() -> str:
    """A new name for a socket in the runtime folder: 12 hex digits."""
    return secrets.token_hex(6)


def process_started(pid: int) -> int | None:
    """A process's start time in clock ticks since boot, or None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The command name stands in parentheses and may hold anything; fields count from behind it.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])
