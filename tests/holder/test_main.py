from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay.kernel_folders import KernelFolder


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a holder in a folder until it ends."""
    kernel_folder = KernelFolder(folder)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    command = [sys.executable, "-m", "relay.holder", "--folder", str(kernel_folder.path)]
    try:
        return subprocess.run(
            [*command, "--lock", str(lock)],
            pass_fds=(lock,),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        os.close(lock)


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("request.json", '{"version":3,"asked":"as a later version asks"}'),
        ("record.json", '{"version":3,"holder":"as a later version notes it"}'),
        ("record.json", '{"journal":2}'),
    ],
)
def test_a_holder_does_nothing_in_a_folder_of_another_version(
    tmp_path: Path, name: str, noted: str
) -> None:
    (tmp_path / "request.json").write_text("{}")
    (tmp_path / name).write_text(noted)
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "0000000000000001.log").write_bytes(b"as a later version writes it")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    ended = run(tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("version_refused: The kernel's folder has version ")
    assert "the relay has version" in ended.stderr
    found = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert {path: when for path, when in found.items() if path.name != "lock"} == before
