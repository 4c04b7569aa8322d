"""A holder is killed with SIGKILL: its kernel lives on, and another holder adopts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from relay.kernel_folders import KernelFolder, KernelRecord, kernels_folder, process_started
from tests.system.channels import Channels, Execution, Message, count_lines, is_over, of
from tests.system.kernels import (
    IPYKERNEL,
    TCP_ONLY,
    kernelspec,
    kill_holder,
    place_of,
    record_of,
    wrapped,
)
from tests.system.running import RunningRelay, processes_of, wait_for
from tests.system.test_kills import in_background

NOTICE = "output in between may be missing"
SLOW = "import time\nfor n in range({0}): print('line', n, flush=True); time.sleep({1})"

pytestmark = pytest.mark.timeout(180)

both = pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])


# A provisioner that knows its kernel by a number of its own, not as a process of the holder.
BY_NUMBER = """
import os, signal, subprocess
from pathlib import Path
from jupyter_client.provisioning import LocalProvisioner

class ByNumber(LocalProvisioner):
    number = None

    async def launch_kernel(self, cmd, **kwargs):
        info = await super().launch_kernel(cmd, **kwargs)
        self.number, self.process = self.process.pid, None
        return info

    @property
    def has_process(self):
        return self.number is not None

    async def poll(self):
        try:
            os.waitpid(self.number, os.WNOHANG)
        except ChildProcessError:
            pass
        return None if Path(f"/proc/{self.number}").exists() else 1

    async def wait(self):
        self.number = None
        return 1

    async def send_signal(self, number):
        os.killpg(self.number, number)

    async def kill(self, restart=False):
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart=False):
        await self.send_signal(signal.SIGTERM)

    async def get_provisioner_info(self):
        return {**await super().get_provisioner_info(), "number": self.number}

    async def load_provisioner_info(self, info):
        await super().load_provisioner_info(info)
        self.number = info["number"]
"""


def provisioner(folder: Path) -> None:
    """Install `BY_NUMBER` as a distribution that has an entry point."""
    (folder / "by_number.py").write_text(BY_NUMBER)
    metadata = folder / "by_number-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: by-number\nVersion: 1\n")
    group = "[jupyter_client.kernel_provisioners]"
    (metadata / "entry_points.txt").write_text(f"{group}\nby-number = by_number:ByNumber\n")


@pytest.fixture(scope="module")
def own() -> Iterator[RunningRelay]:
    """A relay of this file's own, to be killed in parts."""
    running = RunningRelay(("alpha",))
    specs = running.folder / "specs"
    curve = {"supported_encryption": ["curve"]}
    kernelspec(specs, "tcp-only", *wrapped(TCP_ONLY), metadata=curve)
    by_number = {"kernel_provisioner": {"provisioner_name": "by-number"}}
    kernelspec(specs, "by-number", *IPYKERNEL, metadata=by_number)
    provisioner(specs)
    running.environ |= {"JUPYTER_PATH": str(specs), "PYTHONPATH": str(specs)}
    with running:
        yield running


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
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (0, "")


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


@pytest.mark.guarantee(v1=True)
@both
def test_a_cell_goes_on_when_its_holder_is_killed(own: RunningRelay, v1: bool) -> None:
    kernel = own.start_kernel("alpha")
    printed = [f"line {number}" for number in range(300)]
    with (
        own.connect("alpha", kernel, v1=v1) as asker,
        own.connect("alpha", kernel, v1=not v1) as other,
    ):
        asker.execute("kept = 'in memory'")
        environment = psutil.Process(record_of(own, kernel).kernel_pid).environ()
        # With it an ipykernel ends itself when its parent has.
        assert "JPY_PARENT_PID" not in environment
        before: list[Message] = []
        msg_id = asker.submit(SLOW.format(300, 0.02))
        queued = asker.submit("print('queued')")
        read_lines(asker, before, 50)
        old = kill_holder(own, kernel)
        # Lists lack nothing meanwhile.
        assert kernel in listed(own)
        assert own.request("GET", f"/alpha/api/kernels/{kernel}").status == 200
        while not (is_over(before, msg_id) and is_over(before, queued)):
            before.append(asker.receive())
        done = of(before, msg_id)
        heard: list[Message] = []
        while not (
            heard
            and heard[-1]["parent_header"].get("msg_id") == msg_id
            and heard[-1]["content"].get("execution_state") == "idle"
        ):
            heard.append(other.receive())
        assert len(done.replies) == 1
        assert done.replies[0]["status"] == "ok"
        assert of(before, queued).stdout == "queued\n"
        for messages in (done.messages, heard):
            ours = of(messages, msg_id)
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
    wait_for("no folder", lambda: not place_of(own, kernel).path.exists(), 10)


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


def test_input_can_be_given_to_a_cell_that_asked_an_earlier_holder(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    with own.connect("alpha", kernel) as channels:
        msg_id = channels.submit("print('got', input('?'))", allow_stdin=True)
        while (asked := channels.receive())["header"]["msg_type"] != "input_request":
            pass
        replaced(own, kernel, kill_holder(own, kernel))
        channels.send("stdin", "input_reply", {"value": "it"}, parent=asked["header"])
        done = channels.collect(msg_id)
        assert done.stdout.endswith("got it\n")
        assert done.replies[0]["status"] == "ok"
        # Asked under the new holder, it works as well.
        msg_id = channels.submit("print('got', input('?'))", allow_stdin=True)
        while (asked := channels.receive())["header"]["msg_type"] != "input_request":
            pass
        channels.send("stdin", "input_reply", {"value": "that"}, parent=asked["header"])
        assert channels.collect(msg_id).stdout.endswith("got that\n")
    own.request("DELETE", f"/alpha/api/kernels/{kernel}")


@pytest.mark.guarantee
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


@pytest.mark.guarantee
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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["tcp-only", "by-number"])
def test_other_transports_and_provisioners(own: RunningRelay, name: str) -> None:
    kernel = own.start_kernel("alpha", name=name)
    connection = place_of(own, kernel).connection_file.read_bytes()
    assert ("curve_secretkey" in json.loads(connection)) == (name == "tcp-only")
    with own.connect("alpha", kernel) as channels:
        pid = int(channels.execute("import os; print(os.getpid())").stdout)
        msg_id = channels.submit(SLOW.format(400, 0.02))
        read_lines(channels, [], 20)
        replaced(own, kernel, kill_holder(own, kernel))
        assert channels.collect(msg_id).replies[0]["status"] == "ok"
        msg_id = channels.submit("import time; print('sleeps', flush=True); time.sleep(600)")
        # Before that it would not notice.
        while "sleeps" not in channels.receive()["content"].get("text", ""):
            pass
        time.sleep(0.5)
        assert own.request("POST", f"/alpha/api/kernels/{kernel}/interrupt", {}).status == 204
        assert channels.collect(msg_id).replies[0]["ename"] == "KeyboardInterrupt"
        assert own.request("POST", f"/alpha/api/kernels/{kernel}/restart", {}).status == 200
        wait_for("its end", lambda: is_gone(pid), 5)
        # Launched as at first.
        assert place_of(own, kernel).connection_file.read_bytes() == connection
        pid = int(channels.execute("import os; print(os.getpid())").stdout)
        # And adopted once more.
        replaced(own, kernel, kill_holder(own, kernel))
        assert usable(channels)
    assert own.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204
    wait_for("the kernel's end", lambda: is_gone(pid), 10)


# --- and does not ---------------------------------------------------------------------------


@pytest.mark.guarantee
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
    assert not place.path.exists()
    assert not list(address.socket.parent.glob(f"{address.socket.stem}*"))
    assert '"event":"holder_restart_limit_reached"' in own.log.read_text()


@pytest.mark.guarantee
def test_a_kernel_whose_start_loses_its_holder_has_not_started(own: RunningRelay) -> None:
    before = set(kernels_folder(own.state, "alpha").iterdir())
    with in_background(lambda: own.request("POST", "/alpha/api/kernels", {})) as answers:

        def launched() -> KernelRecord | None:
            for folder in kernels_folder(own.state, "alpha").glob("[!.]*"):
                record = KernelFolder(folder).read_record() if folder not in before else None
                if record is not None and record.kernel_pid is not None:
                    return record
            return None

        record = wait_for("a kernel's launch", launched)
        os.kill(record.holder_pid, signal.SIGKILL)
    assert answers[0].status == 500
    wait_for("the kernel's end", lambda: is_gone(record.kernel_pid), 5)
    folder = kernels_folder(own.state, "alpha")
    wait_for("nothing left", lambda: set(folder.iterdir()) <= before, 5)


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
