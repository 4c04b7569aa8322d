"""Files that are written in one step and read with care; file locks and private folders.

A reader finds a written file complete or not at all. A file to read may be in a folder of another
user, who can replace it by a link, a pipe or anything else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

TRAVERSABLE: Final = 0o711
"""Mode of a folder that other users may pass through, but not list."""
_DISK_TROUBLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
_LARGEST_FILE: Final = 16 * 1024 * 1024
"""Bytes of the largest file that is read as a whole."""
_NOT_PLAIN: Final = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EISDIR, errno.ENOTDIR})


class FolderError(Exception):
    """A folder cannot be used; the message gives the reason."""


class NotRegularFile(OSError):
    """The path is not a regular file, or not one that this process may read."""


_NOTHING: Final = (
    FileNotFoundError,
    NotRegularFile,
    msgspec.MsgspecError,
    UnicodeDecodeError,
    RecursionError,
)
"""Exceptions on reading a file that is absent or damaged."""


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file, without following a link or waiting for a pipe.

    A file that ``flags`` create is for this user only. Returns a descriptor that the caller closes.

    Raises:
        NotRegularFile: the path is something else, or this process may not read it.
        OSError: the file cannot be opened.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise NotRegularFile(error.errno, error.strerror, str(path)) from error
        raise
    status = os.fstat(descriptor)
    # A hard link may be a second name of a file that its maker could not write to.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise NotRegularFile(errno.EINVAL, "not a plain file", str(path))
    return descriptor


def read_regular(path: Path) -> bytes:
    """Read the whole of a file.

    Raises:
        NotRegularFile: as `open_regular`, and for a file over 16 MiB.
        OSError: the file cannot be read.
    """
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise NotRegularFile(errno.EINVAL, f"over {_LARGEST_FILE} bytes", str(path))
    return data


def read_tail(path: Path, limit: int) -> bytes:
    """Read the last ``limit`` bytes of a file; raises as `open_regular`."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - limit, 0))
        return file.read(limit)


def read_struct(path: Path, struct_type: type[T]) -> T | None:
    """Read a struct from a JSON file; None where the file is absent or damaged.

    Raises ``OSError`` where the file may be there but cannot be read just now.
    """
    try:
        return msgspec.json.decode(read_regular(path), type=struct_type)
    except _NOTHING:
        return None


def write_atomic(path: Path, data: bytes, owner: tuple[int, int] | None = None) -> None:
    """Replace a file in one step, with mode 0600 in every folder, whatever mode the file had.

    ``owner``: the uid and gid that the file is given to; None keeps this process's. Raises
    ``OSError``.
    """
    _replace(path, data, 0o600, owner)


def write_shared(path: Path, data: bytes) -> None:
    """Replace a file in one step for every user who can enter its folder.

    In a kernel's folder that another OS user shares with the agent (``launch_as``), both read
    what either writes. A folder that its group cannot enter gets a file of mode 0600. Raises
    ``OSError``.
    """
    shared = path.parent.stat().st_mode & stat.S_IXGRP
    _replace(path, data, 0o644 if shared else 0o600)


def _replace(path: Path, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(descriptor, mode)  # the umask has no say
        with open(descriptor, "wb") as file:  # noqa: PTH123 - opens a descriptor
            if owner is not None:
                os.fchown(descriptor, *owner)
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_disk_error(error: OSError) -> bool:
    """Whether a write failed because of the disk: full, broken or read-only."""
    return error.errno in _DISK_TROUBLE


def write_new(path: Path, data: bytes) -> None:
    """Create a file in one step. Raises ``FileExistsError``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o600)
        path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def create_or_read(path: Path, text: str) -> str:
    """Create a file with ``text`` unless it exists, and return the file's content."""
    try:
        write_new(path, text.encode(errors="surrogatepass"))
    except FileExistsError:
        return path.read_bytes().decode(errors="surrogatepass")
    return text


def try_flock(descriptor: int) -> bool:
    """Lock an open file exclusively without waiting; False where another process has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def private_folder(path: Path, mode: int = 0o700) -> Path:
    """Make a folder for this user only; ``mode`` may let others pass through (`TRAVERSABLE`).

    Raises `FolderError` where the path is not a folder of this user.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        msg = f"{path} is not a folder of this user"
        raise FolderError(msg)
    if status.st_mode & 0o077 != mode & 0o077:
        path.chmod(mode)
    return path
