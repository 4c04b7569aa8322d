from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from relay.errors import OtherVersion
from relay.files import NotRegularFile, write_atomic
from relay.kernel_folders import (
    HolderAddress,
    KernelFolder,
    KernelRecord,
    find_folders,
    kernels_folder,
    process_started,
    remove,
    sweep,
)
from tests.oddities import ODDITIES, put
from tests.programs import python

RECORD = KernelRecord(holder_pid=7, holder_started=99, epoch="e1", kernel_pid=8)


@pytest.fixture
def kernel_folder(tmp_path: Path) -> KernelFolder:
    folder = kernels_folder(tmp_path, "alpha") / "k1"
    folder.mkdir(parents=True)
    return KernelFolder(folder)


# Places


def test_a_place_is_named_after_its_kernel(kernel_folder: KernelFolder) -> None:
    assert kernel_folder.kernel_id == "k1"
    names = {
        kernel_folder.request.name,
        kernel_folder.record.name,
        kernel_folder.journal.name,
        kernel_folder.kernel_log.name,
        kernel_folder.holder_log.name,
        kernel_folder.connection_file.name,
    }
    assert len(names) == 6
    assert kernel_folder.request.parent == kernel_folder.path


def test_a_cluster_without_kernels_has_no_places(tmp_path: Path) -> None:
    assert find_folders(tmp_path, "alpha") == []


def test_places_are_the_folders_of_one_cluster(kernel_folder: KernelFolder, tmp_path: Path) -> None:
    folder = kernels_folder(tmp_path, "alpha")
    (folder / "k2").mkdir()
    (folder / "a file").touch()
    (folder / ".k3.0123").mkdir()
    (kernels_folder(tmp_path, "beta") / "k4").mkdir(parents=True)
    assert sorted(found.kernel_id for found in find_folders(tmp_path, "alpha")) == ["k1", "k2"]


def test_a_place_exists_once_it_was_asked_for(kernel_folder: KernelFolder) -> None:
    assert not kernel_folder.exists()
    kernel_folder.request.write_bytes(b"{}")
    assert kernel_folder.exists()


def test_a_removed_place_leaves_nothing(kernel_folder: KernelFolder, tmp_path: Path) -> None:
    kernel_folder.journal.mkdir()
    (kernel_folder.journal / "x.log").write_bytes(b"x")
    remove(kernel_folder)
    assert list(kernels_folder(tmp_path, "alpha").iterdir()) == []
    remove(kernel_folder)


def test_sweep_deletes_what_was_half_removed_and_nothing_else(
    kernel_folder: KernelFolder, tmp_path: Path
) -> None:
    half = kernels_folder(tmp_path, "alpha") / ".k2.0123"
    (half / "journal").mkdir(parents=True)
    sweep(tmp_path, "alpha")
    assert not half.exists()
    assert find_folders(tmp_path, "alpha") == [kernel_folder]
    sweep(tmp_path, "beta")


# The lock


def test_the_lock_is_one_holders_only(kernel_folder: KernelFolder) -> None:
    descriptor = kernel_folder.try_lock()
    assert descriptor is not None
    assert kernel_folder.try_lock() is None
    os.close(descriptor)
    again = kernel_folder.try_lock()
    assert again is not None
    os.close(again)


def test_the_lock_keeps_other_processes_out_and_is_not_inherited(
    kernel_folder: KernelFolder,
) -> None:
    source = (
        "import fcntl, os, sys\n"
        "lock = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    command = python(source, str(kernel_folder.path / "lock"))
    descriptor = kernel_folder.try_lock()
    assert descriptor is not None
    assert not os.get_inheritable(descriptor)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    os.close(descriptor)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


# Other versions


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"{", b'{"version":1}', b'{"version":"3"}', b'{"journal":null}']
)
def test_what_bears_no_version_is_of_the_first_or_nothing(
    kernel_folder: KernelFolder, text: bytes
) -> None:
    kernel_folder.record.write_bytes(text)
    kernel_folder.check_versions()


@pytest.mark.parametrize(
    ("name", "text", "of"),
    [
        ("request.json", b'{"version":3}', "files"),
        ("request.json", b'{"version":0,"owner":{}}', "files"),
        ("record.json", b'{"version":3}', "files"),
        ("record.json", b'{"version":1,"journal":2}', "journal"),
    ],
)
def test_the_lock_of_a_folder_of_another_version_is_nobodys(
    kernel_folder: KernelFolder, name: str, text: bytes, of: str
) -> None:
    (kernel_folder.path / name).write_bytes(text)
    with pytest.raises(OtherVersion, match=rf"of its {of}, the relay has version \d\."):
        kernel_folder.check_versions()
    with pytest.raises(OtherVersion):
        kernel_folder.try_lock()
    # It was not kept.
    (kernel_folder.path / name).unlink()
    lock = kernel_folder.try_lock()
    assert lock is not None
    os.close(lock)


def test_what_is_noted_bears_the_versions(kernel_folder: KernelFolder) -> None:
    kernel_folder.record.write_bytes(msgspec.json.encode(RECORD))
    noted = msgspec.json.decode(kernel_folder.record.read_bytes())
    assert (noted["version"], noted["journal"]) == (2, 1)


# Notes


def test_a_record_is_read_as_it_was_written(kernel_folder: KernelFolder) -> None:
    assert kernel_folder.read_record() is None
    write_atomic(kernel_folder.record, msgspec.json.encode(RECORD))
    assert kernel_folder.read_record() == RECORD


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"holder_pid": "7"}', b"\xff"])
def test_a_record_that_cannot_be_read_is_none(kernel_folder: KernelFolder, note: bytes) -> None:
    kernel_folder.record.write_bytes(note)
    assert kernel_folder.read_record() is None


def test_agents_read_the_address_out_of_any_versions_request(kernel_folder: KernelFolder) -> None:
    assert kernel_folder.read_address() is None
    note = {"socket": "/run/x.sock", "owner": "token:ada", "name": "ir"}
    kernel_folder.request.write_text(json.dumps({**note, "of_a_later_version": [1]}))
    address = kernel_folder.read_address()
    assert address == HolderAddress(Path("/run/x.sock"), "token:ada", "ir")


@pytest.mark.parametrize("note", [b"", b"{}", b'{"socket": 7}', b'{"socket": "x"}', b"\xff"])
def test_an_address_that_cannot_be_read_is_none(kernel_folder: KernelFolder, note: bytes) -> None:
    kernel_folder.request.write_bytes(note)
    assert kernel_folder.read_address() is None


# What another user has put there


@pytest.mark.parametrize("what", ODDITIES)
def test_what_is_no_plain_file_is_neither_read_nor_written(
    kernel_folder: KernelFolder, what: str
) -> None:
    for path in (kernel_folder.record, kernel_folder.request, kernel_folder.path / "lock"):
        put(path, what, msgspec.json.encode(RECORD))
    assert kernel_folder.read_record() is None
    assert kernel_folder.read_address() is None
    with pytest.raises(NotRegularFile):
        kernel_folder.try_lock()
    assert not (kernel_folder.path / "nowhere").exists()


def test_a_file_that_is_too_large_is_not_read(kernel_folder: KernelFolder) -> None:
    kernel_folder.record.touch()
    os.truncate(kernel_folder.record, 1 << 40)
    assert kernel_folder.read_record() is None
    assert kernel_folder.read_address() is None


def test_the_largest_file_is_read(kernel_folder: KernelFolder) -> None:
    kernel_folder.record.write_bytes(msgspec.json.encode(RECORD).ljust(16 << 20))
    assert kernel_folder.read_record() == RECORD
    with kernel_folder.record.open("ab") as file:
        file.write(b" ")
    assert kernel_folder.read_record() is None


@pytest.mark.parametrize(
    "note",
    [
        b'{"socket": "/run/\\u0000x"}',
        b'{"socket": ["x"]}',
        b'{"socket": "x", "more": ' + b"[" * 100_000,
    ],
)
def test_an_address_that_would_break_its_reader_is_none(
    kernel_folder: KernelFolder, note: bytes
) -> None:
    kernel_folder.request.write_bytes(note)
    assert kernel_folder.read_address() is None
    kernel_folder.record.write_bytes(note)
    assert kernel_folder.read_record() is None


def test_a_folder_that_cannot_be_moved_is_emptied_its_lock_last(
    kernel_folder: KernelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(Path, "rename", refuse)
    outside = kernel_folder.path.parent / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    kernel_folder.journal.mkdir()
    (kernel_folder.journal / "1").touch()
    for path in (kernel_folder.path / "lock", kernel_folder.record, kernel_folder.request):
        path.touch()
    (kernel_folder.path / "link").symlink_to(outside)
    deleted: list[str] = []
    unlink = Path.unlink

    def note(self: Path, missing_ok: bool = False) -> None:  # noqa: FBT002 - as the real one
        deleted.append(self.name)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", note)
    remove(kernel_folder)
    assert list(kernel_folder.path.iterdir()) == []
    assert deleted[-1] == "lock"
    assert deleted.count("lock") == 1
    assert (outside / "kept").exists()


def test_a_link_among_the_kernels_is_no_place(kernel_folder: KernelFolder, tmp_path: Path) -> None:
    (kernel_folder.path.parent / "k2").symlink_to(kernel_folder.path)
    assert [found.kernel_id for found in find_folders(tmp_path, "alpha")] == ["k1"]


# Processes


def test_a_process_is_known_by_its_start() -> None:
    own = process_started(os.getpid())
    assert own is not None
    assert process_started(os.getpid()) == own
    parent = process_started(os.getppid())
    assert parent is not None
    assert parent <= own


def test_a_name_full_of_parentheses_is_no_trap() -> None:
    source = (
        "import ctypes, sys\n"
        "ctypes.CDLL(None).prctl(15, b') R 1 (x)', 0, 0, 0)\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert b") R 1 (x)" in Path(f"/proc/{process.pid}/stat").read_bytes()
        started, own = process_started(process.pid), process_started(os.getpid())
        assert started is not None
        assert own is not None
        assert started >= own


def test_a_process_that_ended_has_no_start() -> None:
    process = subprocess.Popen(python(""))
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    # Not reaped yet: a zombie is nobody.
    assert process_started(process.pid) is None
    process.wait()
    assert process_started(process.pid) is None
