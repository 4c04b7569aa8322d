from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.auth.audit import AuditEvent, AuditNote
from relay.edge.ipc.audit_file import AuditFile

Run = Callable[..., tuple[int, str, str]]
NOW = 1_800_000_000.0


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.log"
    write(path, 4)
    return path


def write(path: Path, count: int) -> AuditFile:
    file = AuditFile(path, 10, lambda: NOW)
    for number in range(count):
        file.keep(AuditNote(time=NOW + number, event=AuditEvent.KERNEL_STARTED))
    file.close()
    return file


def test_what_is_in_order(relay: Run, log: Path) -> None:
    code, out, err = relay("audit", "verify", str(log))
    assert (code, err) == (0, "")
    assert out.startswith("All 5 lines, 0 to 4 of their chain, are as they were written.\n")
    assert "First  2027-01-15T08:00:00.000000Z\n" in out
    assert "Last   2027-01-15T08:00:03.000000Z\n" in out


def test_a_changed_line_is_named(relay: Run, log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b"08:00:01", b"08:00:09"))
    code, out, err = relay("audit", "verify", str(log))
    assert (code, out) == (1, "")
    assert err.startswith(f"relay: {log}:3: this line was changed")


def test_a_hash_that_was_noted(relay: Run, log: Path) -> None:
    _, out, _ = relay("audit", "verify", str(log))
    (noted,) = (line.split()[1] for line in out.splitlines() if line.startswith("Hash"))
    write(log, 1)
    assert relay("audit", "verify", str(log), "--noted", noted.upper())[0] == 0
    code, _, err = relay("audit", "verify", str(log), "--noted", "0" * 64)
    assert code == 1
    assert "the log was cut" in err


def test_rotated_files_in_any_order_compressed_too(relay: Run, log: Path) -> None:
    file = AuditFile(log, 10, lambda: NOW)
    paths = []
    for number in (3, 2, 1):
        file.keep(AuditNote(time=NOW, event=AuditEvent.KERNEL_STOPPED))
        old = log.with_name(f"audit.log.{number}")
        log.rename(old)
        paths.append(old)
    file.keep(AuditNote(time=NOW, event=AuditEvent.KERNEL_STOPPED))
    file.close()
    packed = paths[0].with_name("audit.log.3.gz")
    packed.write_bytes(gzip.compress(paths[0].read_bytes()))
    code, out, _ = relay("audit", "verify", str(log), str(paths[2]), str(packed), str(paths[1]))
    assert code == 0
    assert out.startswith("All 12 lines, 0 to 11 ")
    code, out, _ = relay("audit", "verify", str(log), str(paths[2]))
    assert code == 0
    assert "Lines 0 to 7 are in older files, which were not given." in out
    code, _, err = relay("audit", "verify", str(log), str(packed))
    assert code == 1
    assert err.startswith(f"relay: {log}:1: ")


def test_remains_are_counted(relay: Run, log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-20])
    code, _, err = relay("audit", "verify", str(log))
    assert code == 1
    assert err.startswith(f"relay: {log}:5: ")
    write(log, 1)
    code, out, _ = relay("audit", "verify", str(log))
    assert code == 0
    assert "Cut off while they were written, and reported by the next line: 1." in out


@pytest.mark.parametrize("content", [b"", None])
def test_what_is_unusable(relay: Run, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "audit.log"
    if content is not None:
        path.write_bytes(content)
    code, out, err = relay("audit", "verify", str(path))
    assert (code, out) == (2, "")
    assert str(path) in err
    assert err.count("\n") == 1


def test_folders_and_broken_archives_are_unusable(relay: Run, log: Path) -> None:
    assert relay("audit", "verify", str(log.parent))[0] == 2
    packed = log.with_name("audit.log.gz")
    for content in (b"no archive", gzip.compress(log.read_bytes())[:-10]):
        packed.write_bytes(content)
        assert relay("audit", "verify", str(packed))[0] == 2


def test_something_else_is_named_as_such(relay: Run, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for content in (b"hello\n", b"\x00" * 1_000_000, b'{"level":"info"}\n'):
        path.write_bytes(content)
        code, _, err = relay("audit", "verify", str(path))
        assert code == 1
        assert err.startswith(f"relay: {path}:1: ")


def test_no_file(relay: Run) -> None:
    assert relay("audit", "verify")[0] == 2
