"""The file with the static tokens: edges read it at any time, one process at a time changes it."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from relay import files
from relay.auth.tokens import TokenStore

LOCK_TIMEOUT: Final = 10.0
"""Seconds to wait for another process that changes the file; a change takes milliseconds."""
_INTERVAL: Final = 0.02


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive right to change the file, so that no other change is lost.

    The file's folder is locked (``flock(2)``), since the file itself is replaced.

    Raises:
        TimeoutError: another process has held the lock for `LOCK_TIMEOUT` seconds.
        OSError: the folder cannot be locked.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(folder)
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while not files.try_flock(folder):
        if time.monotonic() >= deadline:
            text = f"locked by another process for {LOCK_TIMEOUT:.0f} s"
            raise TimeoutError(errno.ETIMEDOUT, text)
        time.sleep(_INTERVAL)


def read(path: Path) -> TokenStore:
    """Read the tokens. Raises ``OSError``, and ``ValueError`` for a damaged file."""
    return TokenStore.parse(path.read_bytes())


def write(path: Path, store: TokenStore) -> None:
    """Replace the tokens, in one step and with mode 0600. Raises ``OSError``.

    The file keeps its owner, and a new file gets the owner of its folder: root may change it for
    an edge that runs as another user.
    """
    owner = None
    if os.geteuid() == 0:
        status = (path if path.exists() else path.parent).stat()
        owner = status.st_uid, status.st_gid
    files.write_atomic(path, store.dump(), owner)
