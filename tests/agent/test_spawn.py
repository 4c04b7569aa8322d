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

from relay.agent import spawn
from relay.agent.spawn import SameUser
from relay.config import CullSettings, JournalSettings, KernelSettings, LogSettings, SessionSettings
from relay.config.holder import HolderConfig
from relay.files import write_atomic
from relay.registry import KernelRecord, Place, process_started
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
def place(tmp_path: Path, kernel: int) -> Place:
    """A kernel's folder without a holder."""
    place = Place(tmp_path / "a-kernel")
    place.folder.mkdir()
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
    write_atomic(place.request, msgspec.json.encode(config))
    for name in ("0123456789ab.sock", "0123456789ab-1"):
        (tmp_path / name).touch()
    note(place, kernel)
    return place


def note(place: Place, kernel: int, **more: Any) -> None:
    fields: dict[str, Any] = {"state": "ready", "provisioner": {}, **more}
    record = KernelRecord(
        holder_pid=1,
        holder_started=1,
        epoch="e",
        kernel_pid=kernel,
        kernel_started=process_started(kernel),
        **fields,
    )
    write_atomic(place.record, msgspec.json.encode(record))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Place]:
    """The places for which a holder was started."""
    places: list[Place] = []

    async def start(self: SameUser, place: Place, owner: str, lock: int) -> int:
        os.fstat(lock)
        assert owner == "token:root"
        places.append(place)
        return 1

    monkeypatch.setattr(SameUser, "start", start)
    return places


async def replace(place: Place) -> str:
    lock = place.try_lock()
    assert lock is not None
    starter = SameUser(place.folder.parent, "alpha", str(place.folder.parent / "run"))
    try:
        return await spawn.replace(starter, place, lock)
    finally:
        os.close(lock)


def is_buried(place: Place, kernel: int) -> bool:
    sockets = list(place.folder.parent.glob("0123456789ab*"))
    if place.folder.exists():
        return False
    eventually(lambda: process_started(kernel) is None)
    return not sockets


async def test_a_kernel_that_was_up_gets_another_holder(
    place: Place, kernel: int, started: list[Place]
) -> None:
    assert await replace(place) == ""
    assert started == [place]
    assert process_started(kernel) is not None


@pytest.mark.parametrize(
    "more",
    [{"state": "starting"}, {"state": "ending"}, {"provisioner": None}],
    ids=["never heard", "being ended", "not noted"],
)
async def test_others_are_buried(
    place: Place, kernel: int, started: list[Place], more: dict[str, Any]
) -> None:
    note(place, kernel, **more)
    assert await replace(place) == ""
    assert started == []
    assert is_buried(place, kernel)


@pytest.mark.parametrize("broken", ["request", "record"])
async def test_what_cannot_be_read_is_buried(
    place: Place, started: list[Place], broken: str
) -> None:
    getattr(place, broken).write_text("{")
    assert await replace(place) == ""
    assert started == []
    assert not place.folder.exists()


async def test_a_holder_that_keeps_dying_is_given_up(
    place: Place, kernel: int, started: list[Place]
) -> None:
    for _ in range(SETTINGS.holder_restart_limit):
        assert await replace(place) == ""
    reason = await replace(place)
    assert reason == (
        "The kernel was ended: its holder died 3 times within 60 s (kernels.holder_restart_limit)."
    )
    assert started == [place, place]
    assert is_buried(place, kernel)


async def test_deaths_long_ago_do_not_count(place: Place, started: list[Place]) -> None:
    now = time.monotonic()
    # The last is of a clock that was ahead: of before the machine was started.
    long_ago = [now - 1000, now - 61, now - 60.1, now + 1000]
    write_atomic(place.replacements, msgspec.json.encode(long_ago))
    assert await replace(place) == ""
    (noted,) = msgspec.json.decode(place.replacements.read_bytes())
    assert now <= noted <= time.monotonic()
    assert started == [place]


async def test_a_damaged_count_begins_anew(place: Place, started: list[Place]) -> None:
    place.replacements.write_text("]")
    assert await replace(place) == ""
    assert started == [place]


def test_whether_a_folder_is_free(place: Place) -> None:
    assert spawn.is_free(place)
    lock = place.try_lock()
    assert lock is not None
    assert not spawn.is_free(place)
    os.close(lock)
    assert spawn.is_free(Place(place.folder / "no such"))
