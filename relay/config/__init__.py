"""What can be set, its defaults, and how it is read: YAML below ``RELAY_*`` variables.

The structs are in ``edge``, ``door``, ``authentication``, ``jupyterhub``, ``policy``, ``agent``,
``up`` and ``values``, one per subject; ``load`` is in ``loading``. Import all of them from here.
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
