from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.edge import shared_dir as folders
from relay.edge.ipc.server import socket_path
from relay.edge.shared_dir import private_folder

HOLDER = (
    "from pathlib import Path; import signal, sys\n"
    "from relay.edge import shared_dir\n"
    "shared_dir._MEMORY = Path(sys.argv[1])\n"
    "with shared_dir.private_folder() as mine:\n"
    "    print(mine, flush=True)\n"
    "    signal.pause()"
)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short enough for a socket
        monkeypatch.setattr(folders, "_MEMORY", Path(folder))
        yield Path(folder)


def test_it_is_this_users_alone_and_goes_again(place: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == place
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "something").mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(socket_path(folder)))
    assert not folder.exists()


def test_what_a_killed_parent_left_is_deleted_and_others_live(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with private_folder() as folder:
            assert theirs.exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert theirs.exists()
    link = place / f"relay-edge-{os.geteuid()}-link"
    link.symlink_to(place / "kept")
    (place / "kept").mkdir()
    with private_folder() as folder:
        assert not theirs.exists()
        assert (place / "kept").exists()
        assert folder.exists()


def test_one_that_another_took_for_left_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(folders, "try_flock", lambda _: next(answers))
    with private_folder() as folder:
        assert len(list(place.iterdir())) == 2
        assert folder.exists()
    monkeypatch.setattr(folders, "try_flock", lambda _: False)
    with pytest.raises(OSError, match="no folder stays"), private_folder():
        pass


def test_without_memory_it_is_among_temporary_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_MEMORY", place / "none")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with private_folder() as folder:
        assert folder.parent == place
    # Of one whose path is too long for sockets.
    monkeypatch.setattr("tempfile.tempdir", str(place / ("x" * 60)))
    with private_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(folder)))
