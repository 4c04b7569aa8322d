"""What a kernel's process writes to its own stdout and stderr, in a file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, Final

import structlog

from relay import limits

log = structlog.get_logger(__name__)

_TAIL_BYTES: Final = 2000
"""Of what the process has printed, shown where its start fails."""


class KernelLog:
    """One kernel's log, over all its launches."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._start = 0
        """Bytes that earlier launches left in the file."""

    def begin(self) -> None:
        """Another launch begins: `tail` shows what comes from now on."""
        with contextlib.suppress(OSError):
            self._start = self._path.stat().st_size

    def open(self) -> IO[bytes]:
        """The file for the process to write to. Raises ``OSError``."""
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o600)
            # Open until the kernel has ended for good.
            self._file = open(descriptor, "wb", buffering=0)  # noqa: PTH123, SIM115 - a descriptor
        return self._file

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def trim(self, limit: int) -> None:
        """Empty the file where it is over ``limit`` bytes."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_size > limit:
                # The kernel appends: it goes on at the new end.
                os.truncate(self._path, 0)
                log.warning("kernel_log_truncated", limit=limit, setting="kernels.log_bytes")
                limits.record("kernels.log_bytes")

    def tail(self) -> str:
        """The end of what the process has printed since its launch."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(min(self._start, size), size - _TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""
