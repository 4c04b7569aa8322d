from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.agent import main
from relay.agent.privsep import helper
from relay.config import AgentConfig
from relay.processes import StartError, claim_notify_socket

Run = Callable[..., tuple[int, str, str]]
YAML = """
cluster: alpha
listen: {port: 8500}
state_dir: state
ticket_keys: [edge.pub]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AgentConfig]]:
    """What the agent was run with, instead of running it."""
    found: list[AgentConfig] = []
    monkeypatch.setattr(main, "run", found.append)
    claim_notify_socket.cache_clear()
    yield found
    claim_notify_socket.cache_clear()


def test_it_runs_the_agent(relay: Run, config: Path, ran: list[AgentConfig]) -> None:
    assert relay("agent", "--config", str(config)) == (0, "", "")
    (settings,) = ran
    assert (settings.cluster, settings.state_dir) == ("alpha", str(config.with_name("state")))


def test_nothing_it_starts_can_report_in_its_name(
    relay: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@supervisor")
    relay("agent", "--config", str(config))
    assert "NOTIFY_SOCKET" not in os.environ
    assert claim_notify_socket() == "@supervisor"


def test_it_dies_with_its_parent(relay: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("relay.processes.die_with_parent", asked.append)
    relay("agent", "--config", str(config), "--die-with-parent", "12")
    assert asked == [12]


def test_mistakes_are_lines(relay: Run, config: Path, ran: list[AgentConfig]) -> None:
    config.write_text("cluster: HTTP\n")
    code, _, err = relay("agent", "--config", str(config))
    assert code == 2
    assert err.count("\n") == err.count("relay: ") > 1
    assert ran == []


def test_os_users_behind_a_plain_listener_are_refused(
    relay: Run, config: Path, ran: list[AgentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[AgentConfig] = []

    def launch(settings: AgentConfig, *_: object) -> int:
        launched.append(settings)
        return 0

    monkeypatch.setattr(helper, "run", launch)
    monkeypatch.setattr("relay.processes.become", lambda _: None)
    config.write_text(f"{YAML}user: relay\nlaunch_as: {{}}\nruntime_dir: /run/relay\n")
    for options in ((), ("--become", "relay")):
        code, _, err = relay("agent", "--config", str(config), *options)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("relay: launch_as: it needs mutual TLS, ")
        for word in ("port", "tickets", "set tls", "clusters.<name>.tls"):
            assert word in err
    assert ran == launched == []
    config.write_text(
        config.read_text() + "tls: {certificate: a.pem, key: a.key, client_ca: ca.pem}\n"
    )
    assert relay("agent", "--config", str(config))[0] == 0
    assert len(launched) == 1


def test_what_is_in_the_way_is_one_line(
    relay: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(settings: AgentConfig) -> None:
        raise StartError("port 8500 on 127.0.0.1 is in use by process 1 (x)")

    monkeypatch.setattr(main, "run", run)
    code, _, err = relay("agent", "--config", str(config))
    assert (code, err) == (2, "relay: port 8500 on 127.0.0.1 is in use by process 1 (x)\n")


def test_the_weak_parser_is_refused(
    relay: Run, config: Path, ran: list[AgentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    assert relay("agent", "--config", str(config))[0] == 2
    assert ran == []
