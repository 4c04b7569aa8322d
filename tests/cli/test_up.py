from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay import supervisor
from relay.config import UpConfig
from relay.processes import StartError
from relay.supervisor import ProgramFailed, Ready, StateFolder
from relay.supervisor.state import MetricsUrls, Pids

Run = Callable[..., tuple[int, str, str]]
READY = Ready(
    https_url="https://127.0.0.1:1",
    wss_url="wss://127.0.0.1:2",
    token="relay_t",
    ca="/state/pki/ca.pem",
    clusters=("alpha",),
    metrics=MetricsUrls(edge="http://127.0.0.1:3/metrics", agents={}),
    pids=Pids(supervisor=1, edge=(), agents={}),
)


class Supervisor:
    """Notes what it is asked to run, becomes ready, and ends as told."""

    def __init__(self) -> None:
        self.config: UpConfig | None = None
        self.folder: StateFolder | None = None
        self.error: Exception | None = None

    def run(self, config: UpConfig, folder: StateFolder, environ: Any, announce: Any) -> None:
        self.config, self.folder = config, folder
        if self.error:
            raise self.error
        announce(READY)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Supervisor:
    made = Supervisor()
    monkeypatch.setattr(supervisor, "run", made.run)
    monkeypatch.setattr(supervisor, "living_kernels", lambda path: Counter(alpha=2))
    monkeypatch.setenv("RELAY_STATE_DIR", str(tmp_path / "state"))
    return made


def test_users_share_a_uid_where_that_is_said_only(relay: Run, fake: Supervisor) -> None:
    for options in ((), ("--shared-uid",)):
        _, out, _ = relay("up", *options)
        assert fake.config is not None
        assert fake.config.shared_uid is bool(options)
        assert ("users are not isolated" in out) is bool(options)


def test_the_defaults(relay: Run, fake: Supervisor, tmp_path: Path) -> None:
    code, out, err = relay("up")
    assert (code, err) == (0, "")
    assert fake.config == UpConfig(state_dir=str(tmp_path / "state"))
    assert fake.folder == StateFolder(tmp_path / "state")
    assert out.startswith("The relay is ready.\n")
    assert out.endswith(
        "2 kernels keep running (alpha: 2).\n"
        "`relay up` serves them again; `relay down --kernels` ends them.\n"
    )


def test_every_option(relay: Run, fake: Supervisor, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    code, out, _ = relay(
        *("up", "--state-dir", str(elsewhere), "--https-port", "0", "--wss-port", "9"),
        *("--edge-workers", "3", "--cluster", "one", "--cluster", "two"),
    )
    assert code == 0
    assert fake.config is not None
    assert fake.config.https.port == 0
    assert fake.config.wss.port == 9
    assert fake.config.edge_workers == 3
    assert fake.config.clusters == ["one", "two"]
    assert fake.folder == StateFolder(elsewhere)
    assert f"`relay down --kernels --state-dir '{elsewhere}'` ends them." in out


def test_options_beat_the_file_and_the_file_the_defaults(
    relay: Run, fake: Supervisor, tmp_path: Path
) -> None:
    file = tmp_path / "up.yaml"
    file.write_text("https: {host: '::1', port: 1}\nwss: {port: 2}\nclusters: [gamma]\n")
    assert relay("up", "--config", str(file), "--https-port", "7")[0] == 0
    assert fake.config is not None
    assert (fake.config.https.host, fake.config.https.port) == ("::1", 7)
    assert fake.config.wss.port == 2
    assert fake.config.clusters == ["gamma"]


@pytest.mark.parametrize(
    "arguments", [["--cluster", "a", "b"], ["--cluster", "a", "--cluster", "b"]]
)
def test_several_clusters_either_way(relay: Run, fake: Supervisor, arguments: list[str]) -> None:
    assert relay("up", *arguments)[0] == 0
    assert fake.config is not None
    assert fake.config.clusters == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "Big"], "--cluster Big: a cluster's name is"),
        (["--cluster", "my-http"], "--cluster my-http: a cluster's name does not contain 'http'"),
        (["--cluster", "api"], "--cluster api: the name 'api' is reserved"),
        (["--cluster", "a", "--cluster", "a"], "clusters: a name appears twice"),
        (["--https-port", "8444"], "https and wss need different ports"),
        (["--config", "/no/such/file"], "cannot be read: No such file or directory"),
    ],
)
def test_bad_values_are_one_line(
    relay: Run, fake: Supervisor, arguments: list[str], message: str
) -> None:
    code, out, err = relay("up", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"relay: {message}")
    assert err.count("\n") == 1
    assert fake.config is None


def test_a_rule_for_whom_nobody_knows_is_one_line(
    relay: Run, fake: Supervisor, tmp_path: Path
) -> None:
    file = tmp_path / "up.yaml"
    file.write_text("""\
policy:
  rules:
    - {authenticator: token, actions: [list]}
    - {authenticator: corp, actions: [list]}
""")
    problem = "policy.rules.1: authenticator corp is not set; known are token"
    assert relay("up", "--config", str(file)) == (2, "", f"relay: {problem} ({file}:4)\n")
    assert fake.config is None
    code, out, _ = relay("check-config", "--up", str(file))
    assert (code, out.splitlines()[0]) == (2, f"error: {file}:4: {problem}")


def test_the_weak_parser_is_refused(
    relay: Run, fake: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    code, _, err = relay("up")
    assert code == 2
    assert err.startswith("relay: AIOHTTP_NO_EXTENSIONS")
    assert fake.config is None


def test_what_is_in_the_way_is_one_line(relay: Run, fake: Supervisor) -> None:
    fake.error = StartError("port 1 on 127.0.0.1 is in use by process 2 (other)")
    assert relay("up") == (2, "", "relay: port 1 on 127.0.0.1 is in use by process 2 (other)\n")


def test_a_failed_start_still_tells_of_kernels(relay: Run, fake: Supervisor) -> None:
    fake.error = ProgramFailed("edge does not start: exit code 1")
    code, out, err = relay("up")
    assert (code, err) == (1, "relay: edge does not start: exit code 1\n")
    assert out.startswith("2 kernels keep running")
