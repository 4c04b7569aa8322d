"""The file of the static tokens: read by edges at any time, changed by one process at a time."""

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
"""Seconds to wait for another process that changes the file, which takes milliseconds."""
_INTERVAL: Final = 0.02


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """The right to change the file: whoever reads, changes and writes it meanwhile loses nothing.

    Its folder is locked (``flock(2)``), since the file itself is replaced. Raises ``OSError``;
    ``TimeoutError`` after `LOCK_TIMEOUT`.
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
    """The tokens. Raises ``OSError``, and ``ValueError`` for a file that is damaged."""
    return TokenStore.parse(path.read_bytes())


def write(path: Path, store: TokenStore) -> None:
    """Replace the tokens, in one step and with mode 0600. Raises ``OSError``.

    The file stays its owner's, and a new one becomes that of its folder's owner: root may change
    it for an edge that runs as somebody else.
    """
    owner = None
    if os.geteuid() == 0:
        status = (path if path.exists() else path.parent).stat()
        owner = status.st_uid, status.st_gid
    files.write_atomic(path, store.dump(), owner)
