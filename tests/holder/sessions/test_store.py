from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from relay import files
from relay.bridge.control import Attach, Disconnect, Position
from relay.bridge.events import (
    Append,
    ClientAttached,
    ClientDetached,
    DeliveryProved,
    Event,
    KernelLaunched,
    MessagePublished,
    MessageSubmitted,
    StartReading,
)
from relay.bridge.messages import Channel
from relay.bridge.session_table import SessionLimits
from relay.bridge.submissions import KernelPresence
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
    store = SessionStore.open(path, LIMITS, seq, now)
    if store.sessions.submissions.kernel is KernelPresence.NONE:
        store.handle(KernelLaunched(), now)
    return store


def play(memory: SessionStore, *events: Event, now: float = 1.0) -> None:
    """Let things happen, with a journal that has each message at once."""
    for event in events:
        memory.handle(event, now)
        memory.in_journal(memory.sessions.seq)


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
    close_trigger = MessagePublished(Channel.IOPUB, "", "", close_trigger=True)
    play(first, ClientAttached(1, attach()), PRINT, close_trigger)
    play(first, ClientDetached(1, Disconnect.CLEAN, sent=2))
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


# Requests


IDLE = MessagePublished(Channel.IOPUB, "m", "k", idle=True)


def unfinished(memory: SessionStore) -> list[tuple[str, bool, bool]]:
    return [(each.msg_id, each.answered, each.idle) for each in memory.sessions.unfinished]


def numbered(number: int, header: bytes = b'{"msg_id":"m"}') -> MessageSubmitted:
    ids = f"m{number}", "k", "execute_request"
    return MessageSubmitted(1, number, Channel.SHELL, *ids, header=msgspec.Raw(header))


def test_the_next_holder_finds_what_is_unfinished(tmp_path: Path) -> None:
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()), *map(numbered, range(1, 5)))
    for number in (1, 2):
        play(first, MessagePublished(Channel.SHELL, f"m{number}", "k"))
    for number in (1, 3):
        play(first, MessagePublished(Channel.IOPUB, f"m{number}", "k", idle=True))
    first.close()
    expected = [("m2", True, False), ("m3", False, True), ("m4", False, False)]
    assert unfinished(first) == expected
    second = remember(tmp_path / "s", seq=4)
    assert unfinished(second) == expected
    assert second.sessions.dump().requests == first.sessions.dump().requests
    # It goes on where the last one stopped.
    play(second, MessagePublished(Channel.SHELL, "m3", "k"))
    assert unfinished(second) == [("m2", True, False), ("m4", False, False)]
    second.close()


@pytest.mark.parametrize(
    ("in_journal", "left"),
    [(0, [("m", False, False)]), (1, [("m", True, False)]), (2, [])],
)
def test_what_finishes_a_request_counts_once_it_is_in_the_journal(
    tmp_path: Path, in_journal: int, left: list[tuple[str, bool, bool]]
) -> None:
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()), ask(1))
    for event in (REPLY, IDLE):
        first.handle(event, 1.0)
    first.close()
    second = remember(tmp_path / "s", seq=in_journal)
    assert unfinished(second) == left
    second.close()


def test_no_table_is_written_of_what_is_not_in_the_journal_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REWRITE", 100)
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()), ask(1))
    # Long enough for another table; the holder dies before the journal is written.
    for event in (REPLY, ask(1, 2), IDLE, ask(1, 3)):
        first.handle(event, 1.0)
    first.close()
    second = remember(tmp_path / "s")
    assert unfinished(second) == [("m", False, False)] * 3
    second.close()


def test_a_request_is_on_disk_before_anything_is_done_about_it(tmp_path: Path) -> None:
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()))
    before = (tmp_path / "s").read_bytes()
    header = b'{"msg_id":"m1","more":[1]}'
    first.handle(numbered(1, header), 1.0)
    assert header in (tmp_path / "s").read_bytes().removeprefix(before)
    second = remember(tmp_path / "s")
    (request,) = second.sessions.unfinished
    assert bytes(request.header) == header
    first.close()
    second.close()


def test_output_and_idles_that_nobody_waits_for_take_no_room(tmp_path: Path) -> None:
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()), ask(1))
    before = (tmp_path / "s").stat().st_size
    play(first, PRINT, MessagePublished(Channel.IOPUB, "other", "k", idle=True))
    assert (tmp_path / "s").stat().st_size == before
    play(first, IDLE)
    assert (tmp_path / "s").stat().st_size > before
    first.close()


def test_a_large_table_is_not_written_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REWRITE", 100)
    tables: list[None] = []
    write = files.write_atomic
    monkeypatch.setattr(module, "write_atomic", lambda *args: tables.append(write(*args)))
    first = remember(tmp_path / "s")
    play(first, ClientAttached(1, attach()))
    large = b'{"more":"%b"}' % (b"x" * 4000)
    play(first, *(numbered(number, large) for number in range(1, 11)))
    # Each table is twice as large as the one before.
    assert len(tables) < 8
    first.close()
