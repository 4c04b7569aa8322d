from __future__ import annotations

from pathlib import Path

import pytest

from relay.bridge.control import Attach, Disconnect, Position
from relay.bridge.events import (
    Append,
    ClientAttached,
    ClientDetached,
    DeliveryProved,
    Event,
    MessagePublished,
    MessageSubmitted,
    StartReading,
)
from relay.bridge.messages import Channel
from relay.bridge.session import SessionLimits
from relay.holder.sessions import store as module
from relay.holder.sessions.store import SessionStore

LIMITS = SessionLimits(
    sessions=10, requests=10, repeats=10, lifetime=100.0, anonymous_lifetime=10.0
)
PRINT = MessagePublished(Channel.IOPUB, "m", "k")
REPLY = MessagePublished(Channel.SHELL, "m", "k")


def attach(link: str = "l1", session: str = "s") -> Attach:
    return Attach(link=link, principal="token:ada", session_id=session)


def ask(connection: int, number: int = 1) -> MessageSubmitted:
    return MessageSubmitted(connection, number, Channel.SHELL, "m", "k", "execute_request")


def remember(path: Path, seq: int = 0, now: float = 0.0) -> SessionStore:
    return SessionStore.open(path, LIMITS, seq, now)


def play(memory: SessionStore, *events: Event, now: float = 1.0) -> None:
    for event in events:
        memory.handle(event, now)


def comes_back(memory: SessionStore, now: float = 2.0, session: str = "s") -> StartReading:
    *_, start = memory.handle(ClientAttached(99, attach("l99", session)), now)
    assert isinstance(start, StartReading)
    return start


def test_what_one_holder_knew_the_next_one_knows(tmp_path: Path) -> None:
    first = remember(tmp_path / "s", seq=3)
    play(
        first,
        ClientAttached(1, attach()),
        ask(1),
        PRINT,
        PRINT,
        DeliveryProved(1, 4),
        ClientAttached(2, attach("x")),
    )
    play(first, PRINT, REPLY)
    second = remember(tmp_path / "s", seq=7)
    assert second.sessions.epoch == first.sessions.epoch
    assert second.sessions.seq == 7
    assert second.sessions.connections == 0
    # Where it stood, and not told twice: the reply was taken.
    assert comes_back(second).position == Position(first.sessions.epoch, 4)
    assert second.handle(REPLY, 2.0) != first.handle(PRINT, 2.0)
    first.close()
    second.close()


def test_a_reply_that_did_not_reach_the_journal_is_still_owed(tmp_path: Path) -> None:
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()), ask(1), PRINT, REPLY)
    # The holder died before it was written, or after.
    for seq, owed in ((1, True), (2, False)):
        second = remember(tmp_path / f"s{seq}", seq=seq)
        second.close()
        (tmp_path / f"s{seq}").write_bytes((tmp_path / "s").read_bytes())
        third = remember(tmp_path / f"s{seq}", seq=seq)
        (action,) = third.handle(REPLY, 2.0)
        assert isinstance(action, Append) is owed
        third.close()
    first.close()


def test_a_goodbye_means_the_same_to_the_next_holder(tmp_path: Path) -> None:
    first = remember(tmp_path / "s")
    farewell = MessagePublished(Channel.IOPUB, "", "", farewell=True)
    play(first, ClientAttached(1, attach()), PRINT, farewell)
    play(first, ClientDetached(1, Disconnect.GOODBYE, sent=2))
    second = remember(tmp_path / "s", seq=2)
    assert comes_back(second).position.seq == 2
    first.close()
    second.close()


def test_a_request_that_waits_is_answered_after_all(tmp_path: Path) -> None:
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()), ask(1))
    second = remember(tmp_path / "s")
    (append,) = second.handle(REPLY, 2.0)
    assert getattr(append, "audience", None) in comes_back(second).audiences
    first.close()
    second.close()


def test_a_new_session_begins_where_the_journal_was_when_it_came(tmp_path: Path) -> None:
    # Nothing that is on iopub is written down, but the seq before each event is.
    first = remember(tmp_path / "s")
    play(first, PRINT, PRINT, ClientAttached(1, attach()), PRINT)
    second = remember(tmp_path / "s", seq=3)
    assert comes_back(second).position.seq == 2
    first.close()
    second.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_is_as_if_it_had_not_been(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "s"
    first = remember(path)
    play(first, ClientAttached(1, attach()), PRINT, PRINT, DeliveryProved(1, 1))
    whole = path.stat().st_size
    play(first, DeliveryProved(1, 2))
    with path.open("r+b") as file:
        file.truncate(whole + min(cut, path.stat().st_size - whole - 1))
    second = remember(path, seq=2)
    assert comes_back(second).position.seq == 1
    first.close()
    second.close()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"epoch": 1}\n'])
def test_a_file_that_says_nothing_begins_a_new_epoch(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(data)
    memory = remember(path, seq=7)
    assert (memory.sessions.seq, len(memory.sessions.epoch)) == (7, 12)
    memory.close()


@pytest.mark.parametrize(("now", "begins"), [(101.0, 0), (102.0, 1)])
def test_lifetimes_go_on_while_there_is_no_holder(tmp_path: Path, now: float, begins: int) -> None:
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()), PRINT, ClientDetached(1))
    again = remember(tmp_path / "s", seq=1, now=now)
    assert comes_back(again, now).position.seq == begins
    first.close()
    again.close()


def test_the_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REWRITE", 2000)
    path = tmp_path / "s"
    first = remember(path)
    play(first, ClientAttached(1, attach()))
    for number in range(1, 300):
        play(first, PRINT, ask(1, number), REPLY, DeliveryProved(1, 2 * number))
        assert path.stat().st_size < 4000
    second = remember(path)
    assert comes_back(second).position.seq == 598
    first.close()
    second.close()


def test_a_full_disk_harms_nobody_and_is_made_up_for(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    first = remember(folder / "s")
    play(first, ClientAttached(1, attach()), PRINT)
    (folder / "s").unlink()
    folder.rmdir()
    first.close()
    play(first, DeliveryProved(1, 1))
    problems = [first.failed]
    folder.mkdir()
    play(first, PRINT, DeliveryProved(1, 2))
    problems.append(first.failed)
    assert [type(each) for each in problems] == [FileNotFoundError, type(None)]
    second = remember(folder / "s")
    assert comes_back(second).position.seq == 2
    first.close()
    second.close()
