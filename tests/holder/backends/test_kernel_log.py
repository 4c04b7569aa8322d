from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay import limits
from relay.holder.backends.kernel_log import _TAIL_BYTES, KernelLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kernel.log"


def test_the_tail_is_of_the_present_launch(path: Path) -> None:
    log = KernelLog(path)
    assert log.tail() == ""
    log.begin()
    log.open().write(b"first\n")
    log.begin()
    log.open().write(b"second \xff\n")
    assert log.tail() == "second \ufffd\n"
    log.close()


def test_only_the_end_of_much_output_is_shown(path: Path) -> None:
    log = KernelLog(path)
    log.open().write(b"x" * _TAIL_BYTES + b"end")
    assert log.tail() == "x" * (_TAIL_BYTES - 3) + "end"
    log.close()


def test_a_log_that_is_too_long_is_emptied_and_goes_on(path: Path) -> None:
    log = KernelLog(path)
    log.begin()
    before = limits.counts["kernels.log_bytes"]
    log.open().write(b"x" * 100)
    log.trim(100)
    assert path.stat().st_size == 100
    log.trim(99)
    log.open().write(b"more")
    assert path.read_bytes() == b"more"
    assert log.tail() == "more"
    assert limits.counts["kernels.log_bytes"] == before + 1
    log.close()


def test_it_is_for_its_owner_only_and_no_other_process_gets_it(path: Path) -> None:
    log = KernelLog(path)
    file = log.open()
    assert log.open() is file
    assert path.stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(file.fileno())
    log.close()
    assert file.closed


def test_without_a_file_nothing_happens(tmp_path: Path) -> None:
    log = KernelLog(tmp_path / "gone" / "kernel.log")
    log.begin()
    log.trim(0)
    assert log.tail() == ""
    log.close()
