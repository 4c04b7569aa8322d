"""Metrics of a real relay: as text, and in a real Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.processes import reserve
from tests.system.running import RunningRelay, environment, http_request, wait_for


def samples(text: str) -> dict[str, float]:
    """By name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(each.labels.items()))
            found[f"{each.name}{{{labels}}}"] = each.value
    return found


@pytest.fixture(scope="module")
def watched() -> Iterator[RunningRelay]:
    with RunningRelay(("alpha", "beta-2"), ("--edge-workers", "2")) as running:
        yield running


def test_edge_and_agents_count_what_happens(watched: RunningRelay) -> None:
    kernel = watched.start_kernel("beta-2")
    watched.request("GET", "/beta-2/api/kernels", headers={})
    watched.request("GET", "/nowhere/api/kernels")
    with watched.connect("beta-2", kernel) as channels:
        channels.execute("print('x' * 100_000)")
        proofs = "relay_edge_proofs_total{cluster=beta-2}"
        wait_for("a proof", lambda: samples(watched.metrics()).get(proofs))
        edge = samples(watched.metrics())
        assert edge["relay_edge_websockets{cluster=beta-2}"] == 1
        assert edge["relay_edge_websocket_bytes_total{cluster=beta-2,direction=out}"] > 100_000
        assert edge["relay_edge_websocket_bytes_total{cluster=beta-2,direction=in}"] > 100
        held = "relay_agent_journal_bytes{}"
        wait_for("the journal", lambda: samples(watched.metrics("beta-2"))[held] > 100_000)
        agent = samples(watched.metrics("beta-2"))
        assert agent["relay_agent_connections{}"] == agent["relay_agent_sessions{}"] == 1
        assert agent["relay_agent_messages_total{}"] > 3
    edge = samples(watched.metrics())
    assert edge["relay_edge_workers{}"] == 2
    assert edge["relay_edge_requests_total{cluster=beta-2,kind=start,status=2xx}"] == 1
    # Whoever invents a cluster's name makes no label of it.
    assert edge["relay_edge_requests_total{cluster=,kind=,status=4xx}"] == 2
    assert edge["relay_edge_refused_logins_total{}"] == 1
    gone = "relay_edge_requests_total{cluster=beta-2,kind=channels,status=1xx}"
    wait_for("its end", lambda: samples(watched.metrics()).get(gone) == 1)
    assert samples(watched.metrics("beta-2"))["relay_agent_starts_total{}"] == 1
    assert samples(watched.metrics("alpha"))["relay_agent_kernels{}"] == 0
    text = watched.metrics() + watched.metrics("beta-2")
    assert kernel not in text
    assert "token:" not in text


def test_what_a_killed_worker_counted_stays_counted(watched: RunningRelay) -> None:
    kinds = "relay_edge_requests_total{cluster=alpha,kind=kernelspecs,status=2xx}"
    for _ in range(10):
        watched.request("GET", "/alpha/api/kernelspecs")
    assert samples(watched.metrics())[kinds] == 10
    ends = samples(watched.metrics())["relay_edge_worker_ends_total{}"]
    for pid in watched.info.pids.edge:
        os.kill(pid, signal.SIGKILL)
    ended = "relay_edge_worker_ends_total{}"
    wait_for("new workers", lambda: samples(watched.metrics())[ended] == ends + 2)
    wait_for("an answer", lambda: _answers(watched))
    assert samples(watched.metrics())[kinds] >= 11


def _answers(relay: RunningRelay) -> bool:
    try:
        return relay.request("GET", "/alpha/api/kernelspecs").status == 200
    except OSError:
        return False


def test_there_is_one_page(watched: RunningRelay) -> None:
    base = watched.info.metrics.edge.removesuffix("/metrics")
    assert http_request(base, "GET", "/", headers={}).status == 404
    answer = http_request(base, "POST", "/metrics", headers={})
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    head = http_request(base, "HEAD", "/metrics", headers={})
    assert (head.status, head.body) == (200, b"")
    assert "aiohttp" not in str(head.headers)
    assert urlsplit(base).hostname == "127.0.0.1"


@pytest.fixture(scope="module")
def prometheus() -> str:
    """Prometheus' own program, Debian's where there is none and it may be installed."""
    found = shutil.which("prometheus")
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        # Neither the service nor what it recommends: the program is all that is wanted.
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "prometheus")
        for command in (("apt-get", "update", "-qq"), install):
            subprocess.run(command, env=quiet, check=False, capture_output=True, timeout=300)
        found = shutil.which("prometheus")
    if found is None:
        pytest.skip("there is no Prometheus here, and none can be installed")
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_prometheus_scrapes_them_all(
    watched: RunningRelay, prometheus: str, tmp_path: Path
) -> None:
    kernel = watched.start_kernel("alpha")
    with watched.connect("alpha", kernel) as channels:
        channels.execute("print(1)")
    urls = watched.info.metrics
    targets = sorted(urlsplit(url).netloc for url in (urls.edge, *urls.agents.values()))
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "relay", "static_configs": [{"targets": targets}]}],
    }
    # YAML takes JSON.
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    with reserve("127.0.0.1") as kept:
        port = kept.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    argv = (
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )

    def ask(path: str) -> Any:
        try:
            answer = http_request(url, "GET", path, headers={})
        except OSError:
            return None
        return answer.json["data"] if answer.status == 200 else None

    def up() -> Any:
        found = (ask("/api/v1/targets?state=active") or {}).get("activeTargets", [])
        return found if found and {each["health"] for each in found} == {"up"} else None

    def value(query: str) -> float | None:
        found = (ask(f"/api/v1/query?{urlencode({'query': query})}") or {}).get("result", [])
        return float(found[0]["value"][1]) if found else None

    program = subprocess.Popen(
        [prometheus, *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(tmp_path),
    )
    try:
        active = wait_for("all targets up", up)
        assert sorted(each["labels"]["instance"] for each in active) == targets
        assert {each["lastError"] for each in active} == {""}
        wait_for("both kernels", lambda: value("sum(relay_agent_kernels)") == 2)
        assert wait_for("a count", lambda: value("sum(relay_edge_requests_total)"))
        assert value('relay_edge_requests_total{cluster="alpha",kind="start",status="2xx"}') == 1
        bytes_out = 'sum(relay_edge_websocket_bytes_total{direction="out"})'
        assert (value(bytes_out) or 0) > 0
    finally:
        program.terminate()
        program.wait(60)
    promtool = shutil.which("promtool")
    assert promtool is not None
    for text in (watched.metrics(), watched.metrics("alpha")):
        done = subprocess.run(
            [promtool, "check", "metrics"],
            input=text.encode(),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
