"""What can be set, its defaults, and how it is read: YAML below ``RELAY_*`` variables.

The structs are in ``edge``, ``door``, ``jupyterhub``, ``agent`` and ``up``, one per subject;
``load`` is in ``loading``. Import all of them from here.
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
from relay.config.door import (
    ConnectionSettings,
    LoginSettings,
    MtlsSettings,
    ProxySettings,
    QuotaSettings,
)
from relay.config.edge import (
    AuditSettings,
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
    RuleSettings,
    TlsSettings,
    TokenSettings,
    UpstreamSettings,
    UpstreamTls,
    WebSocketSettings,
)
from relay.config.jupyterhub import JupyterHubSettings
from relay.config.loading import ConfigError, Loaded, Problem, load, load_located
from relay.config.up import UpConfig
from relay.config.values import ListenSettings, LogSettings, MetricsSettings

__all__ = [
    "AgentConfig",
    "AgentTls",
    "AuditSettings",
    "AuthenticationSettings",
    "ClaimSettings",
    "ClusterSettings",
    "ConfigError",
    "ConnectionSettings",
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
    "Loaded",
    "LogSettings",
    "LoginSettings",
    "MetricsSettings",
    "MtlsSettings",
    "PastSettings",
    "PathTokenSettings",
    "PemSettings",
    "PolicySettings",
    "Problem",
    "ProxySettings",
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
    "load_located",
]
