from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay import supervisor
from relay.agent.holders import stop_all
from relay.cli import down

Run = Callable[..., tuple[int, str, str]]
OWNER = """
import signal, sys
from pathlib import Path
from relay.supervisor.state import Lock, StateFolder
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder = StateFolder(Path(sys.argv[1])); folder.create()
lock = Lock(folder); print("locked", flush=True); signal.pause()
"""


@contextmanager
def owner(state: Path, manner: str = "") -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", OWNER, str(state), manner]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RELAY_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


class Kernels:
    """Ends as many as it has, but for those that will not."""

    def __init__(self, living: int, deaf: int = 0) -> None:
        self.living = living
        self.deaf = deaf
        self.asked: list[Path] = []

    async def end(self, state_dir: Path, timeout: float) -> int:
        assert timeout > 0
        self.asked.append(state_dir)
        ended, self.living = self.living - self.deaf, self.deaf
        return ended

    def count(self, path: Path) -> Counter[str]:
        return Counter(alpha=self.living) if self.living else Counter()


@pytest.fixture
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    made = Kernels(*request.param)
    monkeypatch.setattr(stop_all, "end_kernels", made.end)
    monkeypatch.setattr(supervisor, "living_kernels", made.count)
    return made


def test_nothing_runs_and_nothing_lives(relay: Run, state: Path) -> None:
    message = f"No relay is running on {state}.\nNo kernel is running.\n"
    assert relay("down") == (0, message, "")
    message = f"No relay is running on {state}.\nEnded 0 kernels.\n"
    assert relay("down", "--kernels") == (0, message, "")
    assert not state.exists()


@pytest.mark.parametrize("kernels", [(1,)], indirect=True)
def test_a_running_relay_is_stopped(relay: Run, state: Path, kernels: Kernels) -> None:
    with owner(state) as process:
        code, out, _ = relay("down")
        assert process.wait(10) == -15
    assert code == 0
    assert out.splitlines() == [
        f"Stopped the relay, process {process.pid}.",
        "1 kernel keeps running (alpha: 1).",
        "`relay up` serves it again; `relay down --kernels` ends it.",
    ]
    assert kernels.asked == []


def test_another_state_folder(relay: Run, state: Path, tmp_path: Path) -> None:
    with owner(tmp_path / "other") as process:
        assert relay("down", "--state-dir", str(tmp_path / "other"))[0] == 0
        assert process.wait(10) == -15


def test_who_does_not_stop_is_killed(
    relay: Run, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(down, "STOP_TIMEOUT", 0.2)
    with owner(state, "deaf") as process:
        code, out, _ = relay("down")
        assert process.wait(10) == -9
    assert code == 0
    assert out.startswith(f"Killed the relay, process {process.pid}: ")


@pytest.mark.parametrize("kernels", [(3,)], indirect=True)
def test_kernels_are_ended_where_asked_for(relay: Run, state: Path, kernels: Kernels) -> None:
    state.mkdir()
    code, out, _ = relay("down", "--kernels")
    assert (code, out.splitlines()[-1]) == (0, "Ended 3 kernels.")
    assert kernels.asked == [state]


@pytest.mark.parametrize("kernels", [(3, 1)], indirect=True)
def test_a_holder_on_its_way_out_is_waited_for(
    relay: Run, state: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(_seconds: float) -> None:
        kernels.living = 0

    monkeypatch.setattr("time.sleep", leave)
    state.mkdir()
    assert relay("down", "--kernels")[0] == 0


@pytest.mark.parametrize("kernels", [(3, 1)], indirect=True)
def test_a_kernel_that_stays_is_a_failure(
    relay: Run, state: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(down, "HOLDERS_TIMEOUT", 0.1)
    state.mkdir()
    code, out, err = relay("down", "--kernels")
    assert (code, out.splitlines()[-1]) == (1, "Ended 2 kernels.")
    assert err == "relay: 1 kernel did not end\n"
