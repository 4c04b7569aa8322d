from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from relay.processes import StartError, claim_notify_socket, inherited_listeners, notify

DIE = "import sys; from relay.processes import die_with_parent; die_with_parent(int(sys.argv[1]))"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    claim_notify_socket.cache_clear()
    yield
    claim_notify_socket.cache_clear()


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(b"")
        channel.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + channel.getsockname()[1:].decode())
        yield channel


def test_notify_reaches_the_socket_and_leaves_no_variable(ears: socket.socket) -> None:
    assert notify("READY=1\nX_WORKERS=1,2")
    assert ears.recv(100) == b"READY=1\nX_WORKERS=1,2"
    assert "NOTIFY_SOCKET" not in os.environ
    assert notify("again")
    assert ears.recv(100) == b"again"


def test_notify_without_anybody_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


def test_notify_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody-is-here")
    assert not notify("READY=1")


def test_a_child_of_somebody_else_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIE + "; print('lives')", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "relay: the parent, process 1, has ended\n"


def test_a_child_is_killed_when_its_parent_is() -> None:
    child = DIE + "; import signal; print('armed', flush=True); signal.pause()"
    parent = (
        "import os, subprocess, sys, signal\n"
        "p = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])\n"
        "print(p.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert {process.stdout.readline(), process.stdout.readline()} >= {"armed\n"}
        process.send_signal(signal.SIGKILL)
        # The pipe's other end is the child's too: it closes when both are gone.
        assert process.stdout.read() == ""


@pytest.fixture
def at_three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Two listening sockets, which the code under test finds as descriptors "3" and "4"."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    first = sockets[0].fileno()
    while sockets[1].fileno() != first + 1:  # descriptors must be neighbours
        first = sockets[1].fileno()
        sockets.append(socket.create_server(("127.0.0.1", 0)))
        sockets.pop(0).close()
    monkeypatch.setattr("relay.processes.inherited._FIRST_LISTENER", first)
    yield sockets
    for each in sockets:
        each.close()


def test_listeners_are_taken_over_by_name(
    monkeypatch: pytest.MonkeyPatch, at_three: list[socket.socket]
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_FDNAMES", "https:wss")
    names = [each.getsockname() for each in at_three]
    for each in at_three:
        each.set_inheritable(True)
    found = inherited_listeners()
    try:
        assert [found["https"].getsockname(), found["wss"].getsockname()] == names
        assert all(each.gettimeout() == 0 and not each.get_inheritable() for each in found.values())
        assert not {"LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)
        assert inherited_listeners() == {}
    finally:
        for each in found.values():
            each.detach()


@pytest.mark.parametrize(("offset", "taken"), [(0, True), (1, False)])
def test_listen_pid_is_honoured(
    monkeypatch: pytest.MonkeyPatch, at_three: list[socket.socket], offset: int, taken: bool
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "https")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + offset))
    found = inherited_listeners()
    for each in found.values():
        each.detach()
    assert bool(found) is taken
    assert "LISTEN_PID" not in os.environ


@pytest.mark.parametrize(
    ("count", "names"), [("2", "https"), ("1", ""), ("2", "https:https"), ("x", "https")]
)
def test_variables_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, count: str, names: str
) -> None:
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", names)
    with pytest.raises(StartError, match="LISTEN_FDNAMES"):
        inherited_listeners()


def test_a_descriptor_that_does_not_listen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "https")
    with socket.socket() as idle:
        copy = os.dup(idle.fileno())  # closed by the refusal
        monkeypatch.setattr("relay.processes.inherited._FIRST_LISTENER", copy)
        with pytest.raises(StartError, match="does not listen"):
            inherited_listeners()


def test_a_closed_descriptor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "https")
    monkeypatch.setattr("relay.processes.inherited._FIRST_LISTENER", 987)
    with pytest.raises(StartError, match="is not a socket"):
        inherited_listeners()


def test_these_tests_run_in_the_main_thread() -> None:
    # PR_SET_PDEATHSIG is bound to the thread that forked.
    assert threading.current_thread() is threading.main_thread()
