from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.auth.audit import AuditEvent, AuditNote, ChainVerifier
from relay.edge.ipc.audit_file import AuditFile, WriteNote, audit_service
from relay.edge.ipc.client import ParentClient, Refused
from relay.edge.ipc.server import ParentServer, socket_path
from tests.virtualtime import settle, virtual
from tests.waiting import until

NOW = 1_800_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def file(path: Path) -> Iterator[AuditFile]:
    with opened(path) as made:
        yield made


@contextlib.contextmanager
def opened(path: Path, waiting: int = 100) -> Iterator[AuditFile]:
    made = AuditFile(path, waiting, lambda: NOW)
    yield made
    made.close()


def keep(file: AuditFile, *requests: str) -> None:
    for request in requests:
        file.keep(AuditNote(time=NOW, event=AuditEvent.KERNEL_STARTED, request_id=request))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def shown(path: Path) -> list[str]:
    """Requests and, of lines that are about none, events."""
    return [line.get("request_id", line["event"]) for line in lines(path)]


def verified(*paths: Path) -> ChainVerifier:
    verifier = ChainVerifier()
    for path in paths:
        assert verifier.read(path.read_bytes().splitlines(keepends=True)) is None
    return verifier


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with capture_logs():  # pytest keeps standard output in a file
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_nothing_is_made_before_the_first_line(file: AuditFile, path: Path) -> None:
    file.write()
    assert file.problem == ""


def test_lines_are_chained_and_private(file: AuditFile, path: Path) -> None:
    keep(file, "a", "b")
    assert shown(path) == ["chain-begun", "a", "b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert file.figures == (3, 0, 0)
    verified(path)


def test_it_goes_on_after_a_restart(path: Path) -> None:
    for request in ("a", "b"):
        with opened(path) as file:
            keep(file, request)
    assert shown(path) == ["chain-begun", "a", "b"]
    verified(path)


@pytest.mark.parametrize("cut", [1, 2, 50])
def test_a_line_that_a_crash_cut_off_is_noted(path: Path, cut: int) -> None:
    with opened(path) as file:
        keep(file, "a", "b")
    os.truncate(path, path.stat().st_size - cut)
    with opened(path) as file:
        keep(file, "c")
    verifier = verified(path)
    whole = cut == 1  # but for its line feed
    assert verifier.torn == (0 if whole else 1)
    last = path.read_bytes().splitlines()[-2:]
    assert b"line-torn" in last[0] or whole
    assert b'"c"' in last[1]


def test_a_first_line_that_was_cut_off_is_noted(path: Path) -> None:
    with opened(path) as file:
        keep(file)
        file.keep(AuditNote(time=NOW, event=AuditEvent.EDGE_STARTED))
    os.truncate(path, 30)
    with opened(path) as file:
        keep(file, "a")
    assert verified(path).torn == 1


@pytest.mark.parametrize("content", [b"hello\n", b'{"level": "info"}\n' * 100_000])
def test_a_file_of_something_else_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with opened(path) as file:
        keep(file, "a")
        assert file.problem == "holds something else than an audit log"
    assert path.read_bytes() == content


def test_a_fifo_is_no_file(path: Path) -> None:
    os.mkfifo(path)
    with opened(path) as file:
        keep(file, "a")
        assert file.problem == "is not a regular file"


def test_only_one_writes_at_a_time(path: Path) -> None:
    with opened(path) as file, opened(path) as other:
        keep(file, "a")
        keep(other, "b")
        assert other.problem
        file.close()
        other.write()
        assert other.problem == ""
    assert shown(path) == ["chain-begun", "a", "b"]
    verified(path)


def test_a_file_that_was_moved_away_is_followed_by_another(path: Path, tmp_path: Path) -> None:
    old = tmp_path / "audit.log.1"
    with opened(path) as file:
        keep(file, "a", "b")
        path.rename(old)
        keep(file, "c")
    assert shown(old) == ["chain-begun", "a", "b"]
    assert shown(path) == ["chain-continued", "c"]
    assert verified(old, path).lines == 5


def test_a_file_that_was_copied_and_emptied_goes_on(path: Path, tmp_path: Path) -> None:
    old = tmp_path / "audit.log.1"
    with opened(path) as file:
        keep(file, "a")
        old.write_bytes(path.read_bytes())
        os.truncate(path, 0)
        keep(file, "b")
    assert shown(path) == ["chain-continued", "b"]
    verified(old, path)


def test_an_end_that_was_cut_off_under_the_writer_shows(path: Path) -> None:
    with opened(path) as file:
        keep(file, "a", "b")
        whole = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(whole[:-1]))
        keep(file, "c")
    broken = ChainVerifier().read(path.read_bytes().splitlines(keepends=True))
    assert broken is not None
    assert broken.line == 3


def test_a_line_that_somebody_added_under_the_writer_shows(path: Path) -> None:
    with opened(path) as file:
        keep(file, "a")
        with path.open("ab") as other:
            other.write(path.read_bytes().splitlines(keepends=True)[-1])
        keep(file, "c")
    broken = ChainVerifier().read(path.read_bytes().splitlines(keepends=True))
    assert broken is not None
    assert broken.line == 3


def test_lines_wait_for_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "audit.log"
    with opened(path) as file:
        keep(file, "a")
        assert file.problem == "No such file or directory"
        assert file.figures == (0, 1, 0)
        path.parent.mkdir()
        keep(file, "b")
        assert file.problem == ""
    assert shown(path) == ["chain-begun", "a", "b"]


@pytest.mark.parametrize("free", [0, 1, 100])
def test_on_a_full_disk_lines_wait(path: Path, free: int) -> None:
    with opened(path) as file:
        keep(file, "a")
        with room(path.stat().st_size + free):
            keep(file, "b", "c")
            assert file.problem
            assert file.figures.waiting == 2
        file.write()
        assert file.problem == ""
        assert file.figures == (4 + (free > 0), 0, 0)
    verifier = verified(path)
    assert verifier.torn == (1 if free else 0)
    found = [line for line in path.read_bytes().splitlines() if b'"c"' in line]
    assert len(found) == 1


def test_what_finds_no_room_to_wait_is_counted(path: Path) -> None:
    with opened(path, waiting=2) as file:
        keep(file, "a")
        with room(path.stat().st_size):
            keep(file, "b", "c", "d", "e")
        assert file.figures.lost == 2
        keep(file, "f")
        assert file.figures.lost == 2
    assert shown(path) == ["chain-begun", "a", "b", "c", "lines-lost", "f"]
    assert lines(path)[-2]["reason"] == "2 lines"
    verified(path)


async def test_it_keeps_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.edge.ipc.audit_file._AGAIN", 0.01)
    path = tmp_path / "logs" / "audit.log"
    with opened(path) as file:
        keep(file, "a")
        async with asyncio.TaskGroup() as tasks:
            trying = tasks.create_task(file.keep_trying())
            path.parent.mkdir()
            await until(lambda: not file.problem)
            trying.cancel()
    assert shown(path) == ["chain-begun", "a"]


def test_the_lock_goes_with_the_file(path: Path) -> None:
    with opened(path) as file:
        keep(file, "a")
        with path.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- the service ---


@virtual
async def test_a_workers_note_is_in_the_file_before_the_answer(path: Path, tmp_path: Path) -> None:
    with opened(path) as file:
        server = ParentServer(
            socket_path(tmp_path), [audit_service(file)], is_worker=lambda _: True
        )
        await server.listen()
        client = await ParentClient.connect(socket_path(tmp_path), os.getpid(), lambda: None)
        note = AuditNote(time=NOW, event=AuditEvent.KERNEL_STARTED, request_id="a")
        await client.call(WriteNote(note))
        assert shown(path) == ["chain-begun", "a"]
        # Without a note nothing is written: it asks only.
        await client.call(WriteNote(None))
        assert shown(path) == ["chain-begun", "a"]
        with room(path.stat().st_size):
            for request in (WriteNote(note), WriteNote(None)):
                with pytest.raises(Refused) as caught:
                    await client.call(request)
                assert caught.value.code == "audit.file"
                assert caught.value.message == "File too large"
        file.write()
        await client.call(WriteNote(None))
        assert shown(path) == ["chain-begun", "a", "a"]
        client.close()
        server.close()
        await settle()
