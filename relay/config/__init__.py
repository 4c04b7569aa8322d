"""What can be set, its defaults, and how it is read: YAML below ``RELAY_*`` variables.

The structs are in ``edge``, ``jupyterhub``, ``agent`` and ``up``, one per subject; ``load`` is in
``loading``. Import all of them from here.
"""

from __future__ import annotations

from relay.config.agent import (
    AgentConfig,
    AgentTls,
    CullSettings,
    JournalSettings,
    KernelEnvironment,
    KernelSettings,
    LaunchAs,
    PastSettings,
    SessionSettings,
)
from relay.config.edge import (
    AuthenticationSettings,
    ClaimSettings,
    ClusterSettings,
    EdgeConfig,
    EdgeLimits,
    JwtSettings,
    KeySettings,
    PathTokenSettings,
    PemSettings,
    PolicySettings,
    QuotaSettings,
    RuleSettings,
    TlsSettings,
    TokenSettings,
    UpstreamSettings,
    UpstreamTls,
    WebSocketSettings,
)
from relay.config.jupyterhub import JupyterHubSettings
from relay.config.loading import ConfigError, Problem, load
from relay.config.up import UpConfig
from relay.config.values import ListenSettings, LogSettings, MetricsSettings

__all__ = [
    "AgentConfig",
    "AgentTls",
    "AuthenticationSettings",
    "ClaimSettings",
    "ClusterSettings",
    "ConfigError",
    "CullSettings",
    "EdgeConfig",
    "EdgeLimits",
    "JournalSettings",
    "JupyterHubSettings",
    "JwtSettings",
    "KernelEnvironment",
    "KernelSettings",
    "KeySettings",
    "LaunchAs",
    "ListenSettings",
    "LogSettings",
    "MetricsSettings",
    "PastSettings",
    "PathTokenSettings",
    "PemSettings",
    "PolicySettings",
    "Problem",
    "QuotaSettings",
    "RuleSettings",
    "SessionSettings",
    "TlsSettings",
    "TokenSettings",
    "UpConfig",
    "UpstreamSettings",
    "UpstreamTls",
    "WebSocketSettings",
    "load",
]
