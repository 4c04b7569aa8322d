from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from relay.files import FolderError
from relay.runtime_dir import runtime_folder, shared_runtime_folder, socket_name


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_shared_runtime_folder_has_room_for_users(tmp_path: Path) -> None:
    room = 107 - len("/0123456789ab.sock") - len("/4294967294")
    longest = tmp_path / ("x" * (room - len(str(tmp_path)) - 1))
    assert shared_runtime_folder(str(longest)) == longest
    assert mode(longest) == 0o711
    with pytest.raises(FolderError, match="too long"):
        shared_runtime_folder(f"{longest}x")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where folders of our own are made, while there is no XDG one."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_set_runtime_folder_is_taken(tmp_path: Path) -> None:
    wanted = tmp_path / "run"
    assert runtime_folder(tmp_path / "state", str(wanted)) == wanted
    assert mode(wanted) == 0o700
    assert not (tmp_path / "state").exists()


def test_the_xdg_runtime_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    state = tmp_path / "state"
    assert runtime_folder(state, None) == tmp_path / "kernel-relay"
    # Whoever comes from elsewhere, cron say, finds the same.
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_folder(state, None) == tmp_path / "kernel-relay"


def test_a_folder_of_our_own_is_noted_and_kept(tmp_path: Path, temporary: Path) -> None:
    state = tmp_path / "state"
    folder = runtime_folder(state, None)
    assert folder.parent == temporary
    assert mode(folder) == 0o700
    assert mode(state) == 0o700
    assert mode(state / "runtime") == 0o600
    assert runtime_folder(state, None) == folder
    # The temporary folder is emptied when the machine starts.
    folder.rmdir()
    assert runtime_folder(state, None) == folder
    assert folder.is_dir()


def test_all_processes_of_a_state_agree(tmp_path: Path, temporary: Path) -> None:
    found: list[Path] = []
    barrier = threading.Barrier(8)

    def come() -> None:
        barrier.wait()
        found.append(runtime_folder(tmp_path / "state", None))

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8


def test_a_note_is_never_seen_half_written(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An empty one would make the present folder of the process private.
    note = tmp_path / "state" / "runtime"
    seen = []
    write = Path.write_bytes

    def watch(self: Path, data: bytes) -> int:
        seen.append(note.exists())
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", watch)
    folder = runtime_folder(tmp_path / "state", None)
    assert seen == [False]
    assert note.read_text() == f"{folder}\n"
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["runtime"]


def test_a_runtime_folder_must_be_short_enough_for_sockets(tmp_path: Path) -> None:
    room = 107 - len("/0123456789ab.sock") - len(os.fsencode(tmp_path)) - 1
    longest = tmp_path / ("x" * room)
    assert runtime_folder(tmp_path, str(longest)) == longest
    assert len(os.fsencode(longest / f"{socket_name()}.sock")) == 107
    with pytest.raises(FolderError, match="too long for unix sockets"):
        runtime_folder(tmp_path, f"{longest}x")


def test_socket_names_are_short_and_differ() -> None:
    names = {socket_name() for _ in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {12}
