"""What a client sees when parts of the relay are killed with SIGKILL, or stopped, around it.

Where and when to kill is random; the seed is shown with a failure.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from relay.kernel_folders import kernels_folder, process_started
from tests.system.channels import Channels, Execution, Message, count_lines
from tests.system.kernels import place_of
from tests.system.running import RunningRelay, processes_of, wait_for

LINES = 2000
MIB = 1024 * 1024

both = pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])


@pytest.fixture(scope="module")
def own() -> Iterator[RunningRelay]:
    """A relay of this file's own, to be killed in parts."""
    with RunningRelay(("alpha", "beta")) as running:
        yield running


@pytest.fixture
def cluster(own: RunningRelay) -> str:
    """The one whose agent has lived for longest: it is started again the soonest."""

    def born(name: str) -> float:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(own.agent_pid(name)).create_time()
        return math.inf

    return min(own.info.clusters, key=born)


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(2**32)  # noqa: S311 - not a secret
    print(f"seed {seed}")  # noqa: T201 - shown with a failure
    return random.Random(seed)  # noqa: S311


# --- helpers --------------------------------------------------------------------------------


@contextlib.contextmanager
def in_background(work: Callable[[], Any]) -> Iterator[list[Any]]:
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


class Killer:
    """Kills a cluster's agent, and the next one, and the next."""

    def __init__(self, relay: RunningRelay, cluster: str) -> None:
        self._relay = relay
        self._cluster = cluster
        self._target = self._last = 0

    def aim(self) -> None:
        """Wait for an agent that was not killed yet."""
        self._target = self._relay.agent_pid(self._cluster, other_than=self._last)

    def kill(self) -> None:
        """Kill the agent that was aimed at, else `aim` first."""
        if self._target == self._last:
            self.aim()
        os.kill(self._target, signal.SIGKILL)
        self._last = self._target

    @contextlib.contextmanager
    def without_agent(self) -> Iterator[None]:
        """Kill the agent; until the block's end there is no other."""
        self.aim()
        # Stopped, the supervisor starts nothing again.
        self._relay.process.send_signal(signal.SIGSTOP)
        try:
            self.kill()
            yield
        finally:
            self._relay.process.send_signal(signal.SIGCONT)

    def after_lines(self, lines: list[int]) -> Callable[[Execution], None]:
        """Kill each time an execution has printed as many lines as the next number says."""
        seen = 0

        def look(so_far: Execution) -> None:
            nonlocal seen
            last = so_far.messages[-1]
            if last["header"]["msg_type"] == "stream":
                seen += last["content"]["text"].count("\n")
            if lines and seen > lines[0]:
                lines.pop(0)
                self.kill()

        return look


def receive_until_idle(channels: Channels, msg_id: str) -> list[Message]:
    """Everything up to the idle status of a request."""
    messages = []
    while True:
        messages.append(channels.receive())
        state = messages[-1]["content"].get("execution_state")
        if state == "idle" and messages[-1]["parent_header"].get("msg_id") == msg_id:
            return messages


def listed(relay: RunningRelay, cluster: str) -> set[str]:
    answer = relay.request("GET", f"/{cluster}/api/kernels")
    assert answer.status == 200, answer
    return {model["id"] for model in answer.json}


def is_gone(pid: int) -> bool:
    return process_started(pid) is None


def read_on(channels: Channels, into: list[Message]) -> NoReturn:
    """Read until that raises."""
    while True:
        into.append(channels.receive())


def read_lines(channels: Channels, into: list[Message], count: int) -> None:
    """Read until so many lines are printed."""
    while Execution(into).stdout.count("\n") < count:
        into.append(channels.receive())


# --- agents ---------------------------------------------------------------------------------


@pytest.mark.guarantee(v1=True, pause=0.001)
@both
@pytest.mark.parametrize("pause", [0.0, 0.001], ids=["at once", "slowly"])
def test_agents_killed_in_mid_cell_are_not_noticed(
    own: RunningRelay, cluster: str, dice: random.Random, v1: bool, pause: float
) -> None:
    moments = sorted(dice.sample(range(1, LINES - 1), 3))
    kernel = own.start_kernel(cluster)
    printed = [f"line {number}" for number in range(LINES)]
    code = f"""
import time
for number in range({LINES}):
    print("line", number, flush=True)
    # Of what waits in its own PUB socket a kernel drops all beyond 1,000 messages: it must not
    # get that far ahead of a holder that is given no time.
    if {pause} or number % 100 == 99: time.sleep({pause} or 0.02)
"""
    with (
        own.connect(cluster, kernel, v1=v1) as asker,
        own.connect(cluster, kernel, v1=not v1) as other,
    ):
        done = asker.execute(code, seen=Killer(own, cluster).after_lines(moments))
        assert not moments
        assert count_lines(done.stdout, printed) == (0, 0, 0, 0)
        assert len(done.replies) == 1
        assert done.states == ["busy", "idle"]
        # Nor does somebody notice who only looks on.
        msg_id = done.messages[0]["parent_header"]["msg_id"]
        heard = Execution(receive_until_idle(other, msg_id))
        assert count_lines(heard.stdout, printed) == (0, 0, 0, 0)
        assert {each["channel"] for each in heard.messages} == {"iopub"}
        # The same WebSockets go on.
        for channels in (asker, other):
            assert channels.execute("print(6 * 7)").stdout == "42\n"


@pytest.mark.guarantee(v1=True)
@both
def test_a_message_cut_by_kills_goes_on_at_its_fragment(
    own: RunningRelay,
    cluster: str,
    dice: random.Random,
    v1: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 20 * MIB
    killer, kernel = Killer(own, cluster), own.start_kernel(cluster)
    # Of 160 fragments some fifty wait on the way when a client does not read.
    moments = sorted(dice.sample(range(1, 80), 2))
    with own.connect(cluster, kernel, v1=v1) as channels:

        def receive(_: float) -> Any:
            pieces: list[Any] = []
            for piece in channels.socket.recv_streaming():
                pieces.append(piece)
                if moments and len(pieces) > moments[0]:
                    moments.pop(0)
                    killer.kill()
            return type(pieces[0])().join(pieces)

        monkeypatch.setattr(channels.socket, "recv", receive)
        code = f"import random; print(random.Random(5).randbytes({size // 2}).hex())"
        done = channels.execute(code)
        assert not moments
        assert [len(each["content"]["text"]) for each in done.of("stream")] == [size + 1]
        assert done.stdout == random.Random(5).randbytes(size // 2).hex() + "\n"  # noqa: S311
        assert len(done.replies) == 1
        assert done.states == ["busy", "idle"]
        assert channels.execute("print(6 * 7)").stdout == "42\n"


@pytest.mark.guarantee(v1=True)
@both
def test_requests_around_a_kill_run_once_and_in_order(
    own: RunningRelay, cluster: str, v1: bool
) -> None:
    killer, kernel = Killer(own, cluster), own.start_kernel(cluster)
    record = place_of(own, kernel, cluster).read_record()
    assert record is not None
    with own.connect(cluster, kernel, v1=v1) as channels:
        channels.execute("ran = []")
        asked: list[str] = []

        def ask(number: int) -> None:
            first = len(asked)
            asked.extend(channels.submit(f"ran.append({first + n})") for n in range(number))

        # Some arrive at the holder, and nobody learns of it: the agent dies before it answers.
        os.kill(record.holder_pid, signal.SIGSTOP)
        ask(20)
        time.sleep(0.5)
        with killer.without_agent():
            os.kill(record.holder_pid, signal.SIGCONT)
            # Some must wait for the next agent.
            ask(20)
            time.sleep(0.2)
        # And some are just under way when that is killed.
        killer.aim()
        ask(20)
        killer.kill()
        ask(20)
        asked.append(channels.submit("pass"))
        answered: list[str] = []
        while answered[-1:] != asked[-1:]:
            message = channels.receive()
            if message["header"]["msg_type"] == "execute_reply":
                answered.append(message["parent_header"]["msg_id"])
        assert answered == asked
        assert channels.execute("print(ran)").stdout == f"{list(range(80))}\n"
    # An ipykernel drops, and says so, what it is sent twice: the relay is not to rely on that.
    assert "Duplicate Signature" not in place_of(own, kernel, cluster).kernel_log.read_text()


@pytest.mark.guarantee(moment="request.json")
@pytest.mark.parametrize("moment", ["", "request.json", "record.json"])
def test_an_agent_killed_while_a_kernel_starts_starts_it_once(
    own: RunningRelay, cluster: str, moment: str
) -> None:
    folder = kernels_folder(own.state, cluster)
    before = {path.name for path in folder.iterdir()}

    def appeared() -> list[Path]:
        return [
            path for path in folder.glob(f"[!.]*/{moment}") if path.parts[-2] not in before
        ] or [path for path in folder.glob("[!.]*") if not moment and path.name not in before]

    with in_background(lambda: own.request("POST", f"/{cluster}/api/kernels", {})) as answers:
        wait_for(f"{moment} of a new kernel", appeared)
        Killer(own, cluster).kill()
    (answer,) = answers
    assert answer.status == 201
    kernel = answer.json["id"]
    assert listed(own, cluster) - before == {kernel}
    assert {path.name for path in folder.iterdir()} - before == {kernel}
    with own.connect(cluster, kernel) as channels:
        pid = int(channels.execute("import os; print(os.getpid())").stdout)
    # One holder, one kernel, and nothing else that has to do with it.
    pids = {each for each, argv in processes_of(own.folder).items() if kernel in argv}
    assert pids == {pid, psutil.Process(pid).ppid()}


@pytest.mark.guarantee
def test_without_an_agent_kernels_are_unavailable_but_never_gone(
    own: RunningRelay, cluster: str
) -> None:
    kernel = own.start_kernel(cluster)
    with Killer(own, cluster).without_agent():
        for _ in range(4):  # both workers, and again
            for target in ("", "/kernels", f"/kernels/{kernel}", "/kernelspecs"):
                answer = own.request("GET", f"/{cluster}/api{target}")
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) > 0
                assert "not available" in answer.json["message"]
        assert own.request("DELETE", f"/{cluster}/api/kernels/{kernel}").status == 503
    wait_for("the agent", lambda: own.request("GET", f"/{cluster}/api").status == 200)
    assert kernel in listed(own, cluster)


@pytest.mark.guarantee
def test_an_upgrade_waits_for_the_agent_to_come_back(own: RunningRelay, cluster: str) -> None:
    kernel = own.start_kernel(cluster)
    # Whatever happened before: a worker that has not heard of the agent since it was down last
    # lets its clients wait, too.
    with Killer(own, cluster).without_agent():
        assert own.request("GET", f"/{cluster}/api/kernels").status == 503
        with in_background(lambda: own.connect(cluster, kernel)) as opened:
            time.sleep(1)
            assert not opened
            own.process.send_signal(signal.SIGCONT)
    with opened[0] as channels:
        assert channels.execute("print('held')").stdout == "held\n"


def test_the_newest_websocket_of_a_session_still_wins(own: RunningRelay, cluster: str) -> None:
    """Its predecessor, of which nothing was read until now, takes nothing back."""
    kernel = own.start_kernel(cluster)
    with own.connect(cluster, kernel, session="same") as old:
        old.submit("for number in range(300): print('x' * 100_000, flush=True)")
        time.sleep(1)
        with own.connect(cluster, kernel, session="same") as new:
            assert new.execute("print('new')").stdout == "new\n"
            Killer(own, cluster).kill()
            assert new.execute("print('newer')").stdout == "newer\n"
            with pytest.raises(ConnectionClosed) as closed:
                read_on(old, [])
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1000
            assert new.execute("print('newest')").stdout == "newest\n"


# --- edge -----------------------------------------------------------------------------------


def worker_of(relay: RunningRelay, channels: Channels) -> int:
    """The pid of the edge worker that has a client's WebSocket."""
    ours = channels.socket.socket.getsockname()[:2]

    def find() -> int | None:
        for pid in relay.info.pids.edge:
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = psutil.Process(pid).net_connections("inet")
                if any(each.raddr == ours for each in connections):
                    return pid
        return None

    return wait_for(f"the worker that has {ours}", find, 5)


@pytest.mark.guarantee
def test_a_killed_worker_costs_its_clients_a_reconnect(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha")
    printed = [f"line {number}" for number in range(500)]
    code = "import time\nfor n in range(500): print('line', n, flush=True); time.sleep(0.005)"
    with contextlib.ExitStack() as opened:
        workers: dict[int, Channels] = {}
        while len(workers) < 2:
            channels = own.connect("alpha", kernel)
            if worker_of(own, channels) in workers:
                channels.close()
            else:
                workers[worker_of(own, channels)] = opened.enter_context(channels)
        (victim, mine), (other, theirs) = workers.items()
        before: list[Message] = []
        msg_id = mine.submit(code)
        read_lines(mine, before, 100)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(ConnectionClosed):
            read_on(mine, before)
        with own.connect("alpha", kernel, session=mine.session) as again:
            assert worker_of(own, again) != victim
            after = again.collect(msg_id)
        counted = count_lines(Execution(before).stdout + after.stdout, printed)
        assert (counted.lost, counted.out_of_order, counted.strange) == (0, 0, 0)
        assert len(after.replies) == 1
        # Clients of the other worker have noticed nothing.
        heard = Execution(receive_until_idle(theirs, msg_id))
        assert count_lines(heard.stdout, printed) == (0, 0, 0, 0)
    workers_now = wait_for(
        "a new worker in relay.json",
        lambda: {*own.info.pids.edge} if {*own.info.pids.edge}.isdisjoint({victim}) else None,
    )
    assert len(workers_now) == 2
    assert other in workers_now
    assert not any(is_gone(pid) for pid in workers_now)


# --- supervisor -----------------------------------------------------------------------------


@pytest.mark.guarantee(how=signal.SIGKILL)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "upgraded"])
def test_a_relay_that_ends_costs_a_client_nothing_but_a_reconnect(how: signal.Signals) -> None:
    printed = [f"line {number}" for number in range(200)]
    code = "import time\nfor n in range(200): print('line', n, flush=True); time.sleep(0.02)"
    before: list[Message] = []
    with RunningRelay(("alpha",)) as relay:
        kernel = relay.start_kernel("alpha")
        urls = relay.info.https_url, relay.info.wss_url
        pids = relay.info.pids
        with relay.connect("alpha", kernel, session="the-same") as channels:
            asked = channels.submit(code)
            read_lines(channels, before, 50)
            relay.process.send_signal(how)
            with pytest.raises(ConnectionClosed) as closed:
                read_on(channels, before)
            if how is signal.SIGTERM:
                # With another code clients would not come back by themselves.
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
        relay.stop()
        for pid in (*pids.edge, *pids.agents["alpha"]):
            wait_for(f"the end of {pid}", lambda pid=pid: is_gone(pid), 5)  # type: ignore[misc]
        # At once, on the same ports.
        relay.restart_on(*(url.rpartition(":")[2] for url in urls))
        assert (relay.info.https_url, relay.info.wss_url) == urls
        assert listed(relay, "alpha") == {kernel}
        with relay.connect("alpha", kernel, session="the-same") as channels:
            after = channels.collect(asked)
        counted = count_lines(Execution(before).stdout + after.stdout, printed)
        assert (counted.lost, counted.out_of_order, counted.strange) == (0, 0, 0)
        assert len(after.replies) == 1
        assert Counter(after.states)["idle"] == 1
