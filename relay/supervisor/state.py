"""The state directory of one `relay up`: its files, its lock and its status file."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec

from relay import files, kernel_folders
from relay.errors import OtherVersion
from relay.processes import StartError


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return ``$RELAY_STATE_DIR``, else ``kernel-relay`` in the XDG state directory.

    Relative paths in ``$XDG_STATE_HOME`` are ignored, as the XDG specification demands.
    """
    if chosen := environ.get("RELAY_STATE_DIR"):
        return Path(chosen).expanduser().absolute()
    xdg = Path(environ.get("XDG_STATE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".local" / "state") / "kernel-relay"


class Pids(msgspec.Struct, frozen=True, kw_only=True):
    """The running processes; a list is empty while its process is being replaced."""

    supervisor: int
    edge: tuple[int, ...]
    """The workers."""
    agents: dict[str, tuple[int, ...]]


class MetricsUrls(msgspec.Struct, frozen=True, kw_only=True):
    """URLs of the metrics; the agents' by cluster."""

    edge: str
    agents: dict[str, str]


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What clients must know of a running relay: the content of ``relay.json``."""

    https_url: str
    wss_url: str
    token: str
    ca: str
    clusters: tuple[str, ...]
    metrics: MetricsUrls
    pids: Pids


class StateFolder(msgspec.Struct, frozen=True):
    """The paths in a state directory."""

    path: Path

    @property
    def authority(self) -> tuple[Path, Path]:
        """The CA's certificate and key."""
        return self.path / "pki" / "ca.pem", self.path / "pki" / "ca.key"

    @property
    def server(self) -> tuple[Path, Path]:
        """The edge's certificate and key."""
        return self.path / "pki" / "server.pem", self.path / "pki" / "server.key"

    @property
    def ticket_keys(self) -> tuple[Path, Path]:
        """The public and the private key."""
        return self.path / "keys" / "ticket.pub", self.path / "keys" / "ticket.key"

    @property
    def tokens(self) -> Path:
        """The file with the hashes of valid tokens."""
        return self.path / "tokens.json"

    @property
    def first_token(self) -> Path:
        """The token that `relay up` shows, in clear text, so that it stays the same."""
        return self.path / "first-token"

    @property
    def configurations(self) -> Path:
        """The folder of the configurations that `relay up` writes for its processes."""
        return self.path / "run"

    @property
    def audit_log(self) -> Path:
        """The audit log, unless the configuration names another file."""
        return self.path / "audit.log"

    @property
    def status(self) -> Path:
        """``relay.json``, which exists while the relay is ready."""
        return self.path / "relay.json"

    @property
    def lock(self) -> Path:
        """The file that the running `relay up` locks; it holds the process's pid."""
        return self.path / "up.lock"

    def create(self) -> None:
        """Make the directory and its folders, for this user only.

        Raises `StartError` where that fails, and for an existing directory that is open to other
        users: restricting it could break the programs that use it.
        """
        try:
            if self.path.is_dir() and self._is_open() and not self._is_ours():
                raise StartError(
                    f"other users can access {self.path}: chmod 700, or choose another --state-dir"
                )
            for part in ("", "pki", "keys", "run"):
                files.private_folder(self.path / part)
        except (OSError, files.FolderError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise StartError(f"cannot use the state directory {self.path}: {reason}") from error

    def write_status(self, ready: Ready) -> None:
        """Replace ``relay.json`` in one step."""
        text = msgspec.json.format(msgspec.json.encode(ready), indent=2)
        files.write_atomic(self.status, text + b"\n")

    def _is_open(self) -> bool:
        return bool(self.path.stat().st_mode & 0o077)

    def _is_ours(self) -> bool:
        return self.lock.exists() or not any(self.path.iterdir())


class Lock:
    """The exclusive right to run on a state directory, held until it is closed."""

    def __init__(self, folder: StateFolder) -> None:
        """Raise `StartError`, naming the owner, where another process holds the lock."""
        self._file = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not files.try_flock(self._file):
            os.close(self._file)
            owner = lock_owner(folder)
            raise StartError(
                f"a relay is already running on {folder.path}"
                + (f": process {owner}" if owner else "")
            )
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._file, 0)
        os.close(self._file)


def lock_owner(folder: StateFolder) -> int | None:
    """Return the pid of the `relay up` that runs on the directory; None where there is none.

    The pid in the file is valid only while that process has the file open: after a SIGKILL it
    stays in the file, and may be another process's by now.
    """
    try:
        pid = int(folder.lock.read_text(encoding="ascii"))
        lock = folder.lock.stat()
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if os.path.samestat(entry.stat(), lock):
                        return pid
    except (OSError, ValueError):
        pass
    return None


def _lives(record: kernel_folders.KernelRecord) -> bool:
    return kernel_folders.process_started(record.holder_pid) == record.holder_started


def _is_adoptable(record: kernel_folders.KernelRecord) -> bool:
    pid = record.kernel_pid
    alive = pid is not None and kernel_folders.process_started(pid) == record.kernel_started
    return alive and record.adoptable


def _has_kernel(kernel_folder: kernel_folders.KernelFolder) -> bool:
    try:
        kernel_folder.check_versions()
        record = kernel_folder.read_record()
    except OtherVersion:
        # What cannot be read here may well be of one.
        return True
    except OSError:
        return False
    return record is not None and (_lives(record) or _is_adoptable(record))


def living_kernels(path: Path) -> Counter[str]:
    """Count the living kernels in a state directory, by cluster.

    A kernel whose holder has died is counted until it is adopted or ended.
    """
    found: Counter[str] = Counter()
    with contextlib.suppress(OSError), os.scandir(path) as clusters:
        for cluster in clusters:
            for kernel_folder in (
                kernel_folders.find_folders(path, cluster.name) if cluster.is_dir() else ()
            ):
                if _has_kernel(kernel_folder):
                    found[cluster.name] += 1
    return found
