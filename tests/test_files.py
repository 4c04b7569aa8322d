from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay.files import (
    TRAVERSABLE,
    FolderError,
    NotRegularFile,
    create_or_read,
    open_regular,
    private_folder,
    read_regular,
    read_tail,
    write_atomic,
    write_shared,
)
from tests.oddities import ODDITIES, put


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Written whole


def test_whoever_comes_first_is_noted_for_good(tmp_path: Path) -> None:
    note = tmp_path / "principal"
    names = [f"token:{number} é\n" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        found = set(pool.map(lambda name: create_or_read(note, name), names))
    (first,) = found
    assert first in names
    assert create_or_read(note, "token:else") == first
    assert note.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [note]


@pytest.mark.parametrize("folder", [0o700, 0o755, 0o770])
def test_an_atomic_write_replaces_and_is_private(tmp_path: Path, folder: int) -> None:
    tmp_path.chmod(folder)
    path = tmp_path / "note"
    path.write_bytes(b"before")
    path.chmod(0o644)
    write_atomic(path, b"after")
    assert path.read_bytes() == b"after"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note"
    path.write_bytes(b"before")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("folder", "file"), [(0o700, 0o600), (0o770, 0o644)])
def test_in_a_shared_folder_both_users_may_read(tmp_path: Path, folder: int, file: int) -> None:
    tmp_path.chmod(folder)
    write_shared(tmp_path / "note", b"1")
    assert mode(tmp_path / "note") == file


# Read with care


@pytest.mark.parametrize("what", ODDITIES)
def test_what_is_no_plain_file_is_neither_read_nor_written(tmp_path: Path, what: str) -> None:
    path = tmp_path / "note"
    put(path, what, b"{}")
    with pytest.raises(NotRegularFile):
        read_tail(path, 10)
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_RDWR | os.O_CREAT):
        with pytest.raises(NotRegularFile):
            open_regular(path, flags)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_is_too_large_is_read_at_its_end_only(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(NotRegularFile):
        read_regular(path)
    assert read_tail(path, 10) == bytes(10)


# Folders


def test_others_may_pass_through_a_traversable_folder_and_not_list_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for before in (None, 0o777, 0o700, 0o755):
        if before is not None:
            path.chmod(before)
        private_folder(path, TRAVERSABLE)
        assert mode(path) == 0o711


def test_a_private_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert private_folder(path) == path
    assert mode(path) == 0o700
    (path / "kept").touch()
    assert private_folder(path) == path
    assert (path / "kept").exists()


def test_an_open_folder_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir(mode=0o755)
    private_folder(path)
    assert mode(path) == 0o700


def test_a_link_or_a_file_is_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for name in ("link", "dangling", "file"):
        with pytest.raises(FolderError, match=name):
            private_folder(tmp_path / name)


def test_somebody_elses_folder_is_no_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(FolderError, match="not a folder of this user"):
        private_folder(tmp_path)
