from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.agent.holder_process import HolderFiles
from relay.agent.holders.adopt import adopt
from relay.agent.launchers.local import LocalLauncher
from relay.agent.launchers.own_user import OwnUserRunner
from relay.config import CullSettings, JournalSettings, KernelSettings, LogSettings, SessionSettings
from relay.config.holder import HolderConfig
from relay.files import write_atomic
from relay.kernel_folders import KernelFolder, KernelRecord, process_started
from tests.waiting import eventually

SETTINGS = KernelSettings(holder_restart_limit=2, holder_restart_window=60.0)


@pytest.fixture
def kernel() -> Iterator[int]:
    """What a holder that died has left running."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def kernel_folder(tmp_path: Path, kernel: int) -> KernelFolder:
    """A kernel's folder without a holder."""
    kernel_folder = KernelFolder(tmp_path / "a-kernel")
    kernel_folder.path.mkdir()
    config = HolderConfig(
        name="python3",
        owner="token:root",
        created=0.0,
        socket=str(tmp_path / "0123456789ab.sock"),
        environment={},
        max_record=1,
        culling=CullSettings(),
        kernels=SETTINGS,
        journal=JournalSettings(),
        sessions=SessionSettings(),
        log=LogSettings(),
    )
    write_atomic(kernel_folder.request, msgspec.json.encode(config))
    for name in ("0123456789ab.sock", "0123456789ab-1"):
        (tmp_path / name).touch()
    note(kernel_folder, kernel)
    return kernel_folder


def note(kernel_folder: KernelFolder, kernel: int, **more: Any) -> None:
    fields: dict[str, Any] = {"state": "ready", "provisioner": {}, **more}
    record = KernelRecord(
        holder_pid=1,
        holder_started=1,
        epoch="e",
        kernel_pid=kernel,
        kernel_started=process_started(kernel),
        **fields,
    )
    write_atomic(kernel_folder.record, msgspec.json.encode(record))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[KernelFolder]:
    """The places for which a holder was started."""
    places: list[KernelFolder] = []

    async def run(
        self: OwnUserRunner, kernel_folder: KernelFolder, owner: str, files: HolderFiles
    ) -> int:
        os.fstat(files.lock)
        assert owner == "token:root"
        places.append(kernel_folder)
        return 1

    monkeypatch.setattr(OwnUserRunner, "run", run)
    return places


def launcher_of(kernel_folder: KernelFolder) -> LocalLauncher:
    state = kernel_folder.path.parent
    return LocalLauncher(state, "alpha", OwnUserRunner(state, "alpha", str(state / "run")))


async def replace(kernel_folder: KernelFolder) -> str:
    return await adopt(launcher_of(kernel_folder), kernel_folder)


def check_cleaned_up(kernel_folder: KernelFolder, kernel: int) -> None:
    assert not kernel_folder.path.exists()
    assert not list(kernel_folder.path.parent.glob("0123456789ab*"))
    eventually(lambda: process_started(kernel) is None)


async def test_a_kernel_that_was_up_gets_another_holder(
    kernel_folder: KernelFolder, kernel: int, started: list[KernelFolder]
) -> None:
    assert await replace(kernel_folder) == ""
    assert started == [kernel_folder]
    assert process_started(kernel) is not None


@pytest.mark.parametrize(
    "more",
    [{"state": "starting"}, {"state": "ending"}, {"provisioner": None}],
    ids=["never heard", "being ended", "not noted"],
)
async def test_others_are_ended(
    kernel_folder: KernelFolder, kernel: int, started: list[KernelFolder], more: dict[str, Any]
) -> None:
    note(kernel_folder, kernel, **more)
    assert await replace(kernel_folder) == ""
    assert started == []
    check_cleaned_up(kernel_folder, kernel)


@pytest.mark.parametrize("broken", ["request", "record"])
async def test_what_cannot_be_read_is_ended(
    kernel_folder: KernelFolder, started: list[KernelFolder], broken: str
) -> None:
    getattr(kernel_folder, broken).write_text("{")
    assert await replace(kernel_folder) == ""
    assert started == []
    assert not kernel_folder.path.exists()


async def test_a_holder_that_keeps_dying_is_given_up(
    kernel_folder: KernelFolder, kernel: int, started: list[KernelFolder]
) -> None:
    for _ in range(SETTINGS.holder_restart_limit):
        assert await replace(kernel_folder) == ""
    reason = await replace(kernel_folder)
    assert reason == (
        "The kernel was ended: its holder died 3 times within 60 s (kernels.holder_restart_limit)."
    )
    assert started == [kernel_folder, kernel_folder]
    check_cleaned_up(kernel_folder, kernel)


async def test_deaths_long_ago_do_not_count(
    kernel_folder: KernelFolder, started: list[KernelFolder]
) -> None:
    now = time.monotonic()
    # The last is of a clock that was ahead: of before the machine was started.
    long_ago = [now - 1000, now - 61, now - 60.1, now + 1000]
    write_atomic(kernel_folder.replacements, msgspec.json.encode(long_ago))
    assert await replace(kernel_folder) == ""
    (noted,) = msgspec.json.decode(kernel_folder.replacements.read_bytes())
    assert now <= noted <= time.monotonic()
    assert started == [kernel_folder]


async def test_a_damaged_count_begins_anew(
    kernel_folder: KernelFolder, started: list[KernelFolder]
) -> None:
    kernel_folder.replacements.write_text("]")
    assert await replace(kernel_folder) == ""
    assert started == [kernel_folder]


async def test_a_kernel_with_a_holder_is_left_alone(
    kernel_folder: KernelFolder, started: list[KernelFolder]
) -> None:
    lock = kernel_folder.try_lock()
    assert lock is not None
    assert await replace(kernel_folder) == ""
    os.close(lock)
    assert started == []
    assert not kernel_folder.replacements.exists()


async def test_a_kernel_of_an_owner_who_cannot_own_its_folder_is_ended(
    kernel_folder: KernelFolder,
    kernel: int,
    started: list[KernelFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OwnUserRunner, "owner_matches", lambda *_: False)
    assert await replace(kernel_folder) == ""
    assert started == []
    check_cleaned_up(kernel_folder, kernel)


async def test_a_folder_that_is_gone_is_no_kernel(kernel_folder: KernelFolder) -> None:
    with pytest.raises(FileNotFoundError):
        await replace(KernelFolder(kernel_folder.path / "no such"))
