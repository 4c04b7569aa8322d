from __future__ import annotations

from pathlib import Path

import pytest

from relay.config import AgentConfig, ConfigError, UpConfig, load
from tests.config.files import AGENT, AUTHENTICATION, EDGE, NAME, agent, edge, problems

NO_NODE = "is not valid YAML: expected the node content, but found '<stream end>'"


def test_an_empty_file_is_like_none(file: Path) -> None:
    file.write_text("# nothing\n")
    assert load(UpConfig, file, {}) == UpConfig()


def test_every_mistake_is_reported_at_once_with_its_place(file: Path) -> None:
    text = """\
https: {port: 99999}
wss:
  hots: 0.0.0.0
tls:
  certificate: a.pem
clusters:
  Alpha:
    agents: ["http://x:1/"]
  api: {agents: []}
limits: 5
websocket:
  ping_interval: .nan
workers: yes
authentication: {tokens: {file: 3}}
"""
    env = {
        "RELAY_LOG__LEVEL": "loud",
        "RELAY_LOG__COLOUR": "x",
        "RELAY_NONE": "1",
        "RELAY_DRAIN": "[",
    }
    with pytest.raises(ConfigError) as error:
        edge(file, text, env)
    assert sorted(problems(error, file)) == sorted(
        [
            "https.port: expected a whole number, at most 65535 (FILE:1)",
            "wss.hots: no such setting; did you mean host? (FILE:3)",
            "tls.key: is required (FILE:4)",
            f"clusters.Alpha: {NAME} (FILE:7)",
            "clusters.Alpha.agents.0: expected only a scheme, a host and a port (FILE:8)",
            "clusters.api: the name 'api' is reserved (FILE:9)",
            "clusters.api.agents: at least one is needed (FILE:9)",
            "limits: expected a mapping of settings (FILE:10)",
            "websocket.ping_interval: expected a number, over 0 (FILE:12)",
            "workers: expected a whole number, got true or false (FILE:13)",
            "authentication.tokens.file: expected text, got a whole number (FILE:14)",
            "ticket_key: is required (FILE)",
            "log.level: 'loud' is not one of debug, info, warning, error ($RELAY_LOG__LEVEL)",
            "log.colour: no such setting ($RELAY_LOG__COLOUR)",
            "none: no such setting ($RELAY_NONE)",
            f"drain: {NO_NODE} ($RELAY_DRAIN)",
        ]
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", f"{NO_NODE} (FILE:1)"),
        ("a: *b", "is not valid YAML: found undefined alias 'b' (FILE:1)"),
        ("a: \0", "is not valid YAML (FILE)"),
        ("--- 1\n--- 2\n", "is not valid YAML: but found another document (FILE:2)"),
        ("- a", "expected a mapping of settings (FILE:1)"),
        ("text", "expected a mapping of settings (FILE:1)"),
    ],
)
def test_a_file_of_another_shape_is_one_problem(file: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        agent(file, text)
    assert problems(error, file) == [problem]


def test_a_file_that_cannot_be_read_is_one_problem(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(AgentConfig, file, {})
    assert problems(error, file) == ["cannot be read: No such file or directory (FILE)"]
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError) as error:
        load(AgentConfig, file, {})
    assert problems(error, file) == ["is not UTF-8 text (FILE)"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("drain: 1\ndrain: 2", "drain: is set twice (FILE:6)"),
        (
            "log: &a {level: *a}",
            "log.level: is a YAML alias, which is not supported; write the value out (FILE:5)",
        ),
        ("drain: 2026-99-99", "drain: is not a value that YAML supports (FILE:5)"),
        ("drain: !python/none x", "drain: is not a value that YAML supports (FILE:5)"),
        ("? [a]\n: 1", "?: no such setting (FILE:5)"),
        ("drain: .inf", "drain: expected a number, at most 86400 (FILE:5)"),
        ("drain: null", "drain: expected a number, got null (FILE:5)"),
        ("drain: -0.1", "drain: expected a number, at least 0 (FILE:5)"),
        (
            "runtime_dir: ~nobody-of-this-name/x",
            "runtime_dir: there is no such home directory (FILE:5)",
        ),
        (
            "environment: {allowed: [A, B=C]}",
            "environment.allowed.1: expected text that matches",
        ),
        ("environment: {allowed: A}", "environment.allowed: expected a list (FILE:5)"),
        ("environment: {inherit: ['A*B']}", "environment.inherit.0: expected text that matches"),
        ("tls: {certificate: a, key: b}", "tls.client_ca: is required (FILE:5)"),
        (
            "journal: {bytes: 31 MiB}",
            "journal.bytes: it must be at least twice segment_bytes (FILE:5)",
        ),
    ],
)
def test_mistakes_in_an_agents_file(file: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        agent(file, AGENT + line + "\n")
    (only,) = problems(error, file)
    assert only.startswith(problem)


def test_an_agent_needs_a_ticket_key(file: Path) -> None:
    with pytest.raises(ConfigError, match="at least one key is needed"):
        agent(file, AGENT.replace("[a.pem]", "[]"))


def test_a_section_that_makes_no_sense_is_told_at_the_setting_it_names(file: Path) -> None:
    written = "authentication:\n  tokens: {file: t}\n  chain: [corp]\n"
    with pytest.raises(ConfigError) as error:
        edge(file, EDGE.replace(AUTHENTICATION, written))
    assert problems(error, file) == [
        "authentication.chain: corp is not set here; known are token (FILE:5)"
    ]
    with pytest.raises(ConfigError) as error:
        edge(file, EDGE, {"RELAY_AUDIT__REQUIRED": "true"})
    assert problems(error, file) == ["audit.required: it needs audit.file ($RELAY_AUDIT__REQUIRED)"]


def test_a_section_given_in_part_keeps_the_rest_of_its_default(file: Path) -> None:
    settings = edge(file, EDGE + "https: {host: 0.0.0.0}\nlog:\n")
    assert (settings.https.host, settings.https.port) == ("0.0.0.0", 8443)  # noqa: S104
    assert settings.log.level == "info"


def test_variables_beat_the_file(file: Path) -> None:
    env = {
        "RELAY_CLUSTER": "123",
        "RELAY_LISTEN__PORT": "9",
        "RELAY_TLS": "{certificate: /a, key: /b}",
        "RELAY_TLS__CLIENT_CA": "/c",
        "RELAY_TICKET_KEYS": "[/x, /y]",
        "RELAY_LOG__FORMAT": "",
        "OTHER": "ignored",
        "relay_drain": "ignored",
    }
    with pytest.raises(ConfigError) as error:  # text stays text: it is a name, if a bad one
        agent(file, AGENT, env)
    assert "a cluster's name is" in str(error.value)
    settings = agent(file, AGENT, env | {"RELAY_CLUSTER": "no"})  # YAML would read False
    assert settings.cluster == "no"
    assert settings.listen.port == 9
    assert settings.tls is not None
    assert (settings.tls.certificate, settings.tls.client_ca) == ("/a", "/c")
    assert settings.ticket_keys == ["/x", "/y"]
    assert settings.log.format == "auto"


def test_variables_reach_a_cluster_whose_name_has_a_hyphen(file: Path) -> None:
    text = EDGE.replace("alpha", "gpu-a")
    settings = edge(
        file,
        text,
        {
            "RELAY_CLUSTERS__GPU_A__AGENTS": "['https://g:1']",
            "RELAY_CLUSTERS__GPU_A__TLS__CA": "/yes: it is",
            "RELAY_CLUSTERS__B__AGENTS": "['http://h:1']",
        },
    )
    tls = settings.clusters["gpu-a"].tls
    assert tls is not None
    assert tls.ca == "/yes: it is"
    assert settings.clusters["b"].agents == ["http://h:1"]


def test_a_variable_does_not_hide_a_mistake_in_the_file(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        agent(file, AGENT + "log: loud\n", {"RELAY_LOG__LEVEL": "debug"})
    assert problems(error, file) == ["log: expected a mapping of settings (FILE:5)"]


@pytest.mark.parametrize(
    "name", ["RELAY_", "RELAY_LOG__", "RELAY_CLUSTER__X", "RELAY_TICKET_KEYS__0"]
)
def test_variables_that_name_nothing(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no such setting"):
        agent(file, AGENT, {name: "x"})


def test_a_variable_of_other_programs_is_passed_over(file: Path) -> None:
    assert edge(file, EDGE, {"RELAY_STATE_DIR": "/x"}) == edge(file, EDGE)
    assert load(UpConfig, None, {"RELAY_STATE_DIR": "/x"}).state_dir == "/x"


def test_relative_paths(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", "/home/ada")
    settings = agent(
        file,
        AGENT + "runtime_dir: ~/run\n",
        {"RELAY_TICKET_KEYS": "[a.pem, /b.pem]"},
    )
    assert settings.state_dir == str(tmp_path / "state")
    assert settings.ticket_keys == [str(here / "a.pem"), "/b.pem"]
    assert settings.runtime_dir == "/home/ada/run"


def test_a_value_never_appears_in_the_report(file: Path) -> None:
    """Somebody may have pasted a token where a path belongs."""
    with pytest.raises(ConfigError) as error:
        edge(file, EDGE + "drain: relay_secret\nhttps: relay_secret\nworkers: [relay_secret]\n")
    assert len(problems(error, file)) == 3
    assert "relay_secret" not in str(error.value)
