from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, values
from prometheus_client.parser import text_string_to_metric_families

from relay import __version__
from relay.metrics import (
    AgentFigures,
    AgentMetrics,
    EdgeMetrics,
    ParentFigures,
    ParentMetrics,
    SharedFolder,
    agent_registry,
    edge_registry,
    page,
)

DOCS = Path(__file__).parents[1] / "docs" / "operations.md"
NAME = re.compile(r"relay_[a-z]+(?:_[a-z]+)*")
WORKER = """
import os, sys, signal
from pathlib import Path
from relay.metrics import EdgeMetrics
counted = EdgeMetrics.shared(Path(sys.argv[1]))
counted.count_request("alpha", "start", 201)
traffic = counted.traffic("alpha")
traffic.sent(1000)
traffic.received(10)
traffic.pinged()
traffic.proved()
counted.websockets.labels("alpha").inc()
counted.count_limit_hit("upstream.hold")
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _in_memory() -> Iterator[None]:
    yield
    values.ValueClass = values.MutexValue
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)


@pytest.fixture
def folder(tmp_path: Path) -> SharedFolder:
    return SharedFolder(tmp_path)


class Worker:
    """A process that counts, and lives until it is told to end, or killed."""

    def __init__(self, folder: SharedFolder) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """By name and labels."""
    body, _ = page(registry, "")
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for each in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(each.labels.items()))
            found[f"{each.name}{{{labels}}}"] = each.value
    return found


def test_workers_count_together_and_their_counts_outlive_them(folder: SharedFolder) -> None:
    registry = edge_registry(folder, ParentMetrics(lambda: ParentFigures(workers=2, worker_ends=1)))
    workers = [Worker(folder), Worker(folder)]
    counts = {
        "relay_edge_requests_total{cluster=alpha,kind=start,status=2xx}": 2.0,
        "relay_edge_websocket_bytes_total{cluster=alpha,direction=out}": 2000.0,
        "relay_edge_websocket_bytes_total{cluster=alpha,direction=in}": 20.0,
        "relay_edge_pings_total{cluster=alpha}": 2.0,
        "relay_edge_proofs_total{cluster=alpha}": 2.0,
        "relay_edge_refused_logins_total{}": 0.0,
        "relay_edge_refused_token_files_total{}": 0.0,
        "relay_limit_hits_total{setting=upstream.hold}": 2.0,
    }
    own = {
        "relay_edge_workers{}": 2.0,
        "relay_edge_worker_ends_total{}": 1.0,
        "relay_edge_refused_configurations_total{}": 0.0,
        "relay_edge_audit_lines_total{}": 0.0,
        "relay_edge_audit_lost_lines_total{}": 0.0,
        "relay_edge_audit_waiting_lines{}": 0.0,
        f"relay_build_info{{version={__version__}}}": 1.0,
    }
    live = "relay_edge_websockets{cluster=alpha}"
    assert samples(registry) == {**counts, **own, live: 2.0}
    workers[0].kill()
    folder.retire(workers[0].pid)
    assert samples(registry) == {**counts, **own, live: 1.0}
    workers[1].kill()
    folder.retire(workers[1].pid)
    assert samples(registry) == {**counts, **own}
    # However many die, one file is left of them.
    assert len(list(folder.path.glob("counter_*"))) == 1


def test_a_worker_that_never_counted_is_retired_too(folder: SharedFolder) -> None:
    folder.retire(1)
    assert [path.name for path in folder.path.iterdir()] == ["counter_ended.db"]


def test_files_have_all_their_blocks_before_anybody_counts(folder: SharedFolder) -> None:
    EdgeMetrics.shared(folder.path)
    for path in folder.path.iterdir():
        status = path.stat()
        assert status.st_blocks * 512 >= status.st_size == 1024 * 1024
        assert status.st_mode & 0o777 == 0o600


def test_without_room_there_is_an_error_and_no_file(
    folder: SharedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="full"):
        EdgeMetrics.shared(folder.path)
    assert [path.name for path in folder.path.iterdir()] == ["counter_ended.db"]
    (folder.path / "one").mkdir()
    with pytest.raises(OSError, match="full"):
        SharedFolder(folder.path / "one")


def test_an_agents_figures() -> None:
    figures = AgentFigures(kernels=2, journal_bytes=30, messages=7, limit_hits={"a.b": 1})
    found = samples(agent_registry(AgentMetrics(lambda: figures)))
    assert found["relay_agent_kernels{}"] == 2
    assert found["relay_agent_journal_bytes{}"] == 30
    assert found["relay_agent_messages_total{}"] == 7
    assert found["relay_limit_hits_total{setting=a.b}"] == 1
    assert found["process_open_fds{}"] > 0


def test_scrapers_get_the_form_they_ask_for() -> None:
    registry = agent_registry(AgentMetrics(AgentFigures))
    assert page(registry, "")[1].startswith("text/plain; version=0.0.4")
    body, form = page(registry, "application/openmetrics-text; version=1.0.0")
    assert form.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def families() -> dict[str, str]:
    """All of ours: the names that are read, and their help."""
    edge = CollectorRegistry()
    EdgeMetrics(edge)
    sources = (
        *edge.collect(),
        *ParentMetrics(ParentFigures).collect(),
        *AgentMetrics(AgentFigures).collect(),
    )
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.documentation
        for family in sources
    }


def test_the_documented_metrics_are_those_that_there_are() -> None:
    section = DOCS.read_text().partition("## Metrics")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `relay_")]
    documented = [re.findall(r"`(relay_[a-z_]+)", row.split("|")[1])[0] for row in rows]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(families())


def test_names_follow_the_rules_of_prometheus() -> None:
    for name, text in families().items():
        assert NAME.fullmatch(name)
        assert text.endswith(".")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")
def test_promtool_finds_nothing() -> None:
    registry = CollectorRegistry()
    counted = EdgeMetrics(registry)
    counted.count_request("alpha", "start", 201)
    counted.traffic("alpha").sent(1)
    registries = registry, agent_registry(AgentMetrics(lambda: AgentFigures(limit_hits={"a": 1})))
    for each in registries:
        body = b"".join(
            line
            for line in page(each, "")[0].splitlines(keepends=True)
            # Only a registry in memory tells when a count began.
            if b"_created" not in line
        )
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=body, capture_output=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
