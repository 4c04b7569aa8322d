from __future__ import annotations

import json

import msgspec
import pytest

from relay.bridge.messages import Channel, parse_header
from relay.bridge.requests import (
    _HEADER_BYTES,
    KernelRequest,
    UnfinishedRequests,
    is_answered,
    short_header,
)

SHELL, CONTROL = Channel.SHELL, Channel.CONTROL
LIMIT = 100


def asked(
    number: int, msg_id: str, channel: Channel = SHELL, subshell: str = "", asker: bytes = b"k"
) -> KernelRequest:
    header = short(json.dumps({"msg_id": msg_id}).encode())
    return KernelRequest(number, asker, channel, header, msg_id, "s", "execute_request", subshell)


def short(raw: bytes) -> msgspec.Raw:
    return short_header(raw, parse_header(raw))


def requests(*msg_ids: str, limit: int = LIMIT) -> UnfinishedRequests:
    made = UnfinishedRequests(limit)
    for number, msg_id in enumerate(msg_ids, 1):
        made.add(asked(number, msg_id))
    return made


def reply(found: UnfinishedRequests, msg_id: str, channel: Channel = SHELL) -> bool:
    """Answer the request that is next; whether there was one."""
    request = found.waiting((channel, "", msg_id, "s"))
    if request is not None:
        found.answer(request)
    return request is not None


def state(found: UnfinishedRequests) -> dict[str, tuple[bool, bool]]:
    return {each.msg_id: (each.answered, each.idle) for each in found}


def test_a_request_is_unfinished_until_it_was_answered_and_the_kernel_idle() -> None:
    found = requests("a", "b", "c", "d")
    assert reply(found, "a")
    found.note_idle("a", "s")
    assert reply(found, "b")
    found.note_idle("c", "s")
    assert state(found) == {"b": (True, False), "c": (False, True), "d": (False, False)}
    assert reply(found, "c")
    found.note_idle("b", "s")
    assert list(state(found)) == ["d"]


def test_nothing_of_a_process_that_ended() -> None:
    found = requests("a")
    found.clear()
    assert (len(found), list(found), reply(found, "a")) == (0, [], False)
    assert not found.waits_for_idle("a", "s")


def test_one_id_used_twice() -> None:
    found = requests("a", "a")
    assert reply(found, "a")
    found.note_idle("a", "s")
    assert list(state(found)) == ["a"]
    found.note_idle("a", "s")
    # A reply comes on its request's channel.
    assert not reply(found, "a", CONTROL)
    assert [(each.answered, each.idle) for each in found] == [(False, True)]


def test_the_oldest_is_forgotten_beyond_the_limit() -> None:
    found = requests("a", "b", limit=2)
    assert found.add(asked(3, "c"))
    assert list(state(found)) == ["b", "c"]
    assert not reply(found, "a")


def test_what_lacks_its_idle_status_only_is_forgotten_first() -> None:
    found = requests("a", "b", limit=2)
    assert reply(found, "b")
    # Nobody misses a reply by it.
    assert not found.add(asked(3, "c"))
    assert list(state(found)) == ["a", "c"]


def test_what_is_finished_makes_room() -> None:
    found = requests(limit=1)
    for number in range(1, 5):
        assert not found.add(asked(number, str(number)))
        assert reply(found, str(number))
        found.note_idle(str(number), "s")
    assert len(found) == 0


def test_a_subshell_is_a_queue_of_its_own() -> None:
    found = UnfinishedRequests(LIMIT)
    found.add(asked(1, "a", subshell="x"))
    assert not reply(found, "a")
    (request,) = found
    assert request.queue == (SHELL, "x")
    assert asked(1, "a", CONTROL).queue == (CONTROL, "")
    assert found.waiting((SHELL, "x", "a", "s")) is request


@pytest.mark.parametrize(
    ("subshell_id", "queue"), [("x", "x"), (None, ""), (7, "?"), ("y" * 2000, "y" * 1024)]
)
def test_a_subshells_name_is_what_the_header_says(subshell_id: object, queue: str) -> None:
    header = parse_header(json.dumps({"subshell_id": subshell_id}).encode())
    assert header.subshell == queue


def test_of_a_large_header_only_the_ids_are_kept() -> None:
    header = {"msg_id": "a", "session": "s", "msg_type": "execute_request"}
    raw = json.dumps({**header, "rest": "x" * _HEADER_BYTES}).encode()
    assert json.loads(bytes(short(raw))) == header


def test_a_header_is_kept_on_one_line() -> None:
    kept = bytes(short(b'{"msg_id":\n"a",\r\n"session": "s"}'))
    assert len(kept.splitlines()) == 1
    assert json.loads(kept) == {"msg_id": "a", "session": "s"}


@pytest.mark.parametrize(
    ("channel", "msg_type", "answered"),
    [
        (SHELL, "execute_request", True),
        (CONTROL, "made_up_request", True),
        (Channel.STDIN, "input_reply", False),
        (SHELL, "comm_msg", False),
    ],
)
def test_what_a_kernel_replies_to(channel: Channel, msg_type: str, answered: bool) -> None:
    assert is_answered(channel, msg_type) is answered
