from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from relay.peer_credentials import (
    CREDENTIALS_SIZE,
    PeerCredentials,
    peer_credentials,
    sender_pid,
)

SEND = """
import os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
    channel.sendto(str(os.getpid()).encode(), sys.argv[1])
"""


def test_a_connection_has_the_credentials_of_its_peer() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_credentials(ours) == PeerCredentials(os.getpid(), os.geteuid())


def test_a_datagram_names_the_process_that_sent_it(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind(path)
        subprocess.run([sys.executable, "-c", SEND, path], check=True, timeout=30)
        text, ancillary, _, _ = receiver.recvmsg(100, socket.CMSG_SPACE(CREDENTIALS_SIZE))
    assert sender_pid(ancillary) == int(text)
    assert sender_pid(ancillary) != os.getpid()


def test_a_datagram_without_credentials_has_no_sender() -> None:
    assert sender_pid([]) == 0
    assert sender_pid([(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\0" * 4)]) == 0
