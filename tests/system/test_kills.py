"""What a client sees when parts of the relay are killed with SIGKILL, or stopped, around it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from relay.registry import process_started
from tests.system.channels import Channels, Execution, count_lines
from tests.system.running import Answer, RunningRelay, processes_of, wait_for

LINES = 2000
MIB = 1024 * 1024

both = pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])


@pytest.fixture(scope="module")
def own() -> Iterator[RunningRelay]:
    """A relay of this file's own, to be killed in parts."""
    with RunningRelay(("alpha",)) as running:
        yield running


@contextlib.contextmanager
def in_background(work: Any) -> Iterator[list[Any]]:
    """Run ``work`` beside the block; its result, or exception, is in the list afterwards."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - raised again below
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        thread.join(60)
    if isinstance(results[0], Exception):
        raise results[0]


def agent_process(relay: RunningRelay) -> psutil.Process:
    return psutil.Process(relay.agent_pid("alpha"))


def wait_for_end(pid: int) -> None:
    wait_for(f"the end of {pid}", lambda: process_started(pid) is None or None)


def read_on(channels: Channels) -> NoReturn:
    """Read until that raises."""
    while True:
        channels.receive()


def read_lines(channels: Channels, into: list[str], count: int) -> None:
    """Add what is printed to ``into``, until there are at least ``count`` lines."""
    while "".join(into).count("\n") < count:
        message = channels.receive()
        if message["header"]["msg_type"] == "stream":
            into.append(message["content"]["text"])


@both
@pytest.mark.parametrize("pause", [0.0, 0.002], ids=["at once", "slowly"])
def test_an_agent_killed_in_mid_cell_is_not_noticed(
    own: RunningRelay, v1: bool, pause: float
) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - where to kill
    dice = random.Random(seed)  # noqa: S311
    print(f"seed {seed}")  # noqa: T201 - shown with a failure
    moments = sorted(dice.sample(range(1, LINES - 1), 3))
    kernel = own.start_kernel("alpha")
    printed = [f"line {number}" for number in range(LINES)]
    code = f"""
import sys, time
for number in range({LINES}):
    print("line", number)
    sys.stdout.flush()
    time.sleep({pause})
"""

    def kill(so_far: Execution) -> None:
        if moments and len(so_far.stdout.splitlines()) > moments[0]:
            moments.pop(0)
            own.kill_agent("alpha")

    with own.connect("alpha", kernel, v1=v1) as channels:
        done = channels.execute(code, seen=kill)
        assert count_lines(done.stdout, printed) == (0, 0, 0, 0)
        assert len(done.replies) == 1
        assert done.states == ["busy", "idle"]
        # The same WebSocket goes on.
        assert channels.execute("print(6 * 7)").stdout == "42\n"
    assert len(moments) < 3, "no agent was killed"


@both
def test_a_message_cut_by_a_kill_goes_on_at_its_fragment(own: RunningRelay, v1: bool) -> None:
    kernel = own.start_kernel("alpha")
    size = 30 * MIB
    with own.connect("alpha", kernel, v1=v1) as channels:
        asked = channels.send(
            "shell",
            "execute_request",
            {"code": f"import os; text = os.urandom({size // 2}).hex(); print(text)"},
        )
        # Nothing is read for a moment: the message is under way, and most of it is not here yet.
        time.sleep(1.5)
        own.kill_agent("alpha")
        done = channels.collect(asked)
        assert len(done.stdout) == size + 1
        check = "import hashlib; print(hashlib.sha256(text.encode()).hexdigest())"
        digest = channels.execute(check).stdout.strip()
    assert hashlib.sha256(done.stdout.strip().encode()).hexdigest() == digest


def test_requests_sent_while_the_agent_is_down_run_once_and_in_order(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    with own.connect("alpha", kernel) as channels:
        channels.execute("ran = []")
        own.kill_agent("alpha")
        sent = [
            channels.send("shell", "execute_request", {"code": f"ran.append({number})"})
            for number in range(20)
        ]
        for msg_id in sent[-1:]:
            channels.collect(msg_id)
        assert channels.execute("print(ran)").stdout == f"{list(range(20))}\n"


def test_an_agent_killed_while_a_kernel_starts_starts_it_once(own: RunningRelay) -> None:
    before = {kernel["id"] for kernel in own.request("GET", "/alpha/api/kernels").json}

    def start() -> Answer:
        return own.request("POST", "/alpha/api/kernels", {"name": "python3"})

    with in_background(start) as answers:
        folder = own.state / "alpha" / "kernels"
        wait_for("a folder", lambda: {path.name for path in folder.glob("[!.]*")} - before)
        own.kill_agent("alpha")
    (answer,) = answers
    assert answer.status == 201
    after = {kernel["id"] for kernel in own.request("GET", "/alpha/api/kernels").json}
    assert after - before == {answer.json["id"]}
    with own.connect("alpha", answer.json["id"]) as channels:
        assert channels.execute("print(1)").stdout == "1\n"


def test_without_an_agent_rest_says_503(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    stopped = agent_process(own).pid
    # Stopped, the supervisor starts nothing again.
    own.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(stopped, signal.SIGKILL)
        for target in (f"/alpha/api/kernels/{kernel}", "/alpha/api/kernels", "/alpha/api"):
            answer = own.request("GET", target)
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert set(answer.json) == {"message", "reason", "request_id"}

    finally:
        own.process.send_signal(signal.SIGCONT)
    own.agent_pid("alpha", other_than=stopped)
    wait_for("the list", lambda: own.request("GET", "/alpha/api/kernels").status == 200 or None)


def test_an_upgrade_waits_for_the_agent_to_come_back(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    own.kill_agent("alpha")
    with own.connect("alpha", kernel) as channels:
        assert channels.execute("print('held')").stdout == "held\n"


def test_a_killed_worker_leaves_the_other_and_is_replaced(own: RunningRelay) -> None:
    killed = own.info.pids.edge[0]
    os.kill(killed, signal.SIGKILL)
    assert own.request("GET", "/alpha/api/kernels").status == 200
    workers = wait_for(
        "another worker",
        lambda: (
            own.info.pids.edge
            if killed not in own.info.pids.edge and len(own.info.pids.edge) == 2
            else None
        ),
    )
    assert all(process_started(pid) is not None for pid in workers)


def test_a_killed_holder_takes_its_kernel_along(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    with own.connect("alpha", kernel) as channels:
        pid = int(channels.execute("import os; print(os.getpid())").stdout)
        holder = psutil.Process(pid).ppid()
        os.kill(holder, signal.SIGKILL)
        wait_for_end(pid)
        with pytest.raises(ConnectionClosed) as closed:
            read_on(channels)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
    assert own.request("GET", f"/alpha/api/kernels/{kernel}").status == 404
    assert kernel not in {each["id"] for each in own.request("GET", "/alpha/api/kernels").json}
    assert not any(kernel in arguments for arguments in processes_of(own.folder).values())


def test_a_killed_supervisor_costs_a_client_nothing_but_a_reconnect() -> None:
    with RunningRelay(("alpha",)) as relay:
        kernel = relay.start_kernel("alpha")
        printed = [f"line {number}" for number in range(200)]
        code = "import time\nfor n in range(200): print('line', n, flush=True); time.sleep(0.02)"
        ports = [url.rpartition(":")[2] for url in (relay.info.https_url, relay.info.wss_url)]
        with relay.connect("alpha", kernel, session="the-same") as channels:
            asked = channels.send("shell", "execute_request", {"code": code})
            pids = relay.info.pids
            came: list[str] = []
            read_lines(channels, came, 50)
            relay.process.kill()
            with pytest.raises(ConnectionClosed):
                read_lines(channels, came, 1000)
        relay.stop()
        for pid in (*pids.edge, *pids.agents["alpha"]):
            wait_for_end(pid)
        # At once, on the same ports.
        relay.restart_on(*ports)
        assert relay.info.https_url.endswith(ports[0])
        with relay.connect("alpha", kernel, session="the-same") as channels:
            done = channels.collect(asked)
        count = count_lines("".join(came) + done.stdout, printed)
        assert (count.lost, count.strange) == (0, 0)
        assert done.replies
