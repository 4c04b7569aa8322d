from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from relay.agent.privsep.protocol import HelperRequest, HelperResponse, close, receive, send

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        for each in (one, other):
            each.settimeout(0)
        yield one, other


def request(name: str = "k") -> HelperRequest:
    return HelperRequest(id="1", op="start", kernel_id=name, owner="token:alice")


def test_a_request_comes_with_its_files_which_are_not_inherited(pair: Pair) -> None:
    reading, writing = os.pipe()
    send(pair[0], request(), (reading, writing))
    os.close(reading)
    os.close(writing)
    received, files = receive(pair[1], HelperRequest)
    assert received == request()
    assert len(files) == 2
    assert not any(os.get_inheritable(each) for each in files)
    os.write(files[1], b"x")
    assert os.read(files[0], 1) == b"x"
    close(files)


def test_packets_stay_apart(pair: Pair) -> None:
    send(pair[0], request("a"))
    send(pair[0], request("b"))
    assert receive(pair[1], HelperRequest) == (request("a"), [])
    assert receive(pair[1], HelperRequest) == (request("b"), [])
    with pytest.raises(BlockingIOError):
        receive(pair[1], HelperRequest)


@pytest.mark.parametrize(
    "data",
    [
        *(b"{", b"[]", b"\xff", b'{"id": "1", "op": "start"}', b"[" * 60000),
        b'{"id": "1", "op": "remove", "kernel_id": "k"}',
        b'{"id": 1, "op": "start", "kernel_id": "k"}',
    ],
)
def test_what_is_not_understood_is_nothing_and_its_files_are_closed(
    pair: Pair, data: bytes
) -> None:
    reading, writing = os.pipe()
    socket.send_fds(pair[0], [data], [writing])
    os.close(writing)
    assert receive(pair[1], HelperRequest) == (None, [])
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_more_files_than_there_should_be_are_not_taken(pair: Pair) -> None:
    reading, writing = os.pipe()
    socket.send_fds(pair[0], [b"{}"], [writing] * 5)
    os.close(writing)
    assert receive(pair[1], HelperRequest) == (None, [])
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_the_end(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(EOFError):
        receive(pair[1], HelperResponse)


def test_nobody_waits_for_somebody_who_does_not_read(pair: Pair) -> None:
    def send_on() -> None:
        for _ in range(10000):
            send(pair[0], request())

    with pytest.raises(BlockingIOError):
        send_on()
