"""Requests in a folder of version 1: in the table who asked, in requests.log what came of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from relay.bridge.session_table import SessionLimits, session_key
from relay.holder.sessions.store import SessionStore
from relay.holder.sessions.version1 import LeftRequest, read_requests

LIMITS = SessionLimits(
    sessions=10, requests=10, repeats=10, lifetime=100.0, anonymous_lifetime=10.0
)
KEY = session_key("token:ada", "s s")
OTHER = session_key("token:ada", "s t")


def line(number: int, msg_id: str) -> list[Any]:
    header = {"msg_id": msg_id, "session": "k", "msg_type": "execute_request"}
    new = [0, header, msg_id, "k", "execute_request", "", False, False]
    return [number, new, False]


def write_log(path: Path, *lines: list[Any]) -> Path:
    path.write_bytes(b"".join(json.dumps(each).encode() + b"\n" for each in lines))
    return path


def write_table(path: Path, *events: dict[str, Any], waiting: Any = ()) -> Path:
    key = b64(KEY)
    session = {
        "key": key,
        "principal": "token:ada",
        "anonymous": False,
        "cursor": 0,
        "audiences": ["", key],
        "connection": 1,
    }
    table = {
        "epoch": "e" * 12,
        "seq": 0,
        "sessions": [session],
        "waiting": [{"request": [0, "", name, "k"], "keys": keys} for name, keys in waiting],
        "farewells": [],
    }
    lines = [table, *({"seq": 0, "now": 0.0, "event": event} for event in events)]
    path.write_bytes(b"".join(json.dumps(each).encode() + b"\n" for each in lines))
    return path


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def submitted(number: int, msg_id: str, **more: Any) -> dict[str, Any]:
    ids = {"msg_id": msg_id, "session": "k", "msg_type": "execute_request"}
    return {"type": "Submitted", "connection": 1, "number": number, "channel": 0, **ids, **more}


PUBLISHED = {"type": "Published", "channel": 0, "parent_msg_id": "a", "parent_session": "k"}


def opened(tmp_path: Path, *left: LeftRequest, seq: int = 9) -> dict[str, tuple[bytes, bool, bool]]:
    store = SessionStore.open(tmp_path / "sessions", LIMITS, seq, 0.0, left)
    found = {
        each.msg_id: (each.asker, each.answered, each.idle) for each in store.sessions.unfinished
    }
    store.close()
    return found


def test_a_log_says_what_is_unfinished(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "requests.log",
        *(line(number, name) for number, name in enumerate("abcd", 1)),
        [1, None, True],
        [1, None, False],
        [2, None, True],
        [3, None, False],
    )
    found = {each.msg_id: (each.answered, each.idle) for each in read_requests(log)}
    assert found == {"b": (True, False), "c": (False, True), "d": (False, False)}


def test_a_torn_line_ends_what_is_known(tmp_path: Path) -> None:
    log = write_log(tmp_path / "requests.log", line(1, "a"), line(2, "b"))
    log.write_bytes(log.read_bytes()[:-20])
    assert [each.msg_id for each in read_requests(log)] == ["a"]
    assert read_requests(tmp_path / "there is none") == []


def test_both_files_together_tell_who_waits_and_for_what(tmp_path: Path) -> None:
    # b's reply was published and noted; idle after it has not come yet.
    write_table(tmp_path / "sessions", submitted(1, "c"), waiting=[("a", [b64(KEY)])])
    log = write_log(
        tmp_path / "requests.log",
        line(1, "a"),
        line(2, "b"),
        line(3, "c"),
        [2, None, True],
        [3, None, False],
    )
    assert opened(tmp_path, *read_requests(log)) == {
        "a": (KEY, False, False),
        "b": (b"", True, False),
        "c": (KEY, False, True),
    }
    # The log that there is now needs the other no more.
    assert list(opened(tmp_path)) == ["a", "b", "c"]


def test_two_clients_with_the_same_ids_stay_in_order(tmp_path: Path) -> None:
    write_table(tmp_path / "sessions", waiting=[("a", [b64(KEY), b64(OTHER)])])
    log = write_log(tmp_path / "requests.log", line(1, "a"), line(2, "a"))
    store = SessionStore.open(tmp_path / "sessions", LIMITS, 0, 0.0, read_requests(log))
    assert [each.asker for each in store.sessions.unfinished] == [KEY, OTHER]
    store.close()


def test_an_id_used_again_after_its_reply_is_the_second_askers(tmp_path: Path) -> None:
    write_table(tmp_path / "sessions", waiting=[("a", [b64(OTHER)])])
    log = write_log(tmp_path / "requests.log", line(1, "a"), [1, None, True], line(2, "a"))
    store = SessionStore.open(tmp_path / "sessions", LIMITS, 0, 0.0, read_requests(log))
    found = [(each.asker, each.answered) for each in store.sessions.unfinished]
    assert found == [(b"", True), (OTHER, False)]
    store.close()


def test_a_reply_in_the_journal_counts_though_the_log_does_not_have_it(tmp_path: Path) -> None:
    write_table(tmp_path / "sessions", submitted(1, "a"), PUBLISHED)
    log = write_log(tmp_path / "requests.log", line(1, "a"))
    assert opened(tmp_path, *read_requests(log)) == {"a": (b"", True, False)}


def test_a_reply_that_the_journal_does_not_have_is_still_owed(tmp_path: Path) -> None:
    write_table(tmp_path / "sessions", submitted(1, "a"), PUBLISHED)
    log = write_log(tmp_path / "requests.log", line(1, "a"))
    assert opened(tmp_path, *read_requests(log), seq=0) == {"a": (KEY, False, False)}


@pytest.mark.parametrize("more", [{"answered": True}, {"channel": 2}])
def test_what_the_kernel_was_not_to_reply_to_is_not_waited_for(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    write_table(tmp_path / "sessions", submitted(1, "a", **more))
    assert opened(tmp_path) == {}


def test_requests_to_the_next_kernel_process_are_known(tmp_path: Path) -> None:
    events = submitted(1, "a"), {"type": "KernelLost"}, submitted(2, "b")
    write_table(tmp_path / "sessions", *events)
    log = write_log(tmp_path / "requests.log", line(2, "b"))
    assert opened(tmp_path, *read_requests(log)) == {"b": (KEY, False, False)}


def test_of_what_the_log_does_not_have_a_reply_still_finds_the_asker(tmp_path: Path) -> None:
    write_table(tmp_path / "sessions", waiting=[("a", [b64(KEY)])])
    store = SessionStore.open(tmp_path / "sessions", LIMITS, 0, 0.0)
    (request,) = store.sessions.unfinished
    # Without a type there is nothing that a reply could be made of.
    assert (request.asker, request.msg_type, bytes(request.header)) == (KEY, "", b"{}")
    store.close()
