"""Settings: their names, defaults and types, read from YAML and ``RELAY_*`` variables.

``edge``, ``agent`` and ``up`` are the settings of one program each; ``admission``,
``authentication``, ``jupyterhub``, ``policy`` and ``values`` are their sections and types.
``holder`` is what an agent tells a holder. ``loading`` reads them. Import everything but
``holder`` from here.
"""

from __future__ import annotations

from relay.config.admission import ConnectionSettings, LoginSettings, ProxySettings, QuotaSettings
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
from relay.config.authentication import (
    AuthenticationSettings,
    ClaimSettings,
    JwtSettings,
    KeySettings,
    MtlsSettings,
    PathTokenSettings,
    PemSettings,
    TokenSettings,
)
from relay.config.edge import (
    AuditSettings,
    BaseEdgeConfig,
    ClusterSettings,
    EdgeConfig,
    EdgeLimits,
    TlsSettings,
    UpstreamSettings,
    UpstreamTls,
    WebSocketSettings,
)
from relay.config.jupyterhub import JupyterHubSettings
from relay.config.loading import ConfigError, Loaded, Problem, load, load_located
from relay.config.policy import PolicySettings, RuleSettings
from relay.config.up import UpConfig
from relay.config.values import ListenSettings, LogSettings, MetricsSettings

__all__ = [
    "AgentConfig",
    "AgentTls",
    "AuditSettings",
    "AuthenticationSettings",
    "BaseEdgeConfig",
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
