"""The configurations and commands of the edge and the agents that `relay up` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from relay import files
from relay.auth.policy import Action
from relay.auth.tokens import AUTHENTICATOR
from relay.config import (
    AgentConfig,
    AuthenticationSettings,
    BaseEdgeConfig,
    ClusterSettings,
    EdgeConfig,
    ListenSettings,
    MetricsSettings,
    PolicySettings,
    RuleSettings,
    TlsSettings,
    TokenSettings,
    UpConfig,
)
from relay.config.values import RELAY_PREFIXES
from relay.processes import Command
from relay.supervisor.state import StateFolder

LOCAL_HOST = "127.0.0.1"
_AGENT_FIELDS: Final = frozenset(UpConfig.__struct_fields__).intersection(
    AgentConfig.__struct_fields__
)
"""Settings that `relay up` passes on to its agents; by name, since msgspec allows a struct only one
base class, which is the edge's."""


def edge_config(
    folder: StateFolder,
    config: UpConfig,
    *,
    https: int,
    wss: int,
    metrics: int,
    agents: Mapping[str, int],
) -> EdgeConfig:
    """Make the edge's configuration: with its actual ports, and the agents' ports by cluster."""
    certificate, key = folder.server
    authentication = _authentication(folder, config)
    config = replace(
        config,
        https=replace(config.https, port=https),
        wss=replace(config.wss, port=wss),
        audit=replace(config.audit, file=config.audit.file or str(folder.audit_log)),
    )
    return EdgeConfig(
        **_settings(config, BaseEdgeConfig.__struct_fields__),
        tls=TlsSettings(certificate=str(certificate), key=str(key)),
        workers=config.edge_workers,
        clusters={
            name: ClusterSettings(agents=[f"http://{LOCAL_HOST}:{port}"])
            for name, port in agents.items()
        },
        authentication=authentication,
        policy=config.policy or _default_policy(authentication),
        ticket_key=str(folder.ticket_keys[1]),
        metrics=MetricsSettings(host=LOCAL_HOST, port=metrics),
    )


def _settings(config: UpConfig, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _default_policy(authentication: AuthenticationSettings) -> PolicySettings:
    """Allow every authenticated user everything with kernels of their own."""
    actions: list[Action] = [action for action in Action if action is not Action.ADMIN]
    names = authentication.authenticators
    return PolicySettings(
        rules=[RuleSettings(authenticator=name, actions=actions) for name in names]
    )


def _authentication(folder: StateFolder, config: UpConfig) -> AuthenticationSettings:
    """Put the state directory's tokens before the configured authenticators."""
    tokens = TokenSettings(file=str(folder.tokens))
    others = config.authentication
    if others is None:
        return AuthenticationSettings(tokens=tokens, path_tokens=config.path_tokens)
    chain = [AUTHENTICATOR, *others.chain] if others.chain else []
    return replace(others, tokens=tokens, path_tokens=config.path_tokens, chain=chain)


def agent_config(
    folder: StateFolder, config: UpConfig, cluster: str, *, port: int, metrics: int
) -> AgentConfig:
    """Make the configuration of one cluster's agent."""
    config = replace(config, state_dir=str(folder.path))
    return AgentConfig(
        **_settings(config, _AGENT_FIELDS),
        cluster=cluster,
        listen=ListenSettings(host=LOCAL_HOST, port=port),
        ticket_keys=[str(folder.ticket_keys[0])],
        # The same limit for edge and agent.
        body_bytes=config.limits.body_bytes,
        metrics=MetricsSettings(host=LOCAL_HOST, port=metrics),
    )


def write(folder: StateFolder, name: str, settings: EdgeConfig | AgentConfig) -> Path:
    """Write a configuration to the file that its program reads."""
    path = folder.configurations / f"{name}.yaml"
    head = b"# Written by `relay up` at each start: changes to this file are lost.\n"
    files.write_atomic(path, head + msgspec.yaml.encode(settings))
    return path


def command(
    program: str,
    name: str,
    config: Path,
    parent: int,
    environ: Mapping[str, str],
    listeners: Mapping[str, int] | None = None,
) -> Command:
    """Make the command of ``relay edge`` or ``relay agent``, which ends with its parent.

    The settings are in its file, so ``RELAY_*`` variables are not passed on; those of JupyterHub,
    which hold its token, go to the edge only. ``-P`` keeps the working directory, which may contain
    anything, off the import path.
    """
    dropped = RELAY_PREFIXES if program == "agent" else ("RELAY_",)
    return Command(
        name=name,
        argv=(
            *(sys.executable, "-P", "-m", "relay", program),
            *("--config", str(config), "--die-with-parent", str(parent)),
        ),
        environment={k: v for k, v in environ.items() if not k.startswith(dropped)},
        listeners=listeners or {},
    )
