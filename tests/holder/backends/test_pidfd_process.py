from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from relay.holder.backends import pidfd_process
from relay.holder.backends.pidfd_process import UNKNOWN_EXIT, PidfdProcess
from relay.kernel_folders import process_started

FAMILY = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "60"])
print(os.getpid(), child.pid, flush=True)
child.wait()
"""
ORPHAN = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A process that leads its group and is no child of ours, and its own child: their pids."""
    done = subprocess.Popen([sys.executable, "-c", ORPHAN, FAMILY], stdout=subprocess.PIPE)
    assert done.stdout is not None
    with done:
        leader, child = map(int, done.stdout.readline().split())
        yield leader, child
        for pid in (leader, child):
            if process_started(pid) is not None:
                os.kill(pid, signal.SIGKILL)


def find(pid: int) -> PidfdProcess:
    started = process_started(pid)
    assert started is not None
    found = PidfdProcess.find(pid, started)
    assert found is not None
    return found


def test_it_is_watched_and_ended_like_a_child(family: tuple[int, int]) -> None:
    leader, child = family
    process, its_child = find(leader), find(child)
    assert process.pid == leader
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.terminate()
    assert process.wait(10) == process.poll() == process.returncode == UNKNOWN_EXIT
    # The whole group had the signal.
    assert its_child.wait(10) == UNKNOWN_EXIT
    # It is gone for good; whoever has its pid now is not meant.
    process.kill()


def test_its_end_is_seen_without_waiting(family: tuple[int, int]) -> None:
    leader, _ = family
    process, other = find(leader), find(leader)
    os.kill(leader, signal.SIGKILL)
    other.wait(10)
    assert process.poll() == UNKNOWN_EXIT


@pytest.mark.parametrize(
    "flag", [pidfd_process._PROCESS_GROUP, 1 << 30], ids=["new", "older Linux"]
)
def test_signals_reach_the_group(
    family: tuple[int, int], flag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pidfd_process, "_PROCESS_GROUP", flag)
    leader, child = family
    both = find(leader), find(child)
    both[0].send_signal(signal.SIGKILL)
    assert [process.wait(10) for process in both] == [UNKNOWN_EXIT, UNKNOWN_EXIT]


def test_another_process_of_that_pid_is_not_it() -> None:
    pid = os.getpid()
    started = process_started(pid)
    assert started is not None
    assert PidfdProcess.find(pid, started - 1) is None
    assert PidfdProcess.find(2**22 + 1, 1) is None
