"""The folder that an edge's parent shares with its workers: a socket, settings, counts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from relay.files import try_flock

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
_PLACE_BYTES: Final = 50
"""Of the path of where it is, so that there is room for the rest of a socket's (107)."""
_TRIES: Final = 5


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for this user only, in memory where there is such a place, with a short path.

    It is locked for as long as its parent lives: what clears away old temporary files leaves it
    alone then (``tmpfiles.d(5)``), and those without a lock, of parents that were killed, are
    deleted here. Raises ``OSError``.
    """
    place = _place()
    prefix = f"relay-edge-{os.geteuid()}-"
    for old in place.glob(f"{prefix}*"):
        _delete_unless_locked(old)
    with contextlib.ExitStack() as held:
        folder = _make_locked(place, prefix, held)
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _place() -> Path:
    if os.access(_MEMORY, os.W_OK):
        return _MEMORY
    place = Path(tempfile.gettempdir())
    # The folder in it is a new one of this user's.
    return place if len(os.fsencode(place)) <= _PLACE_BYTES else Path("/tmp")  # noqa: S108


def _make_locked(place: Path, prefix: str, held: contextlib.ExitStack) -> Path:
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        # Before it was locked, another parent that starts just now may have taken it for left.
        if try_flock(lock) and folder.exists():
            held.callback(os.close, lock)
            return folder
        os.close(lock)
    msg = f"in {place} no folder stays"
    raise OSError(msg)


def _delete_unless_locked(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else was quicker, or it is no folder
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if try_flock(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
