from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config import EdgeConfig
from relay.edge import parent
from relay.processes import StartError

Run = Callable[..., tuple[int, str, str]]
YAML = """
tls: {certificate: c.pem, key: k.pem}
clusters: {alpha: {agents: ['http://127.0.0.1:1']}}
authentication: {tokens: {file: t.json}}
ticket_key: k
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "edge.yaml"
    path.write_text(YAML)
    return path


@pytest.mark.parametrize("code", [0, 1])
def test_it_runs_the_edge_and_tells_its_exit_code(
    relay: Run, config: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    ran: list[tuple[EdgeConfig, Path]] = []

    def run(settings: EdgeConfig, path: Path) -> int:
        ran.append((settings, path))
        return code

    monkeypatch.setattr(parent, "run", run)
    assert relay("edge", "--config", str(config)) == (code, "", "")
    assert [(settings.workers, path) for settings, path in ran] == [(2, config)]


def test_a_taken_port_is_one_line(
    relay: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(settings: EdgeConfig, path: Path) -> int:
        raise StartError("port 8443 on 127.0.0.1 is in use by process 1 (x)")

    monkeypatch.setattr(parent, "run", run)
    code, _, err = relay("edge", "--config", str(config))
    assert (code, err) == (2, "relay: port 8443 on 127.0.0.1 is in use by process 1 (x)\n")


def test_every_mistake_is_a_line(relay: Run, config: Path) -> None:
    config.write_text(YAML + "wrokers: 3\nhttps: {port: 99999}\n")
    code, _, err = relay("edge", "--config", str(config))
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("relay: ") for line in lines)
    assert any("wrokers" in line for line in lines)


def test_the_weak_parser_is_refused(
    relay: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    assert relay("edge", "--config", str(config))[0] == 2


def test_it_dies_with_its_parent(relay: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("relay.processes.die_with_parent", asked.append)
    monkeypatch.setattr(parent, "run", lambda settings, path: 0)
    relay("edge", "--config", str(config), "--die-with-parent", "12")
    relay("edge", "--config", str(config))
    assert asked == [12]
