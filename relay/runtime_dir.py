"""The folder of unix sockets, whose path has to be short: ``sun_path`` takes 107 bytes (`unix(7)`).

The setting is ``runtime_dir``. A kernel's socket is not in its own folder, which may be anywhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from relay.files import TRAVERSABLE, FolderError, private_folder, write_new

_SOCKET_PATH_BYTES: Final = 107
_SOCKET_NAME_BYTES: Final = len("/0123456789ab.sock")
_USER_BYTES: Final = len("/4294967294")
"""Bytes for the folder that each OS user has in a shared runtime folder."""


def runtime_folder(state_dir: Path, setting: str | None) -> Path:
    """Return the folder of unix sockets: the setting, the XDG runtime folder, or a new short one.

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
        # The second process takes the folder of the first, and never reads half a note.
        write_new(noted, f"{folder}\n".encode())
    except FileExistsError:
        if not shared:
            # Ours alone, and of no use now.
            folder.rmdir()
        return _short_enough(private_folder(Path(noted.read_text().strip())))
    return _short_enough(folder)


def shared_runtime_folder(setting: str) -> Path:
    """Return the folder in which each OS user has a folder of sockets. Raises `FolderError`."""
    return _short_enough(private_folder(Path(setting), TRAVERSABLE), _USER_BYTES)


def _short_enough(folder: Path, more: int = 0) -> Path:
    if len(os.fsencode(folder)) + more + _SOCKET_NAME_BYTES > _SOCKET_PATH_BYTES:
        msg = f"runtime_dir {folder} is too long for unix sockets, choose a shorter one"
        raise FolderError(msg)
    return folder


def socket_name() -> str:
    """Return a new name for a socket in the runtime folder: 12 hex digits."""
    return secrets.token_hex(6)
