"""A disk that is full: kernels and their clients go on, and it is said where one looks."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.channels import Channels
from tests.system.running import RunningRelay, http_request, wait_for
from tests.system.separate import log_lines

CELLS = 23
SIZE = 12 * 1024 * 1024


class Disk:
    """A small file system of its own under the relay's state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(path)],
            check=True,
            capture_output=True,
        )

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    def fill(self) -> None:
        """Leave not one block."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    for _ in range(SIZE):
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[RunningRelay, Disk]]:
    """A relay whose state is on a file system of its own, and that."""
    try:
        full = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        relay = RunningRelay(
            ("alpha",),
            ("--state-dir", str(full.path)),
            {"RELAY_JOURNAL__TAIL_BYTES": "512 KiB"},
        )
        relay.state = full.path
        with relay:
            yield relay, full
    finally:
        full.unmount()


def agent_port(relay: RunningRelay) -> str:
    text = (relay.state / "run" / "edge.yaml").read_text()
    return next(line.strip("- \n") for line in text.splitlines() if "http://127.0.0.1" in line)


def health(url: str) -> tuple[int, Any]:
    answer = http_request(url, "GET", "/readyz", headers={})
    return answer.status, answer.json


def full_disk(url: str) -> Any:
    """What an agent says that is not ready; None while it is."""
    status, told = health(url)
    return told if status == 503 else None


def answers(url: str) -> int:
    """The status; 0 where nobody is there."""
    try:
        return health(url)[0]
    except OSError:
        return 0


def metric(relay: RunningRelay, name: str) -> float:
    families = text_string_to_metric_families(relay.metrics("alpha"))
    (found,) = (each for family in families for each in family.samples if each.name == name)
    return float(found.value)


def past(relay: RunningRelay, kernel: str) -> list[dict[str, Any]]:
    answer = relay.request("GET", f"/alpha/api/kernels/{kernel}/messages")
    assert answer.status == 200
    return [json.loads(line) for line in answer.body.splitlines()]


def seq(line: dict[str, Any]) -> int:
    return int(line["seq"].partition("-")[2])


def printed(channels: Channels, first: int, count: int) -> None:
    code = f"for i in range({first}, {first + count}): print(f'{{i:0200}}', flush=True)"
    lines = channels.execute(code).stdout.splitlines()
    assert list(map(int, lines)) == list(range(first, first + count))


@pytest.mark.guarantee
def test_a_full_disk_stops_no_kernel_and_no_client(disk: tuple[RunningRelay, Disk]) -> None:
    relay, full = disk
    kernel = relay.start_kernel("alpha")
    url = agent_port(relay)
    with relay.connect("alpha", kernel) as channels:
        printed(channels, 0, 100)
        assert health(url) == (200, {"ready": True})
        full.fill()
        # Far more than is kept in memory, and all of it arrives.
        for first in range(100, 2100, 100):
            printed(channels, first, 100)

        told = wait_for("not ready", lambda: full_disk(url))
        assert told["ready"] is False
        assert "No space left on device" in told["reason"]
        assert metric(relay, "relay_agent_failing_journals") == 1
        assert metric(relay, "relay_agent_unsaved_messages_total") > 100
        # The edge's own health is about the edge.
        assert relay.request("GET", "/readyz").status == 200

        before = sorted((relay.state / "alpha" / "kernels").iterdir())
        for path in ("kernels", "sessions"):
            body = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
            answer = relay.request("POST", f"/alpha/api/{path}", body)
            assert answer.status == 507, answer
            assert "No space left on device" in answer.json["message"]
            assert str(relay.state) not in answer.json["message"]
        assert sorted((relay.state / "alpha" / "kernels").iterdir()) == before

        # An interrupt works too; an agent that is killed comes back, and knows of it.
        assert relay.request("POST", f"/alpha/api/kernels/{kernel}/interrupt").status == 204
        relay.kill_agent("alpha")
        printed(channels, 2100, 100)
        assert wait_for("not ready", lambda: answers(url) == 503 or None)

        full.free()
        printed(channels, 2200, 100)
        assert wait_for("ready", lambda: answers(url) == 200 or None)
        assert metric(relay, "relay_agent_failing_journals") == 0

    found = past(relay, kernel)
    gaps = [line for line in found if "gap" in line]
    messages = [line for line in found if "gap" not in line]
    # A last block that was not quite full may have taken a small message in between.
    assert 1 <= len(gaps) <= 5
    assert {gap["setting"] for gap in gaps} == {None}
    shown = {seq(line) for line in messages}
    gone = {n for gap in gaps for n in range(seq(gap) - gap["gap"] + 1, seq(gap) + 1)}
    assert len(gone) == sum(gap["gap"] for gap in gaps) > 500
    assert not shown & gone
    # The rest are replies, one for each cell, which are nobody else's.
    assert len(set(range(1, max(shown) + 1)) - shown - gone) <= CELLS
    text = "".join(
        line["content"]["text"]
        for line in messages
        if line["header"]["msg_type"] == "stream" and line["content"]["name"] == "stdout"
    )
    numbers = list(map(int, text.split()))
    assert numbers[:100] == list(range(100))
    assert numbers[-100:] == list(range(2200, 2300))
    assert len(numbers) < 1000
    events = [line["event"] for line in log_lines(relay.log_text())]
    assert 1 <= events.count("journal_write_failed") <= len(gaps) + 1
    assert events.count("journal_write_recovered") == events.count("journal_write_failed")
    assert "unexpected_error" not in events
    assert relay.request("POST", "/alpha/api/kernels", {}).status == 201


def test_a_kernel_restarts_on_a_full_disk(disk: tuple[RunningRelay, Disk]) -> None:
    relay, full = disk
    kernel = relay.start_kernel("alpha")
    full.fill()
    answer = relay.request("POST", f"/alpha/api/kernels/{kernel}/restart")
    # What the kernel needs of the disk it has already, or it is said why it is dead.
    assert answer.status in {200, 507}, answer
    full.free()
    time.sleep(1.5)
    assert relay.request("POST", f"/alpha/api/kernels/{kernel}/restart").status == 200
    with relay.connect("alpha", kernel) as channels:
        assert channels.execute("print(1)").stdout == "1\n"
    assert relay.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204
