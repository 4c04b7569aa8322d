from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from relay.auth.policy import Action, Rights
from relay.config import (
    AgentConfig,
    AuthenticationSettings,
    BaseEdgeConfig,
    ConnectionSettings,
    CullSettings,
    EdgeConfig,
    EdgeLimits,
    JournalSettings,
    JupyterHubSettings,
    JwtSettings,
    KernelEnvironment,
    KernelSettings,
    KeySettings,
    ListenSettings,
    LoginSettings,
    LogSettings,
    MetricsSettings,
    PastSettings,
    PolicySettings,
    ProxySettings,
    QuotaSettings,
    RuleSettings,
    SessionSettings,
    TokenSettings,
    UpConfig,
    UpstreamSettings,
    WebSocketSettings,
    load,
)
from relay.model import Identity, Principal
from relay.supervisor import plan
from relay.supervisor.state import StateFolder

CONFIG = UpConfig(
    https=ListenSettings(host="::1", port=0),
    clusters=["alpha", "beta-2"],
    edge_workers=3,
    kernels=KernelSettings(launch_timeout=11.0),
    journal=JournalSettings(tail_bytes=12345),
    past=PastSettings(limit=5),
    culling=CullSettings(cull_busy=True),
    shared_uid=True,
    root_dir="/srv",
    environment=KernelEnvironment(allowed=["FOO"]),
    sessions=SessionSettings(requests=77),
    limits=EdgeLimits(headers=7, body_bytes=8_000_000),
    base_url="/relay",
    origins=["https://lab.example"],
    connections=ConnectionSettings(total=8),
    quotas=QuotaSettings(user_sockets=9),
    logins=LoginSettings(failures=10),
    proxies=ProxySettings(header="forwarded"),
    websocket=WebSocketSettings(ping_interval=9.0),
    upstream=UpstreamSettings(hold=1.5),
    log=LogSettings(level="debug"),
)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    found = StateFolder(tmp_path / "state")
    found.create()
    return found


def test_the_edge_gets_every_setting_that_is_its_own(folder: StateFolder) -> None:
    made = plan.edge_config(
        folder, CONFIG, https=1, wss=2, metrics=5, agents={"alpha": 3, "beta-2": 4}
    )
    assert (made.https, made.wss) == (
        ListenSettings(host="::1", port=1),
        ListenSettings(host="127.0.0.1", port=2),
    )
    assert {name: each.agents for name, each in made.clusters.items()} == {
        "alpha": ["http://127.0.0.1:3"],
        "beta-2": ["http://127.0.0.1:4"],
    }
    for name in set(BaseEdgeConfig.__struct_fields__) - {"https", "wss", "audit"}:
        assert getattr(made, name) == getattr(CONFIG, name) != getattr(UpConfig(), name), name
    assert made.workers == 3
    assert made.metrics == MetricsSettings(host="127.0.0.1", port=5)


def test_the_edge_knows_who_has_a_token_and_nobody_else(folder: StateFolder) -> None:
    made = plan.edge_config(folder, CONFIG, https=1, wss=2, metrics=5, agents={"alpha": 3})
    assert made.authentication == AuthenticationSettings(
        tokens=TokenSettings(file=str(folder.tokens))
    )


def test_the_edge_knows_the_hubs_users_too_where_there_is_a_hub(folder: StateFolder) -> None:
    hub = JupyterHubSettings(service_name="relay")
    config = msgspec.structs.replace(
        CONFIG, authentication=AuthenticationSettings(jupyterhub=hub), base_url="/services/relay"
    )
    made = plan.edge_config(folder, config, https=1, wss=2, metrics=5, agents={"alpha": 3})
    assert (made.authentication.jupyterhub, made.base_url) == (hub, "/services/relay")
    assert load(EdgeConfig, plan.write(folder, "edge", made), {}) == made
    policy = made.policy.policy()
    for via in ("token", "jupyterhub"):
        identity = Identity(principal=Principal(via, "ada"), via=via)
        granted = policy.rights(identity, "alpha")
        assert granted == Rights(dict.fromkeys(set(Action) - {Action.ADMIN}))


def test_what_a_hub_said_is_for_the_edge_alone() -> None:
    environ = {"PATH": "/bin", "JUPYTER_PATH": "x"}
    environ |= dict.fromkeys(("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN"), "secret")
    edge = plan.command("edge", "edge", Path("/f.yaml"), 12, environ)
    assert edge.environment == environ
    agent = plan.command("agent", "agent-alpha", Path("/f.yaml"), 12, environ)
    assert agent.environment == {"PATH": "/bin", "JUPYTER_PATH": "x"}


@pytest.mark.parametrize(("chain", "asked"), [([], []), (["corp"], ["token", "corp"])])
def test_who_is_configured_comes_in_besides(
    folder: StateFolder, chain: list[str], asked: list[str]
) -> None:
    corp = JwtSettings(
        issuer="https://login.example.org",
        audiences=["relay"],
        algorithms=["RS256"],
        keys=KeySettings(discovery=True),
    )
    besides = AuthenticationSettings(
        jwt={"corp": corp}, chain=chain, aliases={"corp:al": "token:alice"}
    )
    config = msgspec.structs.replace(CONFIG, authentication=besides)
    made = plan.edge_config(folder, config, https=1, wss=2, metrics=5, agents={"alpha": 3})
    assert made.authentication == AuthenticationSettings(
        tokens=TokenSettings(file=str(folder.tokens)),
        jwt={"corp": corp},
        chain=asked,
        aliases={"corp:al": "token:alice"},
    )
    assert made.authentication.chainable == ["token", "corp"]
    corps = Identity(principal=Principal("token", "alice"), via="corp")
    granted = made.policy.policy().rights(corps, "alpha")
    assert granted == Rights(dict.fromkeys(set(Action) - {Action.ADMIN}))
    path = plan.write(folder, "edge", made)
    assert load(EdgeConfig, path, {}) == made


def test_without_a_policy_everybody_is_at_home_and_nobody_admin(folder: StateFolder) -> None:
    assert CONFIG.policy is None
    made = plan.edge_config(folder, CONFIG, https=1, wss=2, metrics=5, agents={"alpha": 3})
    ada = Identity(principal=Principal("token", "ada"), via="token")
    granted = made.policy.policy().rights(ada, "alpha")
    assert granted == Rights(dict.fromkeys(set(Action) - {Action.ADMIN}))
    for other in (
        msgspec.structs.replace(ada, via="corp"),
        msgspec.structs.replace(ada, scopes=frozenset({"read"})),
        msgspec.structs.replace(ada, clusters=frozenset({"beta-2"})),
    ):
        assert not made.policy.policy().rights(other, "alpha")


@pytest.mark.parametrize(
    "policy",
    [
        PolicySettings(),
        PolicySettings(rules=[RuleSettings(authenticator="token", user="a", actions=[])]),
        PolicySettings(rules=[RuleSettings(authenticator="token", actions=[Action.ADMIN])]),
    ],
)
def test_a_policy_of_its_own_is_the_edges_and_nothing_is_added(
    folder: StateFolder, policy: PolicySettings
) -> None:
    config = msgspec.structs.replace(CONFIG, policy=policy)
    made = plan.edge_config(folder, config, https=1, wss=2, metrics=5, agents={"alpha": 3})
    assert made.policy == policy
    assert load(EdgeConfig, plan.write(folder, "edge", made), {}).policy == policy


def test_an_agent_gets_every_setting_that_is_its_own(folder: StateFolder) -> None:
    made = plan.agent_config(folder, CONFIG, "alpha", port=3, metrics=4)
    assert made.listen == ListenSettings(host="127.0.0.1", port=3)
    assert made.metrics == MetricsSettings(host="127.0.0.1", port=4)
    assert (made.cluster, made.state_dir) == ("alpha", str(folder.path))
    for name in set(AgentConfig.__struct_fields__) & set(UpConfig.__struct_fields__):
        if name != "state_dir":
            assert getattr(made, name) == getattr(CONFIG, name) != getattr(UpConfig(), name), name
    assert made.body_bytes == CONFIG.limits.body_bytes


def test_what_is_written_is_read_back_the_same(folder: StateFolder) -> None:
    edge = plan.edge_config(folder, CONFIG, https=1, wss=2, metrics=5, agents={"alpha": 3})
    agent = plan.agent_config(folder, CONFIG, "alpha", port=3, metrics=4)
    assert load(EdgeConfig, plan.write(folder, "edge", edge), {}) == edge
    path = plan.write(folder, "agent-alpha", agent)
    assert load(AgentConfig, path, {}) == agent
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_command_hands_on_no_setting_of_ours() -> None:
    environ = {"PATH": "/bin", "RELAY_EDGE_WORKERS": "3", "RELAY_STATE_DIR": "/x"}
    made = plan.command("edge", "edge", Path("/f.yaml"), 12, environ, {"https": 5})
    assert made.environment == {"PATH": "/bin"}
    assert made.listeners == {"https": 5}
    assert made.argv == (
        sys.executable,
        "-P",
        "-m",
        "relay",
        "edge",
        "--config",
        "/f.yaml",
        "--die-with-parent",
        "12",
    )
