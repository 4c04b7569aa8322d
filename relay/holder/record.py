"""What a holder notes of itself and its kernel, for agents and for the next holder."""

from __future__ import annotations

import os

import msgspec
import structlog

from relay.bridge.versions import FOLDER
from relay.files import write_shared
from relay.holder.backends.base import KernelBackend
from relay.kernel_folders import KernelFolder, KernelRecord, KernelState, process_started

log = structlog.get_logger(__name__)


class RecordFile:
    """Writes `KernelRecord`; trouble with the disk is logged, and `is_behind` until it is over."""

    def __init__(self, kernel_folder: KernelFolder) -> None:
        self.is_behind = False
        """Whether the latest record is not written."""
        self._kernel_folder = kernel_folder

    def note_version(self, left: KernelRecord) -> None:
        """Note the version of the files that this holder writes, before it writes any.

        ``left`` is the record of the holder that died.
        """
        self._write(msgspec.structs.replace(left, version=FOLDER.writes))

    def note(
        self, backend: KernelBackend, *, epoch: str, state: KernelState, kernel_session: str
    ) -> None:
        """Note holder and kernel as they are now."""
        pid = os.getpid()
        record = KernelRecord(
            holder_pid=pid,
            holder_started=process_started(pid) or 0,
            epoch=epoch,
            state=state,
            kernel_session=kernel_session,
            **backend.notes,
        )
        self._write(record)

    def _write(self, record: KernelRecord) -> None:
        try:
            write_shared(self._kernel_folder.record, msgspec.json.encode(record))
        except OSError as error:
            # A holder is no worse without it, unless it dies: until there is room again.
            if not self.is_behind:
                log.error("record_write_failed", problem=str(error))  # noqa: TRY400 - says it all
            self.is_behind = True
        else:
            self.is_behind = False
