from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.bridge.messages import Channel
from relay.holder.sessions.requests import (
    _HEADER_BYTES,
    _SPARE_LINES,
    KernelRequest,
    RequestStore,
    request,
)

LIMIT = 100


def asked(msg_id: str, channel: Channel = Channel.SHELL, **more: object) -> KernelRequest:
    header = {"msg_id": msg_id, "session": "s", "msg_type": "execute_request", **more}
    return request(channel, json.dumps(header).encode())


def ids(requests: RequestStore) -> list[str]:
    return [each.msg_id for each in requests]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.log"


@pytest.fixture
def requests(path: Path) -> RequestStore:
    return RequestStore(path, LIMIT)


def reopened(path: Path) -> RequestStore:
    return RequestStore(path, LIMIT)


def test_the_next_holder_finds_what_is_unfinished(requests: RequestStore, path: Path) -> None:
    for msg_id in ("a", "b", "c", "d"):
        requests.add(asked(msg_id))
    requests.answered(Channel.SHELL, "a", "s")
    requests.idle("a", "s")
    requests.answered(Channel.SHELL, "b", "s")
    requests.idle("c", "s")
    found = {each.msg_id: (each.answered, each.idle) for each in reopened(path)}
    assert found == {"b": (True, False), "c": (False, True), "d": (False, False)}
    (_, _, last) = reopened(path)
    assert bytes(last.header) == bytes(asked("d").header)
    assert last == asked("d")


def test_it_goes_on_where_the_last_one_stopped(requests: RequestStore, path: Path) -> None:
    requests.add(asked("a"))
    again = reopened(path)
    again.add(asked("b"))
    again.answered(Channel.SHELL, "a", "s")
    again.idle("a", "s")
    assert ids(reopened(path)) == ["b"]


def test_a_torn_line_ends_what_is_known(requests: RequestStore, path: Path) -> None:
    requests.add(asked("a"))
    requests.add(asked("b"))
    path.write_bytes(path.read_bytes()[:-20])
    assert ids(reopened(path)) == ["a"]


def test_nothing_of_a_process_that_ended(requests: RequestStore, path: Path) -> None:
    requests.add(asked("a"))
    requests.clear()
    assert ids(requests) == ids(reopened(path)) == []


def test_one_id_used_twice(requests: RequestStore) -> None:
    requests.add(asked("a"))
    requests.add(asked("a"))
    requests.answered(Channel.SHELL, "a", "s")
    requests.idle("a", "s")
    assert ids(requests) == ["a"]
    requests.idle("a", "s")
    requests.answered(Channel.CONTROL, "a", "s")
    assert [(each.answered, each.idle) for each in requests] == [(False, True)]


def test_the_oldest_is_forgotten_beyond_the_limit(path: Path) -> None:
    requests = RequestStore(path, 2)
    for msg_id in ("a", "b", "c"):
        requests.add(asked(msg_id))
    assert ids(requests) == ["b", "c"]


def test_the_file_stays_small(requests: RequestStore, path: Path) -> None:
    requests.add(asked("kept"))
    for number in range(_SPARE_LINES):
        requests.add(asked(str(number)))
        requests.answered(Channel.SHELL, str(number), "s")
        requests.idle(str(number), "s")
    assert len(path.read_bytes().splitlines()) < _SPARE_LINES + 10
    assert ids(reopened(path)) == ["kept"]


def test_lanes() -> None:
    assert asked("a").lane == (Channel.SHELL, "")
    assert asked("a", Channel.CONTROL).lane == (Channel.CONTROL, "")
    assert asked("a", subshell_id="x").lane == (Channel.SHELL, "x")
    assert asked("a", subshell_id=None).lane == (Channel.SHELL, "")
    assert asked("a", subshell_id=7).lane == (Channel.SHELL, "?")


def test_of_a_large_header_only_the_ids_are_kept(requests: RequestStore, path: Path) -> None:
    requests.add(asked("a", rest="x" * _HEADER_BYTES))
    (found,) = reopened(path)
    header = json.loads(bytes(found.header))
    assert header == {"msg_id": "a", "session": "s", "msg_type": "execute_request"}


def test_a_header_on_several_lines(requests: RequestStore, path: Path) -> None:
    requests.add(request(Channel.SHELL, b'{"msg_id":\n"a",\r\n"session": "s"}'))
    assert ids(reopened(path)) == ["a"]


def test_trouble_with_the_disk_costs_nothing_else(path: Path) -> None:
    requests = RequestStore(path.parent / "no such folder" / "requests.log", LIMIT)
    requests.add(asked("a"))
    assert ids(requests) == ["a"]
    requests.answered(Channel.SHELL, "a", "s")
    requests.idle("a", "s")
    assert ids(requests) == []
    requests.close()
