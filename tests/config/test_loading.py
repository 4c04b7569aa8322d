from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from relay.auth.policy import Action, Rule
from relay.config import AgentConfig, ConfigError, EdgeConfig, UpConfig, load

AGENT = """\
cluster: alpha
listen: {port: 8451}
state_dir: state
ticket_keys: [a.pem]
"""
EDGE = """\
tls: {certificate: a.crt, key: a.key}
clusters: {alpha: {agents: ["http://127.0.0.1:1"]}}
authentication: {tokens: {file: tokens.json}}
ticket_key: ticket.key
"""
NAME = "a cluster's name is 1 to 31 of a-z, 0-9 and '-', and begins with a letter"
NO_NODE = "is not valid YAML: expected the node content, but found '<stream end>'"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "relay.yaml"


def agent(file: Path, text: str, env: dict[str, str] | None = None) -> AgentConfig:
    file.write_text(text)
    return load(AgentConfig, file, env or {})


def edge(file: Path, text: str, env: dict[str, str] | None = None) -> EdgeConfig:
    file.write_text(text)
    return load(EdgeConfig, file, env or {})


def problems(error: pytest.ExceptionInfo[ConfigError], file: Path) -> list[str]:
    return str(error.value).replace(str(file), "FILE").splitlines()


def test_nothing_needs_to_be_configured_for_relay_up() -> None:
    settings = load(UpConfig, None, {})
    assert settings == UpConfig()
    assert (settings.https.port, settings.wss.port) == (8443, 8444)
    assert settings.clusters == ["alpha", "beta"]


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


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ("agents: ['http://h:1'], tls: {ca: a}", "tls is set, but the URL of an agent is http"),
        (
            "agents: ['https://h:1'], tls: {ca: a, key: b}",
            "certificate and key must be set together",
        ),
        ("agents: ['https://h']", "expected http://host:port or https://host:port"),
        ("agents: ['ftp://h:1']", "expected http://host:port or https://host:port"),
        ("agents: ['http://h:99999']", "Port out of range"),
        ("agents: ['http://u:p@h:1']", "expected only a scheme, a host and a port"),
        ("agents: ['http://h:1?x']", "expected only a scheme, a host and a port"),
        ("agents: ['http://h:1'], tls: {ca: null}", "expected text, got null"),
    ],
)
def test_mistakes_in_a_cluster(file: Path, cluster: str, problem: str) -> None:
    text = EDGE.replace("""agents: ["http://127.0.0.1:1"]""", cluster)
    with pytest.raises(ConfigError) as error:
        edge(file, text)
    (only,) = problems(error, file)
    assert problem in only
    assert only.startswith("clusters.alpha")


@pytest.mark.parametrize("url", ["http://h:1", "https://[::1]:8451", "https://agent.example:443"])
def test_an_agents_url(file: Path, url: str) -> None:
    text = EDGE.replace("http://127.0.0.1:1", url)
    assert edge(file, text).clusters["alpha"].agents == [url]


def test_two_ports_are_two(file: Path) -> None:
    with pytest.raises(ConfigError, match="different ports"):
        edge(file, EDGE + "https: {port: 8444}\n")
    with pytest.raises(ConfigError, match="different ports"):
        load(UpConfig, None, {"RELAY_WSS__PORT": "8443"})
    free = load(UpConfig, None, {"RELAY_WSS__PORT": "0", "RELAY_HTTPS__PORT": "0"})
    assert free.https.port == free.wss.port == 0


AUTHENTICATION = "authentication: {tokens: {file: tokens.json}}\n"


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("{}", ": no authenticator is set, so nobody could be authenticated"),
        ("{tokens: null}", ": no authenticator is set, so nobody could be authenticated"),
        ("{chain: [token]}", ": no authenticator is set, so nobody could be authenticated"),
        ("{tokens: {}}", ".tokens.file: is required"),
        ("{tokens: {file: ''}}", ".tokens.file: expected text of at least 1 character"),
        ("{tokens: {file: null}}", ".tokens.file: expected text, got null"),
        ("{tokens: t.json}", ".tokens: expected a mapping of settings"),
        ("{tokens: {file: t, flie: t}}", ".tokens.flie: no such setting; did you mean file?"),
        ("{tokens: {file: t}, jwks: {}}", ".jwks: no such setting"),
        ("{tokens: {file: t}, chain: token}", ".chain: expected a list"),
        ("{tokens: {file: t}, chain: null}", ".chain: expected a list"),
        ("{tokens: {file: t}, chain: [corp]}", ".chain: corp is not set here; known are token"),
        ("{tokens: {file: t}, chain: [token, x]}", ".chain: x is not set here; known are token"),
        ("{tokens: {file: t}, chain: [tokens]}", ".chain: tokens is not set here"),
        ("{tokens: {file: t}, chain: [token, token]}", ".chain: a name appears twice"),
        ("{tokens: {file: t}, chain: [Token]}", ".chain.0: expected text that matches"),
        ("{tokens: {file: t}, chain: ['']}", ".chain.0: expected text that matches"),
        ("{tokens: {file: t}, chain: ['token:']}", ".chain.0: expected text that matches"),
        ('{tokens: {file: t}, chain: ["token\\n"]}', ".chain.0: expected text that matches"),
        ("{tokens: {file: t}, aliases: [a]}", ".aliases: expected a mapping"),
        ("{tokens: {file: t}, aliases: {a: 't:b'}}", ".aliases.a: a principal is written"),
        ("{tokens: {file: t}, aliases: {'a:b': t}}", ".aliases.a:b: a principal is written"),
        ("{tokens: {file: t}, aliases: {'a:': 't:b'}}", ".aliases.a:: a principal is written"),
        ("{tokens: {file: t}, aliases: {'a:b': ':b'}}", ".aliases.a:b: a principal is written"),
        ("{tokens: {file: t}, aliases: {'a:b': null}}", ".aliases.a:b: expected text, got null"),
        ("{tokens: {file: t}, aliases: {'a:b': [t]}}", ".aliases.a:b: expected text"),
        (
            "{tokens: {file: t}, aliases: {'token:b': 't:c', 'token:b': 't:d'}}",
            ".aliases.token:b: is set twice",
        ),
        (
            "{tokens: {file: t}, aliases: {'a:b': 't:c'}}",
            ".aliases: the authenticator of a:b is not set",
        ),
        ("{tokens: {file: t}, aliases: {'token:b': '*:c'}}", ".aliases.token:b: expected the name"),
        (
            "{tokens: {file: t}, aliases: {'token:b': 't:c '}}",
            ".aliases.token:b: expected 1 to 255 print",
        ),
    ],
)
def test_mistakes_in_who_may_come_in(file: Path, written: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        edge(file, EDGE.replace(AUTHENTICATION, f"authentication: {written}\n"))
    (only,) = problems(error, file)
    assert only.startswith(f"authentication{problem}")


def test_who_may_come_in_has_to_be_said(file: Path) -> None:
    with pytest.raises(ConfigError, match="authentication: is required"):
        edge(file, EDGE.replace(AUTHENTICATION, ""))
    with pytest.raises(ConfigError, match="tokens_file: no such setting"):
        edge(file, EDGE + "tokens_file: tokens.json\n")


def test_who_may_come_in(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    written = "{tokens: {file: t}, chain: [token], aliases: {'token:a:b': 'corp:a'}}"
    text = EDGE.replace(AUTHENTICATION, f"authentication: {written}\n")
    settings = edge(file, text).authentication
    assert settings.tokens is not None
    assert settings.tokens.file == str(tmp_path / "t")
    assert settings.chain == settings.chainable == ["token"]
    assert settings.of_principals == ["token", "corp"]
    assert settings.aliases == {"token:a:b": "corp:a"}
    moved = edge(file, text, {"RELAY_AUTHENTICATION__TOKENS__FILE": "u"}).authentication
    assert moved.tokens is not None
    assert moved.tokens.file == "/u"


def test_certificates_alone_let_people_in(file: Path, tmp_path: Path) -> None:
    written = "{mtls: {robots.example: {ca: r.pem}}, aliases: {'mtls:r2': 'corp:r2'}}"
    text = EDGE.replace(AUTHENTICATION, f"authentication: {written}\n")
    settings = edge(file, text + "policy: {rules: [{authenticator: mtls, actions: [list]}]}\n")
    known = settings.authentication
    assert known.mtls["robots.example"].ca == str(tmp_path / "r.pem")
    assert (known.chainable, known.authenticators, known.of_principals) == (
        [],
        ["mtls"],
        ["mtls", "corp"],
    )
    with pytest.raises(ConfigError, match="chain: mtls is not set here"):
        edge(file, text.replace("aliases:", "chain: [mtls], aliases:"))
    with pytest.raises(ConfigError, match="authenticator mtls is not set"):
        edge(file, EDGE + "policy: {rules: [{authenticator: mtls, actions: [list]}]}\n")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "proxies: {proxy_protocol: [10.0.0.1/8]}",
            "proxies.proxy_protocol.0: 10.0.0.1/8 has host",
        ),
        ("proxies: {forwarded: [localhost]}", "proxies.forwarded.0: 'localhost' does not appear"),
        ("proxies: {forwarded: 10.0.0.0/8}", "proxies.forwarded: expected a list"),
        ("proxies: {header: X-Real-IP}", "proxies.header: 'X-Real-IP' is not one of"),
        ("connections: {total: 0}", "connections.total: expected a whole number, at least 1"),
        ("connections: {head_timeout: 0}", "connections.head_timeout: expected a number, over 0"),
        ("connections: {head_timeout: null}", "connections.head_timeout: expected a number"),
        ("quotas: {user_requests: 0}", "quotas.user_requests: expected a number, over 0"),
        ("quotas: {user_sockets: null}", "quotas.user_sockets: expected a whole number, got null"),
        ("logins: {failures: -1}", "logins.failures: expected a whole number, at least 1"),
        ("logins: {tries: 1}", "logins.tries: no such setting"),
    ],
)
def test_mistakes_in_what_the_door_lets_in(file: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        edge(file, f"{EDGE}{line}\n")
    assert [each.startswith(problem) for each in problems(caught, file)] == [True]


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("Robots.example", "{ca: r.pem}", "expected text that matches"),
        ("'*.example'", "{ca: r.pem}", "expected text that matches"),
        ("robots.example", "{}", "ca: is required"),
        ("robots.example", "{ca: r.pem, user_from: subject}", "user_from: 'subject' is not one of"),
        ("robots.example", "{ca: r.pem, users: {r2: ''}}", "users.r2: expected 1 to 255 printable"),
    ],
)
def test_mistakes_in_certificates(file: Path, name: str, settings: str, problem: str) -> None:
    written = f"authentication: {{mtls: {{{name}: {settings}}}}}\n"
    with pytest.raises(ConfigError) as caught:
        edge(file, EDGE.replace(AUTHENTICATION, written))
    assert [problem in each for each in problems(caught, file)] == [True]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("actions: [list]", ".authenticator: is required"),
        ("authenticator: token", ".actions: is required"),
        ("authenticator: null, actions: [list]", ".authenticator: expected text, got null"),
        ("authenticator: '*', actions: [list]", ".authenticator: expected text that matches"),
        ("authenticator: '', actions: [list]", ".authenticator: expected text that matches"),
        ("authenticator: 'a:b', actions: [list]", ".authenticator: expected text that matches"),
        ("authenticator: token, actions: null", ".actions: expected a list"),
        ("authenticator: token, actions: list", ".actions: expected a list"),
        ("authenticator: token, actions: [fly]", ".actions.0: 'fly' is not one of"),
        ("authenticator: token, actions: [list, LIST]", ".actions.1: 'LIST' is not one of"),
        ("authenticator: token, actions: ['*']", ".actions.0: '*' is not one of"),
        ("authenticator: token, actions: [null]", ".actions.0: expected text, got null"),
        ("authenticator: token, actions: [admin], kernelspecs: [ir]", ": admin is for a whole"),
        ("authenticator: token, actions: [use, admin], kernelspecs: []", ": admin is for a whole"),
        ("authenticator: token, actions: [use], kernelspecs: ir", ".kernelspecs: expected a list"),
        ("authenticator: token, actions: [use], kernelspecs: ['*']", ".kernelspecs.0: expected"),
        ("authenticator: token, actions: [use], kernelspecs: [a/b]", ".kernelspecs.0: expected"),
        ("authenticator: token, actions: [use], clusters: alpha", ".clusters: expected a list"),
        ("authenticator: token, actions: [use], clusters: ['*']", f".clusters.0: {NAME}"),
        ("authenticator: token, actions: [use], clusters: [Alpha]", f".clusters.0: {NAME}"),
        (
            "authenticator: token, actions: [use], user: ''",
            ".user: expected 1 to 255 print",
        ),
        ("authenticator: token, actions: [use], user: 'a '", ".user: expected 1 to 255 printable"),
        (
            'authenticator: token, actions: [use], user: "a\\u202e"',
            ".user: expected 1 to 255 printable",
        ),
        ("authenticator: token, actions: [use], group: ''", ".group: expected 1 to 255 printable"),
        ("authenticator: token, actions: [use], group: [a]", ".group: expected text, got"),
        ('authenticator: token, actions: [use], scope: " "', ".scope: expected 1 to 255 printable"),
        ("authenticator: token, actions: [use], subject: a", ".subject: no such setting"),
        ("authenticator: token, actions: [use], cluster: a", ".cluster: no such setting"),
    ],
)
def test_mistakes_in_a_rule(file: Path, rule: str, problem: str) -> None:
    for kind, text in ((EdgeConfig, EDGE), (UpConfig, "")):
        file.write_text(f"{text}policy: {{rules: [{{{rule}}}]}}\n")
        with pytest.raises(ConfigError) as error:
            load(kind, file, {})
        (only,) = problems(error, file)
        assert only.startswith(f"policy.rules.0{problem}")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("[]", ": expected a mapping of settings"),
        ("{rules: null}", ".rules: expected a list"),
        ("{rules: {}}", ".rules: expected a list"),
        ("{rules: [x]}", ".rules.0: expected a mapping of settings"),
        ("{rule: []}", ".rule: no such setting; did you mean rules?"),
    ],
)
def test_mistakes_in_a_policy(file: Path, written: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        edge(file, f"{EDGE}policy: {written}\n")
    (only,) = problems(error, file)
    assert only.startswith(f"policy{problem}")


@pytest.mark.parametrize("policy", ["", "policy:\n", "policy: {}\n", "policy: {rules: []}\n"])
def test_without_a_rule_an_edge_grants_nothing(file: Path, policy: str) -> None:
    assert edge(file, EDGE + policy).policy.policy().rules == ()


def test_a_rule_reaches_the_policy_as_it_is_written(file: Path) -> None:
    text = """\
policy:
  rules:
    - {authenticator: token, actions: []}
    - authenticator: corp
      user: Ada Lovelace
      group: staff
      scope: kernels:read
      clusters: [alpha, gpu-a]
      kernelspecs: []
      actions: [list, list, view]
"""
    # What is not said is everything, what is said to be nothing is nothing.
    known = EDGE.replace(
        AUTHENTICATION, "authentication: {tokens: {file: t}, aliases: {'token:a': 'corp:a'}}\n"
    )
    assert edge(file, known + text).policy.policy().rules == (
        Rule(authenticator="token", actions=frozenset()),
        Rule(
            authenticator="corp",
            user="Ada Lovelace",
            group="staff",
            scope="kernels:read",
            clusters=frozenset({"alpha", "gpu-a"}),
            kernelspecs=frozenset(),
            actions=frozenset({Action.LIST, Action.VIEW}),
        ),
    )


@pytest.mark.parametrize(("kind", "text"), [(EdgeConfig, EDGE), (UpConfig, "# nothing\n" * 4)])
def test_a_rule_for_whom_nobody_knows(
    file: Path, kind: type[EdgeConfig | UpConfig], text: str
) -> None:
    file.write_text(f"{text}policy:\n  rules:\n  - {{authenticator: tokne, actions: [list]}}\n")
    with pytest.raises(ConfigError) as error:
        load(kind, file, {})
    assert problems(error, file) == [
        "policy.rules.0: authenticator tokne is not set; known are token (FILE:7)"
    ]


def test_relay_up_knows_its_own_tokens_and_who_is_configured(file: Path) -> None:
    rules = "policy: {rules: [{authenticator: %s, actions: [list]}]}\n"
    besides = "authentication: {mtls: {robots.example: {ca: r.pem}}, aliases: {'mtls:r': 'hr:r'}}\n"
    for known in ("token", "mtls", "hr"):
        file.write_text(besides + rules % known)
        assert load(UpConfig, file, {}).policy
    file.write_text(besides + rules % "corp")
    with pytest.raises(ConfigError, match="corp is not set; known are token, mtls, hr"):
        load(UpConfig, file, {})


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


def test_more_names_of_kernelspecs_than_a_ticket_bears(file: Path) -> None:
    for count, fine in ((100, True), (101, False)):
        names = ", ".join(f"kernel-{number:04}" for number in range(count))
        text = (
            f"policy: {{rules: [{{authenticator: token, actions: [use], kernelspecs: [{names}]}}]}}"
        )
        if fine:
            assert edge(file, f"{EDGE}{text}\n").policy.rules
        else:
            with pytest.raises(ConfigError, match="over 1400 characters"):
                edge(file, f"{EDGE}{text}\n")


@pytest.mark.parametrize(("clusters", "problem"), [("[]", "at least one"), ("[a, a]", "twice")])
def test_the_clusters_of_relay_up(clusters: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(UpConfig, None, {"RELAY_CLUSTERS": clusters})


@pytest.mark.parametrize(
    ("written", "size"),
    [("5", 5), ("4 KiB", 4096), ("4KiB", 4096), ("3 MiB", 3 << 20), ("1 GiB", 1 << 30), ("7 B", 7)],
)
def test_sizes(file: Path, written: str, size: int) -> None:
    assert agent(file, f"{AGENT}body_bytes: {written}").body_bytes == size
    assert agent(file, AGENT, {"RELAY_BODY_BYTES": written}).body_bytes == size


@pytest.mark.parametrize("written", ["0", "-1", "1.5", "1 MB", "KiB", "1e3", "'1 ki'", "1  KiB"])
def test_what_is_no_size(file: Path, written: str) -> None:
    with pytest.raises(ConfigError, match="body_bytes"):
        agent(file, f"{AGENT}body_bytes: {written}")


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


JWT = """
issuer: "https://login.example.org"
audiences: [relay]
algorithms: [RS256]
keys: {discovery: true}
"""


def with_jwt(file: Path, changes: str, name: str = "corp", base: str = JWT) -> EdgeConfig:
    """An edge with an issuer whose settings are changed."""
    written = {**yaml.safe_load(base), **yaml.safe_load(changes)}
    settings = {"jwt": {name: {k: v for k, v in written.items() if v != "GONE"}}}
    return edge(file, EDGE.replace(AUTHENTICATION, f"authentication: {json.dumps(settings)}\n"))


def test_an_issuer_is_an_authenticator_by_its_name(file: Path) -> None:
    loaded = with_jwt(file, "{}").authentication
    assert loaded.chainable == ["corp"]
    assert loaded.jwt["corp"].required == ["nbf"]
    assert loaded.jwt["corp"].leeway == 30.0
    assert loaded.jwt["corp"].keys.keep == 7200.0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ("issuer: GONE", ".issuer: is required"),
        ("audiences: GONE", ".audiences: is required"),
        ("algorithms: GONE", ".algorithms: is required"),
        ("keys: GONE", ".keys: is required"),
        ("audiences: []", ": audiences, algorithms and types each need at least one"),
        ("algorithms: []", ": audiences, algorithms and types each need at least one"),
        ("types: []", ": audiences, algorithms and types each need at least one"),
        ("audiences: relay", ".audiences: expected a list"),
        ("audiences: ['']", ".audiences.0: expected 1 to 255 print"),
        ("algorithms: [none]", ".algorithms.0: 'none' is not one of"),
        ("algorithms: [rs256]", ".algorithms.0: 'rs256' is not one of"),
        ("algorithms: [ES256K]", ".algorithms.0: 'ES256K' is not one of"),
        ("types: [relay-ticket+jwt]", ".types.0: 'relay-ticket+jwt' is not one of"),
        ("required: [exp]", ".required.0: 'exp' is not one of"),
        ("leeway: 60.1", ".leeway: expected a number, at most 60"),
        ("leeway: -1", ".leeway: expected a number, at least 0"),
        ("algorithms: [RS256, HS256]", ".algorithms: HS cannot be combined with others"),
        ("algorithms: [HS256]", ".keys: for HS they must be in secret or in jwks_file"),
        (
            "{algorithms: [HS256], keys: {jwks_url: 'https://h/k'}}",
            ".keys: for HS they must be in secret or in jwks_file",
        ),
        (
            "{algorithms: [HS256], keys: {pem: [{file: f}]}}",
            ".keys: for HS they must be in secret or in jwks_file",
        ),
        ("keys: {secret: s}", ".keys.secret: it can be used with HS only"),
        ("keys: {}", ".keys: set exactly one of discovery"),
        ("keys: {discovery: true, jwks_file: f}", ".keys: set exactly one of discovery"),
        ("keys: {pem: [{file: f}], secret: s}", ".keys: set exactly one of discovery"),
        ("keys: {pem: [{file: a}, {file: b}]}", ".keys.pem: two keys need different kids"),
        ("keys: {jwks_url: 'http://h/k'}", ".keys: http://h/k: expected https"),
        ("keys: {jwks_url: 'http://127.0.0.1/k'}", ".keys: http://127.0.0.1/k: expected https"),
        (
            "keys: {jwks_url: 'http://10.0.0.1/k', allow_http: true}",
            ".keys: http://10.0.0.1/k: expected https",
        ),
        ("keys: {jwks_url: 'file:///etc/keys'}", ".keys.jwks_url: expected https://host/path"),
        ("keys: {jwks_url: keys.json}", ".keys.jwks_url: expected https://host/path"),
        ("keys: {jwks_url: 'https://u:p@h/k'}", ".keys.jwks_url: expected only"),
        ("keys: {discovery: true, keep: 3599}", ".keys.keep: expected a number, at least 3600"),
        ("keys: {discovery: true, cool_down: 0}", ".keys.cool_down: expected a number, over 0"),
        ("issuer: relay", ": expected https://host/path"),
        ("issuer: 'http://login.example.org'", "expected https"),
        ("claims: {user: ''}", ".claims.user: expected text that matches"),
        ("claims: {user: null}", ".claims.user: expected text, got null"),
        ("claims: {groups: 'a b'}", ".claims.groups: expected text that matches"),
    ],
)
def test_mistakes_in_an_issuer(file: Path, changes: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_jwt(file, changes)
    (only,) = problems(error, file)
    assert only.startswith("authentication.jwt.corp")
    assert problem in only


@pytest.mark.parametrize("name", ["token", "jupyterhub", "mtls"])
def test_an_issuer_has_no_other_authenticators_name(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"jwt: {name} is the name of another authenticator"):
        with_jwt(file, "{}", name)


@pytest.mark.parametrize("name", ["Corp", "a:b", "", "a.b"])
def test_an_issuers_name_is_an_authenticators(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected text that matches"):
        with_jwt(file, "{}", name)


def test_an_issuer_is_there_once(file: Path) -> None:
    one = yaml.safe_load(JWT)
    settings = {"jwt": {"corp": one, "other": {**one, "audiences": ["other"]}}}
    with pytest.raises(ConfigError, match="jwt: an issuer appears twice"):
        edge(file, EDGE.replace(AUTHENTICATION, f"authentication: {json.dumps(settings)}\n"))


def test_relay_up_keeps_its_tokens_where_it_keeps_all(file: Path) -> None:
    file.write_text("authentication: {tokens: {file: t.json}}\n")
    with pytest.raises(ConfigError, match="tokens cannot be set"):
        load(UpConfig, file, {})
