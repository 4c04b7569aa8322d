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
from tests.system.test_kills import in_background

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


def state_of(relay: RunningRelay, kernel: str) -> str:
    answer = relay.request("GET", f"/alpha/api/kernels/{kernel}")
    assert answer.status == 200, answer
    return str(answer.json["execution_state"])


def is_gone(pid: int | None) -> bool:
    return pid is None or process_started(pid) is None


def read_lines(channels: Channels, into: list[Message], count: int) -> None:
    while Execution(into).stdout.count("\n") < count:
        into.append(channels.receive())


def read_until_closed(channels: Channels) -> tuple[int, str]:
    """The close code and reason."""
    try:
        while True:
            channels.receive()
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code, closed.rcvd.reason


def rest_of(channels: Channels) -> list[Message]:
    """What comes until nothing has come for a second."""
    messages: list[Message] = []
    with contextlib.suppress(TimeoutError):
        while True:
            messages.append(channels.receive(1))
    return messages


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
        queued = asker.submit("print('queued')")
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
        assert asker.collect(queued).stdout == "queued\n"
        for messages in (done.messages, heard):
            ours = Execution([m for m in messages if m["parent_header"].get("msg_id") == msg_id])
            assert ours.stderr.count(NOTICE) == 1
            assert ours.states.count("idle") == 1
            count = count_lines(ours.stdout, printed)
            assert (count.repeated, count.out_of_order, count.strange) == (0, 0, 0)
            assert count.lost < 150
            assert "line 299" in ours.stdout
        new = replaced(own, kernel, old)
        assert (new.kernel_pid, new.epoch) == (
            old.kernel_pid,
            old.epoch,
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


def test_a_reply_that_nobody_read_is_made_up_for(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    with own.connect("alpha", kernel) as channels:
        agent = psutil.Process(own.agent_pid("alpha"))
        first = channels.submit("import time; time.sleep(1); print('done')")
        second = channels.submit("ran = True")
        before: list[Message] = []
        while not any(m["content"].get("execution_state") == "busy" for m in before):
            before.append(channels.receive())
        # Nobody replaces the holder before the cells have ended.
        agent.suspend()
        try:
            kill_holder(own, kernel)
            time.sleep(2)
        finally:
            agent.resume()
        for msg_id in (first, second):
            done = channels.collect(msg_id)
            (reply,) = done.replies
            assert (reply["status"], reply["ename"]) == ("error", "RelayReplyLost")
            assert done.states.count("idle") == 1
        assert channels.execute("print(ran)").stdout == "True\n"
        wait_for("idle", lambda: state_of(own, kernel) == "idle", 5)
    own.request("DELETE", f"/alpha/api/kernels/{kernel}")


@both
def test_a_holder_killed_while_its_kernel_is_idle(own: RunningRelay, v1: bool) -> None:
    kernel = own.start_kernel("alpha")
    with own.connect("alpha", kernel, v1=v1) as channels:
        channels.execute("kept = 1")
        old = kill_holder(own, kernel)
        assert channels.execute("print(kept)").stdout == "1\n"
        assert replaced(own, kernel, old).kernel_pid == old.kernel_pid
        # Nothing was asked: nothing is made up.
        assert "RelayReplyLost" not in str(rest_of(channels))
    with own.connect("alpha", kernel) as channels:
        assert usable(channels)
    assert own.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204
    wait_for("the kernel's end", lambda: is_gone(old.kernel_pid), 10)


def test_holder_and_agent_are_killed_together(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    agent = own.agent_pid("alpha")
    with own.connect("alpha", kernel) as channels:
        before: list[Message] = []
        msg_id = channels.submit(SLOW.format(200, 0.02))
        read_lines(channels, before, 20)
        os.kill(agent, signal.SIGKILL)
        old = kill_holder(own, kernel)
        done = channels.collect(msg_id)
        assert len(done.replies) == 1
        assert NOTICE in done.stderr
        assert replaced(own, kernel, old).kernel_pid == old.kernel_pid
        assert usable(channels)
    own.request("DELETE", f"/alpha/api/kernels/{kernel}")


def test_the_kernel_died_with_its_holder(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    with own.connect("alpha", kernel) as channels:
        channels.execute("kept = 1")
        old = record_of(own, kernel)
        assert old.kernel_pid is not None
        os.kill(old.kernel_pid, signal.SIGSTOP)
        kill_holder(own, kernel)
        os.kill(old.kernel_pid, signal.SIGKILL)
        states: list[str] = []
        while "restarting" not in states:
            states.append(channels.receive()["content"].get("execution_state", ""))
        wait_for(
            "another kernel process",
            lambda: record_of(own, kernel).kernel_pid not in {None, old.kernel_pid},
        )
        wait_for(
            "idle",
            lambda: (
                own.request("GET", f"/alpha/api/kernels/{kernel}").json["execution_state"] == "idle"
            ),
        )
        assert channels.execute("print('kept' in globals())").stdout == "False\n"
    own.request("DELETE", f"/alpha/api/kernels/{kernel}")


def test_a_holder_that_is_stopped_for_long_is_not_replaced(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    record = record_of(own, kernel)
    printed = [f"line {number}" for number in range(100)]
    with own.connect("alpha", kernel) as channels:
        msg_id = channels.submit(SLOW.format(100, 0.02))
        before: list[Message] = []
        read_lines(channels, before, 20)
        os.kill(record.holder_pid, signal.SIGSTOP)
        time.sleep(10)
        os.kill(record.holder_pid, signal.SIGCONT)
        done = Execution([*before, *channels.collect(msg_id).messages])
        assert count_lines(done.stdout, printed) == (0, 0, 0, 0)
        assert usable(channels)
    assert record_of(own, kernel) == record
    own.request("DELETE", f"/alpha/api/kernels/{kernel}")


# --- and does not ---------------------------------------------------------------------------


def test_a_holder_that_keeps_dying_is_given_up(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    place = place_of(own, kernel)
    address = place.read_address()
    assert address is not None
    with own.connect("alpha", kernel) as channels:
        channels.submit("import subprocess, time; subprocess.Popen(['sleep', '600'])")
        channels.submit("import time; time.sleep(600)")
        for _ in range(3):
            old = kill_holder(own, kernel)
            replaced(own, kernel, old)
        kill_holder(own, kernel)
        code, reason = read_until_closed(channels)
    assert code == 1011
    assert "its holder died 4 times within 60 s (kernels.holder_restart_limit)" in reason
    assert kernel not in listed(own)
    answer = own.request("GET", f"/alpha/api/kernels/{kernel}")
    assert answer.status == 404
    assert "kernels.holder_restart_limit" in answer.json["message"]
    wait_for("the kernel's end", lambda: is_gone(old.kernel_pid), 5)
    wait_for("no process", lambda: kernel not in str(processes_of(own.folder)), 5)
    assert not place.folder.exists()
    assert not list(address.socket.parent.glob(f"{address.socket.stem}*"))
    assert '"event":"holder_given_up"' in own.log.read_text()


def test_a_kernel_whose_start_loses_its_holder_has_not_started(own: RunningRelay) -> None:
    before = set(kernels_folder(own.state, "alpha").iterdir())
    with in_background(lambda: own.request("POST", "/alpha/api/kernels", {})) as answers:

        def launched() -> KernelRecord | None:
            for folder in kernels_folder(own.state, "alpha").glob("[!.]*"):
                record = Place(folder).read_record() if folder not in before else None
                if record is not None and record.kernel_pid is not None:
                    return record
            return None

        record = wait_for("a kernel's launch", launched)
        os.kill(record.holder_pid, signal.SIGKILL)
    assert answers[0].status == 500
    wait_for("the kernel's end", lambda: is_gone(record.kernel_pid), 5)
    assert set(kernels_folder(own.state, "alpha").iterdir()) == before


# --- without the relay ----------------------------------------------------------------------


def test_everything_is_killed_and_comes_back() -> None:
    with RunningRelay(("alpha",)) as relay:
        kernel = relay.start_kernel("alpha")
        with relay.connect("alpha", kernel, session="the-same") as channels:
            channels.execute("kept = 1")
            msg_id = channels.submit(SLOW.format(200, 0.05))
            before: list[Message] = []
            read_lines(channels, before, 20)
            old = kill_holder(relay, kernel)
            relay.process.kill()
            with contextlib.suppress(ConnectionClosed):
                while True:
                    before.append(channels.receive())
        relay.stop()
        # Nobody is there, but the kernel.
        assert not is_gone(old.kernel_pid)
        relay.restart_on("0", "0")
        assert listed(relay) == {kernel}
        new = replaced(relay, kernel, old)
        assert new.kernel_pid == old.kernel_pid
        with relay.connect("alpha", kernel, session="the-same") as channels:
            assert channels.execute("print(kept)").stdout == "1\n"
        del msg_id
        assert "Ended 1 kernel" in relay.end_kernels()
        wait_for("the kernel's end", lambda: is_gone(old.kernel_pid), 10)
