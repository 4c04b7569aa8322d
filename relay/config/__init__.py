"""What can be set, its defaults, and how it is read: YAML below ``RELAY_*`` variables.

The structs are in ``edge``, ``door``, ``agent`` and ``up``, one per subject; ``load`` is in
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
    AuthenticationSettings,
    ClusterSettings,
    EdgeConfig,
    EdgeLimits,
    PolicySettings,
    RuleSettings,
    TlsSettings,
    TokenSettings,
    UpstreamSettings,
    UpstreamTls,
    WebSocketSettings,
)
from relay.config.loading import ConfigError, Problem, load
from relay.config.up import UpConfig
from relay.config.values import ListenSettings, LogSettings, MetricsSettings

__all__ = [
    "AgentConfig",
    "AgentTls",
    "AuthenticationSettings",
    "ClusterSettings",
    "ConfigError",
    "ConnectionSettings",
    "CullSettings",
    "EdgeConfig",
    "EdgeLimits",
    "JournalSettings",
    "KernelEnvironment",
    "KernelSettings",
    "ListenSettings",
    "LogSettings",
    "LoginSettings",
    "MetricsSettings",
    "MtlsSettings",
    "PastSettings",
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
]
