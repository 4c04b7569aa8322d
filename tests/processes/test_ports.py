from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from relay.processes import PortInUse, StartError, listen, listen_with_retry, reserve
from relay.processes.ports import user_of
from tests.programs import python

LISTEN = """
import socket, sys, signal
s = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print(s.getsockname()[1], flush=True)
signal.pause()
"""


def test_a_listener_is_private_and_does_not_block() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not listener.get_inheritable()
        assert listener.gettimeout() == 0


def test_ipv6() -> None:
    with listen("::1", 0) as listener:
        assert listener.family == socket.AF_INET6


def test_a_port_in_use_names_process_and_command() -> None:
    with subprocess.Popen(python(LISTEN, "0"), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        try:
            with pytest.raises(PortInUse) as caught:
                listen("127.0.0.1", port)
        finally:
            other.kill()
    message = str(caught.value)
    assert message.startswith(f"port {port} on 127.0.0.1 is in use by process {other.pid} (")
    assert "-I -S -c" in message
    assert "\n" not in message
    assert len(message) < 250


def test_a_port_of_our_own_is_named_too() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert user_of(listener.getsockname()[1]).startswith(f"process {os.getpid()} (")


def test_a_port_whose_user_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr("relay.processes.ports._socket_inodes", lambda pid: set())
        assert user_of(port) == "a process of another user"
    assert user_of(port) == "a process that /proc does not show"


def test_a_predecessor_on_its_way_out_is_waited_for() -> None:
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    leaving = threading.Timer(0.2, first.close)
    leaving.start()
    with listen_with_retry("127.0.0.1", port) as second:
        assert second.getsockname()[1] == port
    leaving.join()


def test_patience_ends() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(PortInUse):
        listen_with_retry("127.0.0.1", first.getsockname()[1], timeout=0.1)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "192.0.2.1"])
def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises(StartError, match="cannot listen on"):
        listen(host, 0)


def test_a_reserved_port_is_ours_to_listen_on_again_and_again() -> None:
    with reserve("127.0.0.1") as kept:
        port = kept.getsockname()[1]
        for _ in range(2):
            with socket.create_server(("127.0.0.1", port)):
                pass


def test_a_reserved_port_is_nobody_elses() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    with reserve("127.0.0.1") as kept:
        port = kept.getsockname()[1]
        assert low <= port <= high
        # Without SO_REUSEADDR it cannot be had even by name.
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
