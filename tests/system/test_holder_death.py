"""A holder is killed with SIGKILL: its kernel lives on, and another holder adopts it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from relay.registry import KernelRecord, Place, kernels_folder, process_started
from tests.system.channels import Channels, Execution, Message, count_lines
from tests.system.running import RunningRelay, processes_of, wait_for

NOTICE = "output in between may be missing"
SLOW = "import time\nfor n in range({0}): print('line', n, flush=True); time.sleep({1})"

both = pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])


@pytest.fixture(scope="module")
def own() -> Iterator[RunningRelay]:
    """A relay of this file's own, to be killed in parts."""
    with RunningRelay(("alpha",)) as running:
        yield running


def place_of(relay: RunningRelay, kernel: str) -> Place:
    return Place(kernels_folder(relay.state, "alpha") / kernel)


def record_of(relay: RunningRelay, kernel: str) -> KernelRecord:
    record = place_of(relay, kernel).read_record()
    assert record is not None
    return record


def kill_holder(relay: RunningRelay, kernel: str) -> KernelRecord:
    """SIGKILL for a kernel's holder; what it had noted."""
    record = record_of(relay, kernel)
    os.kill(record.holder_pid, signal.SIGKILL)
    return record


def replaced(relay: RunningRelay, kernel: str, before: KernelRecord) -> KernelRecord:
    """The note of the holder that has come after that one."""

    def look() -> KernelRecord | None:
        record = place_of(relay, kernel).read_record()
        return record if record and record.holder_pid != before.holder_pid else None

    return wait_for("another holder", look, 20)


def listed(relay: RunningRelay) -> set[str]:
    answer = relay.request("GET", "/alpha/api/kernels")
    assert answer.status == 200, answer
    return {model["id"] for model in answer.json}


def is_gone(pid: int | None) -> bool:
    return pid is None or process_started(pid) is None


def read_lines(channels: Channels, into: list[Message], count: int) -> None:
    while Execution(into).stdout.count("\n") < count:
        into.append(channels.receive())


def read_until_closed(channels: Channels) -> tuple[int, str]:
    """The close code and reason."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            channels.receive()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def usable(channels: Channels) -> bool:
    return channels.execute("print(6 * 7)").stdout == "42\n"


# --- the kernel lives on --------------------------------------------------------------------


@both
def test_a_cell_goes_on_when_its_holder_is_killed(own: RunningRelay, v1: bool) -> None:
    kernel = own.start_kernel("alpha")
    printed = [f"line {number}" for number in range(300)]
    with (
        own.connect("alpha", kernel, v1=v1) as asker,
        own.connect("alpha", kernel, v1=not v1) as other,
    ):
        asker.execute("kept = 'in memory'")
        before: list[Message] = []
        msg_id = asker.submit(SLOW.format(300, 0.02))
        read_lines(asker, before, 50)
        old = kill_holder(own, kernel)
        # Lists lack nothing meanwhile.
        assert kernel in listed(own)
        assert own.request("GET", f"/alpha/api/kernels/{kernel}").status == 200
        done = Execution([*before, *asker.collect(msg_id).messages])
        heard: list[Message] = []
        while not (
            heard
            and heard[-1]["parent_header"].get("msg_id") == msg_id
            and heard[-1]["content"].get("execution_state") == "idle"
        ):
            heard.append(other.receive())
        assert len(done.replies) == 1
        assert done.replies[0]["status"] == "ok"
        for messages in (done.messages, heard):
            ours = Execution([m for m in messages if m["parent_header"].get("msg_id") == msg_id])
            assert ours.stderr.count(NOTICE) == 1
            assert ours.states.count("idle") == 1
            count = count_lines(ours.stdout, printed)
            assert (count.repeated, count.out_of_order, count.strange) == (0, 0, 0)
            assert count.lost < 150
            assert "line 299" in ours.stdout
        new = replaced(own, kernel, old)
        assert (new.kernel_pid, new.epoch, new.identity) == (
            old.kernel_pid,
            old.epoch,
            old.identity,
        )
        # The same WebSockets go on.
        for channels in (asker, other):
            assert channels.execute("print(kept)").stdout == "in memory\n"
        # Interrupt, restart and the end work.
        msg_id = asker.submit("import time; time.sleep(600)")
        wait_for(
            "busy",
            lambda: (
                own.request("GET", f"/alpha/api/kernels/{kernel}").json["execution_state"] == "busy"
            ),
        )
        assert own.request("POST", f"/alpha/api/kernels/{kernel}/interrupt", {}).status == 204
        assert asker.collect(msg_id).replies[0]["ename"] == "KeyboardInterrupt"
        assert own.request("POST", f"/alpha/api/kernels/{kernel}/restart", {}).status == 200
        assert record_of(own, kernel).kernel_pid != old.kernel_pid
        wait_for("its end", lambda: is_gone(old.kernel_pid), 5)
        assert asker.execute("print('kept' in globals())").stdout == "False\n"
    assert own.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204
    wait_for("no process", lambda: kernel not in str(processes_of(own.folder)), 10)
    wait_for("no folder", lambda: not place_of(own, kernel).folder.exists(), 10)
