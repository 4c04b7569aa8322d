from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay import kernel_folders
from relay.processes import StartError
from relay.supervisor.state import (
    Lock,
    MetricsUrls,
    Pids,
    Ready,
    StateFolder,
    default_state_dir,
    living_kernels,
    lock_owner,
)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    found = StateFolder(tmp_path / "state")
    found.create()
    return found


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"RELAY_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"}, "/a"),
        ({"XDG_STATE_HOME": "/b"}, "/b/kernel-relay"),
        ({"XDG_STATE_HOME": "relative"}, "/home/me/.local/state/kernel-relay"),
        ({"RELAY_STATE_DIR": "", "XDG_STATE_HOME": ""}, "/home/me/.local/state/kernel-relay"),
        ({"RELAY_STATE_DIR": "~/x"}, "/home/me/x"),
    ],
)
def test_where_the_state_is(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert default_state_dir(environ) == Path(expected)


def test_a_relative_choice_is_taken_from_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_state_dir({"RELAY_STATE_DIR": "x"}) == tmp_path / "x"


def test_everything_is_private(folder: StateFolder) -> None:
    for path in (folder.path, folder.path / "pki", folder.path / "keys", folder.configurations):
        assert path.stat().st_mode & 0o777 == 0o700


def test_an_empty_folder_is_made_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    StateFolder(tmp_path).create()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_somebody_elses_open_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(StartError, match="other users can access"):
        StateFolder(tmp_path).create()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_private_folder_may_hold_other_things(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").touch()
    tmp_path.chmod(0o700)
    StateFolder(tmp_path).create()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="cannot use the state directory"):
        StateFolder(tmp_path / "file").create()


def test_the_second_owner_is_refused_and_told_of_the_first(folder: StateFolder) -> None:
    assert lock_owner(folder) is None
    with Lock(folder):
        assert lock_owner(folder) == os.getpid()
        with pytest.raises(StartError) as caught:
            Lock(folder)
    assert str(caught.value) == (
        f"a relay is already running on {folder.path}: process {os.getpid()}"
    )
    assert lock_owner(folder) is None
    with Lock(folder):
        pass


def test_the_pid_of_one_long_dead_is_nobodys(folder: StateFolder) -> None:
    # After a SIGKILL the number stays in the file; this process lives, but is not the owner.
    folder.lock.write_text(f"{os.getpid()}\n")
    assert lock_owner(folder) is None
    folder.lock.write_text("junk")
    assert lock_owner(folder) is None


def test_a_killed_owner_leaves_the_folder_free(folder: StateFolder) -> None:
    source = (
        "import sys, signal; from pathlib import Path\n"
        "from relay.supervisor.state import Lock, StateFolder\n"
        "lock = Lock(StateFolder(Path(sys.argv[1]))); print('locked', flush=True); signal.pause()"
    )
    argv = [sys.executable, "-c", source, str(folder.path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        assert lock_owner(folder) == owner.pid
        owner.kill()
    with Lock(folder):
        assert lock_owner(folder) == os.getpid()


def test_the_status_file_is_as_documented(folder: StateFolder) -> None:
    ready = Ready(
        https_url="https://127.0.0.1:1",
        wss_url="wss://127.0.0.1:2",
        token="t",
        ca="/ca.pem",
        clusters=("alpha", "beta"),
        metrics=MetricsUrls(edge="http://127.0.0.1:3/metrics", agents={}),
        pids=Pids(supervisor=1, edge=(2, 3), agents={"alpha": (4,), "beta": (5,)}),
    )
    folder.write_status(ready)
    assert folder.status.stat().st_mode & 0o777 == 0o600
    assert msgspec.json.decode(folder.status.read_bytes()) == {
        "https_url": "https://127.0.0.1:1",
        "wss_url": "wss://127.0.0.1:2",
        "token": "t",
        "ca": "/ca.pem",
        "clusters": ["alpha", "beta"],
        "metrics": {"edge": "http://127.0.0.1:3/metrics", "agents": {}},
        "pids": {"supervisor": 1, "edge": [2, 3], "agents": {"alpha": [4], "beta": [5]}},
    }


def kernel(path: Path, cluster: str, name: str, pid: int, started: int | None, **more: Any) -> None:
    folder = kernel_folders.kernels_folder(path, cluster) / name
    folder.mkdir(parents=True)
    if started is not None:
        record = kernel_folders.KernelRecord(
            holder_pid=pid, holder_started=started, epoch="e", **more
        )
        (folder / "record.json").write_bytes(msgspec.json.encode(record))


def test_living_kernels_have_a_holder_or_can_be_adopted(tmp_path: Path) -> None:
    pid = os.getpid()
    started = kernel_folders.process_started(pid)
    assert started is not None
    kernel(tmp_path, "alpha", "a", pid, started)
    kernel(tmp_path, "alpha", "b", pid, started)
    kernel(tmp_path, "beta", "c", pid, started)
    kernel(tmp_path, "beta", "pid-reused", pid, started - 1)
    kernel(tmp_path, "beta", "not-yet", pid, None)
    (tmp_path / "relay.json").touch()
    assert living_kernels(tmp_path) == {"alpha": 2, "beta": 1}
    left: dict[str, Any] = {"kernel_pid": pid, "kernel_started": started, "provisioner": {}}
    kernel(tmp_path, "beta", "to-be-adopted", pid, started - 1, **left, state="ready")
    kernel(tmp_path, "beta", "to-be-buried", pid, started - 1, **left)
    assert living_kernels(tmp_path) == {"alpha": 2, "beta": 2}


def test_what_another_version_has_left_counts_as_a_kernel(tmp_path: Path) -> None:
    kernel(tmp_path, "alpha", "a", 0, None)
    assert living_kernels(tmp_path) == {}
    (tmp_path / "alpha" / "kernels" / "a" / "record.json").write_text('{"version":2}')
    assert living_kernels(tmp_path) == {"alpha": 1}


def test_no_state_no_kernels(tmp_path: Path) -> None:
    assert living_kernels(tmp_path / "none").total() == 0
