"""The life of real kernels: started, interrupted, restarted, ended; kernels that misbehave."""

from __future__ import annotations

import fnmatch
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from relay.config import KernelEnvironment
from relay.kernel_folders import find_folders, kernels_folder
from tests.system.channels import Channels, Execution, Message
from tests.system.kernels import IPYKERNEL, TCP_ONLY, kernelspec, place_of, record_of, wrapped
from tests.system.running import Answer, RunningRelay, processes_of, wait_for

RESTART_LIMIT = 2

# Scripts that get a connection file and, behind it, an ipykernel's argv.
ONCE = """
import os, sys
connection, *ipykernel = sys.argv[1:]
if os.path.exists(connection + ".started"):
    sys.exit("never again")
open(connection + ".started", "w").close()
os.execv(ipykernel[0], ipykernel)
"""
CHATTY = """
import os, sys
connection, *ipykernel = sys.argv[1:]
os.write(1, b"to my own stdout\\n")
os.write(2, b"to my own stderr\\n")
os.execv(ipykernel[0], ipykernel)
"""
EXITS = "import sys; print('no cheese', file=sys.stderr); sys.exit(7)"
MUTE = "import time; print('thinking', flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def relay() -> Iterator[RunningRelay]:
    """A relay of our own: with odd kernels, and with little patience."""
    environ = {
        "RELAY_KERNELS__RESTART_LIMIT": str(RESTART_LIMIT),
        "SECRET_OF_THE_OPERATOR": "hush",
        "LC_NUMERIC": "C.UTF-8",
    }
    running = RunningRelay(("alpha",), environ=environ)
    specs = running.folder / "specs"
    running.environ["JUPYTER_PATH"] = str(specs)
    kernelspec(specs, "by-message", *IPYKERNEL, interrupt_mode="message")
    kernelspec(specs, "exits", sys.executable, "-c", EXITS)
    kernelspec(specs, "mute", sys.executable, "-c", MUTE)
    curve = {"supported_encryption": ["curve"]}
    kernelspec(specs, "tcp-only", *wrapped(TCP_ONLY), metadata=curve)
    kernelspec(specs, "once", *wrapped(ONCE))
    kernelspec(specs, "chatty", *wrapped(CHATTY))
    with running:
        yield running


@pytest.fixture(scope="module")
def kernel(relay: RunningRelay) -> str:
    """A usual kernel, for tests that leave one behind that can be used."""
    return relay.start_kernel("alpha")


# --- helpers --------------------------------------------------------------------------------


def ask(relay: RunningRelay, method: str, kernel: str, action: str = "") -> Answer:
    return relay.request(method, f"/alpha/api/kernels/{kernel}{action}")


def listed(relay: RunningRelay) -> set[str]:
    answer = relay.request("GET", "/alpha/api/kernels")
    assert answer.status == 200
    return {model["id"] for model in answer.json}


def wait_for_state(relay: RunningRelay, kernel: str, state: str) -> None:
    """Wait until REST tells a state, which it does a moment after the WebSocket."""

    def is_told() -> bool:
        return bool(ask(relay, "GET", kernel).json["execution_state"] == state)

    wait_for(f"{kernel} {state}", is_told, 5)


def kernel_pid(relay: RunningRelay, kernel: str) -> int:
    pid = record_of(relay, kernel).kernel_pid
    assert pid is not None
    return pid


def runtime_files(relay: RunningRelay) -> set[Path]:
    """What is in the folder of unix sockets."""
    return set(Path((relay.state / "runtime").read_text().strip()).iterdir())


def read_on(channels: Channels) -> NoReturn:
    """Read until that raises."""
    while True:
        channels.receive(20.0)


def until_state(channels: Channels, *states: str) -> list[str]:
    """The kernel's states as they are told, until all of ``states`` came in this order."""
    seen: list[str] = []
    wanted = list(states)
    while wanted:
        message = channels.receive(30.0)
        if message["header"]["msg_type"] == "status":
            check_status(message)
            seen.append(message["content"]["execution_state"])
            if seen[-1] == wanted[0]:
                wanted.pop(0)
    return seen


def check_status(message: Message) -> None:
    """What JupyterLab looks at."""
    assert message["channel"] == "iopub"
    for name in ("msg_id", "session", "username", "version", "date"):
        assert isinstance(message["header"][name], str)
    assert message["header"]["session"]


def interrupted(channels: Channels, relay: RunningRelay, kernel: str) -> Execution:
    """Interrupt a cell in the middle of its work."""

    def interrupt(execution: Execution) -> None:
        if execution.messages[-1]["header"]["msg_type"] == "stream":
            assert ask(relay, "POST", kernel, "/interrupt").status == 204

    code = "import time\nprint('started', flush=True)\nwhile True: time.sleep(0.01)"
    return channels.execute(code, seen=interrupt, timeout=20)


# --- interrupt ------------------------------------------------------------------------------


@pytest.mark.guarantee(name="python3")
@pytest.mark.parametrize("name", ["python3", "by-message"])
def test_interrupt(relay: RunningRelay, kernel: str, name: str) -> None:
    kernel_id = kernel if name == "python3" else relay.start_kernel("alpha", name=name)
    with relay.connect("alpha", kernel_id) as channels:
        # Noted by the kernel: which of the two ways it came.
        channels.execute("""
import signal
arrived = []
usual = signal.getsignal(signal.SIGINT)
shell = get_ipython()
on_message = shell.kernel.control_handlers["interrupt_request"]
async def noted(*args): arrived.append("message"); return await on_message(*args)
shell.kernel.control_handlers["interrupt_request"] = noted
""")
        done = interrupted(channels, relay, kernel_id)
        assert done.replies[0]["ename"] == "KeyboardInterrupt"
        expected = ["message"] if name == "by-message" else []
        assert channels.execute("print(arrived)").stdout == f"{expected}\n"


# --- restart --------------------------------------------------------------------------------


@pytest.mark.guarantee(v1=True)
@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
def test_restart_under_a_live_websocket(relay: RunningRelay, kernel: str, v1: bool) -> None:
    with relay.connect("alpha", kernel, v1=v1) as channels:
        channels.execute("state = 1")
        before = kernel_pid(relay, kernel)
        answer = ask(relay, "POST", kernel, "/restart")
        assert answer.status == 200
        assert answer.json["id"] == kernel
        assert answer.json["name"] == "python3"
        assert answer.json["execution_state"] in {"starting", "idle"}
        assert kernel_pid(relay, kernel) != before
        assert not psutil.pid_exists(before)
        assert channels.execute("print('state' in globals())").stdout == "False\n"
    assert kernel in listed(relay)


def test_restart_of_a_kernel_that_is_busy(relay: RunningRelay, kernel: str) -> None:
    with relay.connect("alpha", kernel) as channels:
        channels.submit("import time\nwhile True: time.sleep(1)")
        until_state(channels, "busy")
        started = time.monotonic()
        assert ask(relay, "POST", kernel, "/restart").status == 200
        # At the most as long as a kernel has to shut down, and then the start.
        assert time.monotonic() - started < 15
        assert channels.execute("print(1)").stdout == "1\n"


# --- death ----------------------------------------------------------------------------------


@pytest.mark.guarantee(v1=True)
@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
def test_a_kernel_that_dies_is_started_again(relay: RunningRelay, v1: bool) -> None:
    kernel_id = relay.start_kernel("alpha")
    with relay.connect("alpha", kernel_id, v1=v1) as channels:
        channels.execute("state = 1")
        before = kernel_pid(relay, kernel_id)
        channels.submit("print('last words', flush=True)\nimport os; os._exit(3)")
        assert "dead" not in until_state(channels, "busy", "restarting", "starting")
        assert channels.execute("print('state' in globals())").stdout == "False\n"
    assert kernel_pid(relay, kernel_id) != before
    wait_for_state(relay, kernel_id, "idle")


def test_a_kernel_that_keeps_dying_is_dead_in_the_end(relay: RunningRelay) -> None:
    kernel_id = relay.start_kernel("alpha")
    with relay.connect("alpha", kernel_id) as channels:
        for _ in range(RESTART_LIMIT):
            channels.submit("import os; os._exit(3)")
            assert "dead" not in until_state(channels, "restarting", "starting")
        channels.submit("import os; os._exit(3)")
        assert "restarting" not in until_state(channels, "dead")
        # It is still there, and says what it is.
        wait_for_state(relay, kernel_id, "dead")
        assert kernel_id in listed(relay)
        # Interrupting it makes no sense, restarting it does.
        refused = ask(relay, "POST", kernel_id, "/interrupt")
        assert refused.status == 500
        assert "not running" in refused.json["message"]
        assert ask(relay, "POST", kernel_id, "/restart").status == 200
        assert channels.execute("print(1)").stdout == "1\n"


def test_a_kernel_that_does_not_start_again_is_dead_in_the_end(relay: RunningRelay) -> None:
    kernel_id = relay.start_kernel("alpha", name="once")
    with relay.connect("alpha", kernel_id) as channels:
        channels.submit("import os; os._exit(3)")
        states = until_state(channels, "dead")
    assert states.count("restarting") == RESTART_LIMIT
    wait_for_state(relay, kernel_id, "dead")
    assert ask(relay, "DELETE", kernel_id).status == 204
    assert kernel_id not in listed(relay)


# --- the end --------------------------------------------------------------------------------


@pytest.mark.guarantee(busy=True)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_delete_ends_everything(relay: RunningRelay, busy: bool) -> None:
    files = runtime_files(relay)
    kernel_id = relay.start_kernel("alpha")
    record, place = record_of(relay, kernel_id), place_of(relay, kernel_id)
    assert runtime_files(relay) > files
    with (
        relay.connect("alpha", kernel_id) as one,
        relay.connect("alpha", kernel_id, v1=False) as two,
    ):
        one.execute("import subprocess; child = subprocess.Popen(['sleep', '600'])")
        if busy:
            one.submit("import time; time.sleep(600)")
            until_state(one, "busy")
        children = psutil.Process(kernel_pid(relay, kernel_id)).children(recursive=True)
        assert children
        assert ask(relay, "DELETE", kernel_id).status == 204
        assert kernel_id not in listed(relay)
        assert ask(relay, "GET", kernel_id).status == 404
        assert ask(relay, "DELETE", kernel_id).status == 404
        for channels in (one, two):
            with pytest.raises(ConnectionClosed) as closed:
                read_on(channels)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1000
            assert closed.value.rcvd.reason == "the kernel was shut down"
    for pid in (record.holder_pid, record.kernel_pid, *(each.pid for each in children)):
        wait_for(f"no process {pid}", lambda pid=pid: not psutil.pid_exists(pid), 10)  # type: ignore[misc]
    wait_for("no folder", lambda: not place.path.exists(), 10)
    assert runtime_files(relay) == files


# --- starts that fail -----------------------------------------------------------------------


@pytest.fixture
def nothing_left(relay: RunningRelay) -> Iterator[None]:
    """See that a test leaves nothing behind."""
    wait_for(
        "no kernel that ends", lambda: len(find_folders(relay.state, "alpha")) == len(listed(relay))
    )
    before = kernels_and_files(relay)
    yield
    wait_for("what was there before", lambda: kernels_and_files(relay) == before, 10)


def kernels_and_files(relay: RunningRelay) -> tuple[set[str], set[Path], set[int], set[str]]:
    folder = kernels_folder(relay.state, "alpha")
    return (
        listed(relay),
        runtime_files(relay),
        set(processes_of(relay.folder)),
        {path.name for path in folder.iterdir()},
    )


@pytest.mark.guarantee
@pytest.mark.usefixtures("nothing_left")
def test_a_kernel_that_exits_at_once(relay: RunningRelay) -> None:
    answer = relay.request("POST", "/alpha/api/kernels", {"name": "exits"})
    assert answer.status == 500
    assert "exit code 7" in answer.json["message"]
    assert "no cheese" in answer.json["message"]
    assert answer.json["reason"] == "Kernel start failed"


@pytest.mark.usefixtures("nothing_left")
def test_a_kernel_that_never_answers(relay: RunningRelay) -> None:
    body = {"name": "mute", "env": {"KERNEL_LAUNCH_TIMEOUT": "3"}}
    started = time.monotonic()
    answer = relay.request("POST", "/alpha/api/kernels", body)
    assert 3 <= time.monotonic() - started < 10
    assert answer.status == 500
    assert "within 3 s" in answer.json["message"]
    assert "waited for its heartbeat" in answer.json["message"]
    assert "thinking" in answer.json["message"]


# --- transports -----------------------------------------------------------------------------


@pytest.mark.guarantee
def test_ipc_where_the_kernel_can(relay: RunningRelay, kernel: str) -> None:
    connection = json.loads(place_of(relay, kernel).connection_file.read_text())
    assert connection["transport"] == "ipc"
    with relay.connect("alpha", kernel) as channels:
        assert channels.execute("print(1)").stdout == "1\n"
    prefix = Path(connection["ip"])
    for number in range(1, 6):
        assert prefix.with_name(f"{prefix.name}-{number}").is_socket()
    # Nobody else may enter their folder.
    assert stat.S_IMODE(prefix.parent.stat().st_mode) == 0o700


@pytest.mark.guarantee
def test_encrypted_tcp_where_it_cannot(relay: RunningRelay) -> None:
    kernel_id = relay.start_kernel("alpha", name="tcp-only")
    connection = json.loads(place_of(relay, kernel_id).connection_file.read_text())
    assert connection["transport"] == "tcp"
    assert connection["ip"] == "127.0.0.1"
    assert len(connection["curve_publickey"]) == len(connection["curve_secretkey"]) == 40
    with relay.connect("alpha", kernel_id) as channels:
        assert channels.execute("print(1)").stdout == "1\n"
        assert ask(relay, "POST", kernel_id, "/restart").status == 200
        assert channels.execute("print(2)").stdout == "2\n"
    assert ask(relay, "DELETE", kernel_id).status == 204


# --- what a kernel gets ---------------------------------------------------------------------


def descriptors(pid: int) -> set[str]:
    """What a process has open: paths of files, and sockets and pipes with their inodes."""
    names = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    # All of a kind that has no inode of its own go by one name.
    return {name for name in names if not name.startswith(("anon_inode:", "/dev/"))}


def test_a_kernel_inherits_no_descriptor(relay: RunningRelay, kernel: str) -> None:
    pids, record = relay.info.pids, record_of(relay, kernel)
    edge = psutil.Process(pids.edge[0]).ppid()
    relays = [pids.supervisor, edge, *pids.edge, *pids.agents["alpha"], record.holder_pid]
    others = {name for pid in relays for name in descriptors(pid)}
    assert str(place_of(relay, kernel).path / "lock") in others
    # The kernel appends to its log, which its holder keeps open for the next process.
    shared = descriptors(kernel_pid(relay, kernel)) & others
    assert shared == {str(place_of(relay, kernel).kernel_log)}


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(os.fsdecode(entry).split("=", 1) for entry in entries if entry)


def test_a_kernel_gets_a_small_environment(relay: RunningRelay) -> None:
    kernel_id = relay.start_kernel(
        "alpha", env={"KERNEL_COLOUR": "blue", "OTHER": "x", "KERNEL_USERNAME": "me"}
    )
    environment = environment_of(kernel_pid(relay, kernel_id))
    patterns = msgspec.convert({}, KernelEnvironment).inherit
    inherited = {
        name
        for name in environment
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    assert {"PATH", "HOME", "JUPYTER_PATH", "LC_NUMERIC"} <= inherited
    # What clients send, and what jupyter_client sets of its own.
    added = {"KERNEL_COLOUR", "KERNEL_USERNAME"}
    assert set(environment) - inherited - {"JPY_SESSION_NAME"} == added
    assert environment["KERNEL_COLOUR"] == "blue"
    # Who it is the token says, not the client.
    assert environment["KERNEL_USERNAME"] != "me"
    # The same after a restart.
    assert ask(relay, "POST", kernel_id, "/restart").status == 200
    assert environment_of(kernel_pid(relay, kernel_id)) == environment
    assert ask(relay, "DELETE", kernel_id).status == 204


def test_what_a_kernels_process_prints_itself(relay: RunningRelay) -> None:
    kernel_id = relay.start_kernel("alpha", name="chatty")
    written = place_of(relay, kernel_id).kernel_log.read_text()
    assert "to my own stdout\n" in written
    assert "to my own stderr\n" in written
    with relay.connect("alpha", kernel_id) as channels:
        code = "import os\nfor i in range(5000): os.write(1, b'raw ' * 200 + b'\\n')\nprint('end')"
        done = channels.execute(code)
        assert done.replies[0]["status"] == "ok"
        assert "end\n" in done.stdout
        # Below ipykernel, which has put itself before descriptors 1 and 2.
        code = 'import sys; os.write(sys.__stdout__.fileno(), b\'{"not": "a message"}\\n\')'
        assert channels.execute(f"{code}; print(1)").replies[0]["status"] == "ok"
    assert ask(relay, "DELETE", kernel_id).status == 204


def test_a_kernel_stays_busy_while_it_answers_aside(relay: RunningRelay, kernel: str) -> None:
    with relay.connect("alpha", kernel) as channels:
        running = channels.submit("import time; time.sleep(2)")
        until_state(channels, "busy")
        while channels.receive()["header"]["msg_type"] != "execute_input":
            pass
        # Answered by another thread, with a busy and an idle of its own: JupyterLab asks so
        # whenever it reconnects.
        asked = channels.send("control", "kernel_info_request", {})
        states: list[str] = []
        while "idle" not in states:
            message = channels.receive()
            if message["parent_header"].get("msg_id") == asked:
                states.append(message["content"].get("execution_state", ""))
        time.sleep(0.2)  # REST knows a state a moment later
        assert ask(relay, "GET", kernel).json["execution_state"] == "busy"
        channels.collect(running)
