from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from relay.bridge.versions import FOLDER
from relay.holder.record import RecordFile
from relay.kernel_folders import KernelFolder, KernelRecord, process_started
from tests.holder.fake_backend import FakeBackend

LEFT = KernelRecord(version=1, holder_pid=1, holder_started=2, epoch="e", kernel_pid=3)


@pytest.fixture
def folder(tmp_path: Path) -> KernelFolder:
    (tmp_path / "k").mkdir()
    return KernelFolder(tmp_path / "k")


def note(record: RecordFile) -> None:
    record.note(FakeBackend(), epoch="e", state="ready", kernel_session="s")


def test_holder_and_kernel_are_noted_for_the_next_holder(folder: KernelFolder) -> None:
    note(RecordFile(folder))
    assert folder.read_record() == KernelRecord(
        holder_pid=os.getpid(),
        holder_started=process_started(os.getpid()) or 0,
        epoch="e",
        state="ready",
        kernel_session="s",
        identities=["launch 0"],
        provisioner={},
    )


def test_the_version_is_noted_and_nothing_else_is_changed(folder: KernelFolder) -> None:
    RecordFile(folder).note_version(LEFT)
    assert folder.read_record() == msgspec.structs.replace(LEFT, version=FOLDER.writes)


def test_what_could_not_be_written_is_behind_until_it_can(folder: KernelFolder) -> None:
    record = RecordFile(folder)
    folder.path.rmdir()
    note(record)
    assert record.is_behind
    folder.path.mkdir()
    behind = [record.is_behind]
    note(record)
    assert (behind, record.is_behind) == ([True], False)
    assert folder.read_record() is not None
