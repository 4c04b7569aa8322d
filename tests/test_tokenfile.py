from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from relay import tokenfile
from relay.auth.tokens import TokenStore, generate

NOW = 1_800_000_000.0
ADD = """
import sys
from pathlib import Path
from relay import tokenfile
from relay.auth.tokens import TokenStore, generate
path = Path(sys.argv[1])
for number in range(int(sys.argv[2])):
    with tokenfile.locked(path):
        records = tokenfile.read(path).records
        tokenfile.write(path, TokenStore((*records, generate("alice", 0.0)[1])))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "tokens.json"
    tokenfile.write(made, TokenStore())
    return made


def test_what_is_written_is_read_and_is_its_owners_alone(path: Path) -> None:
    store = TokenStore([generate("alice", NOW)[1]])
    before = path.stat().st_ino
    tokenfile.write(path, store)
    assert tokenfile.read(path).records == store.records
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_ino != before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("folder", [0o700, 0o750, 0o755, 0o777])
@pytest.mark.parametrize("before", [0o600, 0o640, 0o644, 0o666])
def test_it_stays_its_owners_alone_in_any_folder(path: Path, folder: int, before: int) -> None:
    path.parent.chmod(folder)
    path.chmod(before)
    tokenfile.write(path, TokenStore())
    assert path.stat().st_mode & 0o777 == 0o600


def test_many_at_once_lose_nothing(path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", ADD, str(path), "10"]) for _ in range(4)]
    assert [process.wait(50) for process in processes] == [0] * 4
    assert len(tokenfile.read(path).records) == 40


def test_a_lock_is_waited_for(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    threading.Timer(0.2, os.close, [folder]).start()
    with tokenfile.locked(path):
        pass


def test_but_not_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenfile, "LOCK_TIMEOUT", 0.1)
    late = pytest.raises(TimeoutError, match="locked")
    with tokenfile.locked(path), late, tokenfile.locked(path):
        raise AssertionError


def test_no_folder_no_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), tokenfile.locked(tmp_path / "no" / "tokens.json"):
        pass


@pytest.mark.parametrize("data", [b"", b"{}", b"tokens"])
def test_a_damaged_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"."):
        tokenfile.read(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for others")
def test_root_leaves_it_to_whose_it_is(path: Path) -> None:
    os.chown(path, 12345, 23456)
    tokenfile.write(path, TokenStore())
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)
    other = path.with_name("other.json")
    os.chown(path.parent, 12345, 23456)
    tokenfile.write(other, TokenStore())
    assert (other.stat().st_uid, other.stat().st_mode & 0o777) == (12345, 0o600)
