"""Clients that come back, each in its way; and kernels that are busy when somebody comes."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import websockets
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as open_socket

from tests.system.channels import Channels, Execution, count_lines
from tests.system.running import RunningRelay, wait_for

LINES = 2000
# In one piece: of a line that the kernel sends in two messages, the second may come again alone.
PRINTING = f"""
import sys, time
for n in range({LINES}):
    sys.stdout.write(f"line {{n}}\\n")
    sys.stdout.flush()
    time.sleep(0.002)
"""
PRINTED = [f"line {n}" for n in range(LINES)]

both = pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])


@pytest.fixture
def own() -> Iterator[RunningRelay]:
    with RunningRelay(("alpha",)) as running:
        yield running


def cut(channels: Channels) -> None:
    """As a network does it: without a close frame."""
    channels.socket.socket.close()


def collect_until_lost(channels: Channels) -> list[dict[str, Any]]:
    messages = []
    try:
        while True:
            messages.append(channels.receive(30))
    except (ConnectionClosed, OSError):
        return messages


def seq_of(message: dict[str, Any]) -> str:
    return str(message["metadata"]["relay_seq"])


# Clients that say where they stand.


@both
def test_every_message_says_its_seq_to_who_asks(relay: RunningRelay, kernel: str, v1: bool) -> None:
    with (
        relay.connect("alpha", kernel, v1=v1, last_seq="") as asking,
        relay.connect("alpha", kernel, v1=v1) as other,
    ):
        done = asking.execute("print(1)")
        other.execute("print(2)")
        plain = other.execute("print(3)").messages
        assert all("relay_seq" not in each["metadata"] for each in plain)
    epochs, numbers = zip(*(seq_of(each).split("-") for each in done.messages), strict=True)
    assert len(set(epochs)) == 1
    rising = [int(number) for number in numbers]
    assert rising == sorted(set(rising))


@pytest.mark.parametrize("last_seq", ["1", "x-1", "0123456789ab-", "0123456789ab--1", "-"])
def test_a_last_seq_that_is_none_is_refused(
    relay: RunningRelay, kernel: str, last_seq: str
) -> None:
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        relay.connect("alpha", kernel, last_seq=last_seq)
    assert refused.value.response.status_code == 400
    assert b"last_seq" in refused.value.response.body


@pytest.mark.guarantee(v1=True)
@both
def test_it_gets_each_line_once_whatever_was_killed(own: RunningRelay, v1: bool) -> None:
    kernel = own.start_kernel("alpha")
    session = secrets.token_hex(16)
    messages: list[dict[str, Any]] = []
    channels = own.connect("alpha", kernel, v1=v1, session=session, last_seq="")
    msg_id = channels.submit(PRINTING)
    for _ in range(3):
        messages += [channels.receive() for _ in range(LINES // 5)]
        for pid in own.info.pids.edge:
            os.kill(pid, signal.SIGKILL)
        # What had come by then has come: a client that reads it has it.
        messages += collect_until_lost(channels)
        channels.close()
        channels = connect_again(own, kernel, v1, session, seq_of(messages[-1]))
    with channels:
        while not Execution(messages).replies or Execution(messages[-3:]).states[-1:] != ["idle"]:
            messages.append(channels.receive())
    done = Execution([m for m in messages if m["parent_header"].get("msg_id") == msg_id])
    assert count_lines(done.stdout, PRINTED) == (0, 0, 0, 0)
    seqs = [int(seq_of(each).split("-")[1]) for each in messages]
    assert seqs == sorted(set(seqs))


def connect_again(
    relay: RunningRelay, kernel: str, v1: bool, session: str, last: str | None
) -> Channels:
    def connected() -> Channels | None:
        try:
            return relay.connect("alpha", kernel, v1=v1, session=session, last_seq=last)
        except (OSError, websockets.exceptions.WebSocketException):
            return None

    return wait_for("the edge", connected)


def test_what_it_sends_again_runs_once(relay: RunningRelay) -> None:
    kernel = relay.start_kernel("alpha")
    session = secrets.token_hex(16)
    content = {"code": "runs = globals().get('runs', 0) + 1", "silent": False}
    with relay.connect("alpha", kernel, session=session, last_seq="") as first:
        first.send("shell", "execute_request", content, msg_id="once")
        first.collect("once")
        cut(first)
    with relay.connect("alpha", kernel, session=session, last_seq="") as second:
        second.send("shell", "execute_request", content, msg_id="once")
        done = second.execute("print(runs)")
        assert done.stdout == "1\n"
        assert done.replies[0]["execution_count"] == 2
    relay.request("DELETE", f"/alpha/api/kernels/{kernel}")


# Clients without a session_id.


@pytest.mark.guarantee(v1=True)
@both
def test_without_a_session_id_what_was_missed_comes_too(own: RunningRelay, v1: bool) -> None:
    kernel = own.start_kernel("alpha")
    channels = own.connect("alpha", kernel, v1=v1, session="")
    msg_id = channels.submit(PRINTING)
    before = [channels.receive() for _ in range(LINES // 4)]
    for pid in own.info.pids.edge:
        os.kill(pid, signal.SIGKILL)
    before += collect_until_lost(channels)
    channels.close()
    channels = connect_again(own, kernel, v1, "", None)
    with channels:
        after = channels.collect(msg_id)
    count = count_lines(Execution(before).stdout + after.stdout, PRINTED)
    assert (count.lost, count.out_of_order, count.strange) == (0, 0, 0)


# What a client cannot take.


def test_what_breaks_a_client_three_times_is_left_out(relay: RunningRelay) -> None:
    kernel = relay.start_kernel("alpha")
    session = secrets.token_hex(16)

    def visit() -> list[dict[str, Any]]:
        """What comes to a client that takes a megabyte at once and no more."""
        small = connect_to(relay, kernel, session, 1024 * 1024)
        messages = []
        with small, contextlib.suppress(ConnectionClosed, TimeoutError):
            while True:
                messages.append(small.receive(2))
        return messages

    with relay.connect("alpha", kernel, session=session) as channels:
        channels.execute("1")
    with relay.connect("alpha", kernel) as other:
        shown = other.execute("print('before'); display({'text/plain': 'x' * 3_000_000}, raw=True)")
        other.execute("print('after')")
        assert len(list(shown.of("display_data"))) == 1
    visits = [visit() for _ in range(4)]
    assert all("after\n" not in Execution(each).stdout for each in visits[:3])
    *_, last = visits
    assert Execution(last).stdout.endswith("after\n")
    assert re.search(r"display_data message of 300\d{4} bytes is left out", Execution(last).stderr)
    relay.request("DELETE", f"/alpha/api/kernels/{kernel}")


def connect_to(relay: RunningRelay, kernel: str, session: str, max_size: int) -> Channels:
    """A client with a limit of its own, which closes with 1009 beyond it."""
    socket = open_socket(
        f"{relay.info.wss_url}/alpha/api/kernels/{kernel}/channels?session_id={session}",
        ssl=relay.tls_for_threads,
        additional_headers=relay.authorization,
        compression=None,
        max_size=max_size,
        proxy=None,
        legacy=True,
    )
    return Channels(socket, session)


# A goodbye in the middle.


@pytest.mark.guarantee(v1=True)
@both
def test_a_goodbye_in_mid_stream_loses_nothing(relay: RunningRelay, v1: bool) -> None:
    kernel = relay.start_kernel("alpha")
    session = secrets.token_hex(16)
    text = ""
    channels = relay.connect("alpha", kernel, v1=v1, session=session)
    msg_id = channels.submit(PRINTING)
    for _ in range(8):
        text += Execution([channels.receive() for _ in range(150)]).stdout
        # What comes from here on it throws away, as most clients do, nor does it wait for long.
        channels.socket.close_timeout = 0.2
        channels.close()
        channels = relay.connect("alpha", kernel, v1=v1, session=session)
    with channels:
        text += channels.collect(msg_id).stdout
    count = count_lines(text, PRINTED)
    assert (count.lost, count.out_of_order, count.strange) == (0, 0, 0)
    relay.request("DELETE", f"/alpha/api/kernels/{kernel}")


@pytest.mark.guarantee
def test_a_restart_is_told_once_to_a_client_that_leaves_on_it(relay: RunningRelay) -> None:
    kernel = relay.start_kernel("alpha")
    session = secrets.token_hex(16)
    with relay.connect("alpha", kernel, session=session) as channels:
        channels.execute("1")
        channels.submit("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        state = ""
        while state != "restarting":
            state = channels.receive()["content"].get("execution_state", "")
    with relay.connect("alpha", kernel, session=session) as again:
        # What is asked between two processes of a kernel nobody hears.
        path = f"/alpha/api/kernels/{kernel}"
        wait_for("idle", lambda: relay.request("GET", path).json["execution_state"] == "idle")
        done = again.execute("print('new')")
        assert done.stdout == "new\n"
        states = [m["content"].get("execution_state") for m in done.messages]
        assert "restarting" not in states
    relay.request("DELETE", f"/alpha/api/kernels/{kernel}")


# A kernel that is busy.


@pytest.mark.guarantee(v1=True)
@both
def test_a_busy_kernel_is_known_within_a_second(relay: RunningRelay, v1: bool) -> None:
    kernel = relay.start_kernel("alpha")
    with relay.connect("alpha", kernel, v1=v1) as running:
        running.submit("import time; time.sleep(4); print('done')")
        # Behind that it says nothing for a while.
        while running.receive()["header"]["msg_type"] != "execute_input":
            pass
        began = time.monotonic()
        with relay.connect("alpha", kernel, v1=v1) as late:
            asked = late.send("shell", "kernel_info_request", {})
            queued = late.submit("print('next')")
            came = [late.receive(5) for _ in range(4)]
            assert time.monotonic() - began < 1
            kinds = [(m["header"]["msg_type"], m["channel"]) for m in came]
            assert kinds == [
                ("status", "iopub"),
                ("kernel_info_reply", "shell"),
                ("status", "iopub"),
                ("status", "iopub"),
            ]
            assert [m["parent_header"].get("msg_id") for m in came] == [*[asked] * 3, None]
            states = [m["content"].get("execution_state") for m in came]
            # It ends as what it is, or the client would take the kernel for idle.
            assert states == ["busy", None, "idle", "busy"]
            info = came[1]["content"]
            assert (info["status"], info["implementation"]) == ("ok", "ipython")
            assert came[1]["header"]["session"] == came[0]["header"]["session"] != late.session
            done = late.collect(queued)
            assert done.stdout == "next\n"
            assert time.monotonic() - began > 3
        # Nobody else heard of it, and the cell went on.
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1]["content"].get("text") != "next\n":
            heard.append(running.receive())
        assert all(m["parent_header"].get("msg_id") != asked for m in heard)
        assert any(m["content"].get("text") == "done\n" for m in heard)
        # Idle, it answers for itself.
        idle = running.send("shell", "kernel_info_request", {})
        while (reply := running.receive())["header"]["msg_type"] != "kernel_info_reply":
            pass
        assert reply["parent_header"]["msg_id"] == idle
    relay.request("DELETE", f"/alpha/api/kernels/{kernel}")
