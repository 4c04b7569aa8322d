from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from relay.kernel_folders import process_started
from tests.waiting import WAIT, eventually

DRIVER = Path(__file__).with_name("driver.py")


class Relay:
    """A supervisor in a process of its own, over stand-ins."""

    def __init__(self, state: Path, ports: tuple[int, ...], environ: dict[str, str]) -> None:
        self.state = state
        self.errors = state.with_suffix(f".stderr{time.monotonic_ns()}")
        with self.errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(DRIVER), str(state), *map(str, ports)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **environ},
            )

    def wait_ready(self) -> Relay:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready"), self.errors.read_text()
        return self

    @property
    def info(self) -> Any:
        return msgspec.json.decode((self.state / "relay.json").read_bytes())

    @property
    def pids(self) -> list[int]:
        """Everybody but the edge's parent."""
        pids = self.info["pids"]
        agents = [pid for agent in pids["agents"].values() for pid in agent]
        return [pids["supervisor"], *pids["edge"], *agents]

    def ports(self) -> tuple[int, int]:
        return tuple(int(self.info[key].rpartition(":")[2]) for key in ("https_url", "wss_url"))  # type: ignore[return-value]

    def ended(self) -> tuple[int, str]:
        """The exit code and the last line on stderr."""
        code = self.process.wait(WAIT)
        return code, self.errors.read_text().splitlines()[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    relays: list[Relay] = []

    def begin(*arguments: int, **environ: str) -> Relay:
        relays.append(Relay(tmp_path / "state", arguments or (0, 0), environ))
        return relays[-1]

    yield begin
    for relay in relays:
        relay.process.kill()
        relay.process.wait()
        assert relay.process.stdout is not None
        relay.process.stdout.close()


Start = Callable[..., Relay]


def gone(pid: int) -> bool:
    return process_started(pid) is None


def agent_port(relay: Relay, cluster: str) -> int:
    text = (relay.state / "run" / f"agent-{cluster}.yaml").read_text()
    port: int = yaml.safe_load(text)["listen"]["port"]
    return port


def test_ready_means_that_everything_is(start: Start) -> None:
    relay = start().wait_ready()
    info = relay.info
    https, wss = relay.ports()
    assert info["https_url"] == f"https://127.0.0.1:{https}"
    assert info["wss_url"] == f"wss://127.0.0.1:{wss}"
    assert info["clusters"] == ["alpha", "wss"]
    assert Path(info["ca"]).read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert info["token"] == (relay.state / "first-token").read_text().strip()
    assert info["pids"]["supervisor"] == relay.process.pid
    assert len(info["pids"]["edge"]) == 2
    assert {name: len(pids) for name, pids in info["pids"]["agents"].items()} == {
        "alpha": 1,
        "wss": 1,
    }
    assert not any(gone(pid) for pid in relay.pids)
    for port in (https, wss):
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_killed_agent_comes_back_with_its_port(start: Start) -> None:
    relay = start().wait_ready()
    before = relay.info["pids"]
    port = agent_port(relay, "alpha")
    os.kill(before["agents"]["alpha"][0], signal.SIGKILL)
    eventually(lambda: relay.info["pids"] != before)
    after = relay.info["pids"]
    assert not gone(after["agents"]["alpha"][0])
    assert (after["edge"], after["agents"]["wss"]) == (before["edge"], before["agents"]["wss"])
    assert agent_port(relay, "alpha") == port


def test_a_killed_edge_comes_back_with_its_workers(start: Start) -> None:
    relay = start().wait_ready()
    before = relay.info["pids"]["edge"]
    os.kill(parent_of(before[0]), signal.SIGKILL)
    eventually(lambda: not set(relay.info["pids"]["edge"]) & set(before))
    assert len(relay.info["pids"]["edge"]) == 2
    eventually(lambda: all(map(gone, before)))


def parent_of(pid: int) -> int:
    (line,) = (
        each for each in read(Path(f"/proc/{pid}/status")).splitlines() if each.startswith("PPid:")
    )
    return int(line.split()[1])


def read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_everything_edge_first(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    relay = start(STANDIN_LOG=str(tmp_path / "log")).wait_ready()
    pids = relay.pids
    relay.process.send_signal(number)
    assert relay.ended()[0] == 0
    assert all(map(gone, pids))
    assert not (relay.state / "relay.json").exists()
    stopped = [
        line for line in (tmp_path / "log").read_text().splitlines() if line.endswith("stopped")
    ]
    assert stopped[0] == "edge stopped"
    assert set(stopped[1:]) == {"agent-alpha stopped", "agent-wss stopped"}


def test_killed_it_takes_all_along_and_the_next_has_its_ports(start: Start) -> None:
    relay = start().wait_ready()
    ports, pids, token = relay.ports(), relay.pids, relay.info["token"]
    relay.process.kill()
    relay.process.wait()
    again = start(*ports).wait_ready()
    assert (again.ports(), again.info["token"]) == (ports, token)
    eventually(lambda: all(map(gone, pids)))


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    relay = start(STANDIN_STUBBORN="1").wait_ready()
    pids = relay.pids
    relay.process.send_signal(signal.SIGTERM)
    eventually(lambda: not (relay.state / "relay.json").exists())
    begun = time.monotonic()
    relay.process.send_signal(signal.SIGTERM)
    assert relay.ended()[0] == 0
    assert time.monotonic() - begun < 3
    assert all(map(gone, pids))


def test_a_signal_while_starting(start: Start, tmp_path: Path) -> None:
    relay = start(STANDIN_EXIT="agent-alpha=1")
    eventually(lambda: "process_ended" in read(relay.errors))
    relay.process.send_signal(signal.SIGTERM)
    code, last = relay.ended()
    assert code == 0, last


@pytest.mark.parametrize("code", [2, 1])
def test_what_cannot_start_is_an_end(start: Start, code: int) -> None:
    relay = start(STANDIN_EXIT=f"agent-alpha={code}")
    assert relay.ended() == (1, f"failed: agent-alpha does not start: exit code {code}")
    assert not (relay.state / "relay.json").exists()


def test_one_relay_per_state_folder(start: Start) -> None:
    relay = start().wait_ready()
    code, line = start().ended()
    assert code == 1
    assert line == (
        f"refused: a relay is already running on {relay.state}: process {relay.process.pid}"
    )
    assert relay.info["pids"]["supervisor"] == relay.process.pid


def test_a_port_in_use_is_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, line = start(port, 0).ended()
    assert line.startswith(
        f"refused: port {port} on 127.0.0.1 is in use by process {os.getpid()} ("
    )


def test_a_port_that_is_being_given_up_is_waited_for(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        relay = start(taken.getsockname()[1], 0)
        eventually((relay.state / "tokens.json").exists)  # the ports come next
        time.sleep(0.3)
    relay.wait_ready()


def test_a_stale_status_is_gone_before_the_start(start: Start, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "relay.json").write_text("{}")
    relay = start(STANDIN_EXIT="edge=1")
    eventually(lambda: "process_ended" in read(relay.errors))
    assert not (state / "relay.json").exists()
