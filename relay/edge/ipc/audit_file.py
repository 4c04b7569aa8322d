"""The audit log's file and the service that writes it: one line, one write, in one chain.

The edge's parent is the only writer. While the file cannot be written, lines wait in memory until
it can be again.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

from relay import limits
from relay.auth.audit import AuditEvent, AuditNote, HashChain
from relay.edge.ipc.protocol import Refusal
from relay.edge.ipc.service import CallRequest, Service
from relay.log import clean, get_logger
from relay.metrics import AuditFigures

_SERVICE: Final = "audit"
_TAIL: Final = 1024 * 1024
"""Bytes at the file's end among which there is a whole line."""
_AGAIN: Final = 1.0
"""Seconds between two tries to write what waits."""

log = get_logger()


class WriteNote(CallRequest[None], frozen=True):
    """A line for the audit log; answered once it, and every line before it, is in the file."""

    service: ClassVar[str] = _SERVICE
    note: AuditNote | None
    """None writes nothing: the answer tells whether all lines are in the file."""


class AuditFile:
    """One file for as long as the parent lives, under its name: moved away, it begins anew."""

    def __init__(self, path: Path, waiting: int, clock: Callable[[], float] = time.time) -> None:
        """Nothing is opened before the first line.

        ``waiting`` is how many may wait in memory; ``clock`` is Unix time in seconds.
        """
        self._path = path
        self._room = waiting
        self._clock = clock
        self._descriptor: int | None = None
        self._size = 0
        self._chain: HashChain | None = None
        self._unended = False
        """Whether the file's last line has no line feed."""
        self._waiting: deque[AuditNote] = deque()
        self._lost = 0
        self._written = 0
        self._all_lost = 0
        self.problem = ""
        """Why it cannot be written just now; empty where it can."""

    @property
    def figures(self) -> AuditFigures:
        """Counts since the start, and how many lines wait now."""
        return AuditFigures(self._written, len(self._waiting), self._all_lost)

    def keep(self, note: AuditNote) -> None:
        """Write a line for ``note`` now, or as soon as that can be done."""
        if len(self._waiting) >= self._room:
            self.write()
        if len(self._waiting) < self._room:
            self._waiting.append(note)
        else:
            limits.record("audit.waiting")
            self._lost += 1
            self._all_lost += 1
        self.write()

    def write(self) -> None:
        """Write what waits; afterwards `problem` says whether all of it is in the file."""
        try:
            self._write_all()
        except OSError as error:
            problem = error.strerror or str(error)
            if problem != self.problem:
                log.error(  # noqa: TRY400 - one line says it all
                    "audit_write_failed", file=str(self._path), problem=problem
                )
            self.problem = problem
        else:
            if self.problem:
                log.info("audit_write_recovered", lines=self._written)
            self.problem = ""

    async def keep_trying(self) -> None:
        """Write what waits as soon as that can be done; for ever."""
        while True:
            await asyncio.sleep(_AGAIN)
            if self.problem:
                self.write()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write_all(self) -> None:
        chain = self._open()
        if self._unended:
            self._append(b"\n")
        if chain.torn:
            self._add(chain, AuditNote(time=self._clock(), event=AuditEvent.LINE_TORN))
        while self._waiting:
            self._add(chain, self._waiting[0])
            self._waiting.popleft()
        if self._lost:
            reason = f"{self._lost} lines"
            self._add(
                chain, AuditNote(time=self._clock(), event=AuditEvent.LINES_LOST, reason=reason)
            )
            self._lost = 0

    def _open(self) -> HashChain:
        """Have the file of this name open, which may be another than last time."""
        if self._chain is not None and self._is_ours():
            return self._chain
        self.close()
        descriptor = os.open(
            self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600
        )
        try:
            # Two writers would each go on from a line that is no longer the last.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._chain = self._begin(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self._chain

    def _is_ours(self) -> bool:
        """Whether the name still means the file that we wrote, as we wrote it."""
        if self._descriptor is None:
            return False
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._descriptor)) and named.st_size == self._size

    def _begin(self, descriptor: int) -> HashChain:
        """The chain that goes on in this file; raises ``OSError`` where it is no audit log."""
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        tail = os.pread(descriptor, _TAIL, max(0, found.st_size - _TAIL))
        self._size, self._unended = found.st_size, bool(tail) and not tail.endswith(b"\n")
        if self._chain is None:
            chain = HashChain.after(tail)
            if chain is None:
                raise OSError(errno.EINVAL, "holds something else than an audit log")
            event = None if tail else AuditEvent.CHAIN_BEGUN
        else:
            chain = self._chain
            event = None if tail else AuditEvent.CHAIN_CONTINUED
            if tail:
                # The chain will show where.
                log.error("audit_file_changed", file=str(self._path))
        if event is not None:
            self._waiting.appendleft(AuditNote(time=self._clock(), event=event))
        return chain

    def _add(self, chain: HashChain, note: AuditNote) -> None:
        line = chain.format(note, clean)
        try:
            self._append(line)
        except _CutOffError as error:
            chain.add_remains(line[: error.written])
            raise
        chain.advance(line)
        self._written += 1

    def _append(self, data: bytes) -> None:
        """Write all of ``data`` at the end. Raises ``OSError``, `_CutOffError` after a part."""
        assert self._descriptor is not None  # noqa: S101 - for the type alone
        written = os.write(self._descriptor, data)
        self._size += written
        self._unended = written < len(data)
        # A line without its line feed is whole.
        if written < len(data) - 1:
            raise _CutOffError(written)


class _CutOffError(OSError):
    """A part of a line is in the file."""

    def __init__(self, written: int) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written = written


def audit_service(file: AuditFile) -> Service:
    """Return the service that has workers' notes written to ``file``."""

    def write(request: WriteNote) -> Refusal | None:
        if request.note is not None:
            file.keep(request.note)
        return Refusal("audit.file", file.problem) if file.problem else None

    return Service(_SERVICE, WriteNote.served_by(write))
