"""What can be set, its defaults, and how it is read: YAML below ``RELAY_*`` variables.

The structs are in ``settings``, one per subject; ``load`` is in ``loading``. Import both from here.
"""

from __future__ import annotations

from relay.config.loading import ConfigError, Problem, load
from relay.config.settings import (
    AgentConfig,
    AgentTls,
    ClusterSettings,
    CullSettings,
    EdgeConfig,
    EdgeLimits,
    JournalSettings,
    KernelEnvironment,
    KernelSettings,
    ListenSettings,
    LogSettings,
    MetricsSettings,
    PastSettings,
    SessionSettings,
    TlsSettings,
    UpConfig,
    UpstreamSettings,
    UpstreamTls,
    WebSocketSettings,
)

__all__ = [
    "AgentConfig",
    "AgentTls",
    "ClusterSettings",
    "ConfigError",
    "CullSettings",
    "EdgeConfig",
    "EdgeLimits",
    "JournalSettings",
    "KernelEnvironment",
    "KernelSettings",
    "ListenSettings",
    "LogSettings",
    "MetricsSettings",
    "PastSettings",
    "Problem",
    "SessionSettings",
    "TlsSettings",
    "UpConfig",
    "UpstreamSettings",
    "UpstreamTls",
    "WebSocketSettings",
    "load",
]
