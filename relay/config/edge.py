"""Settings of ``relay edge``: one frozen struct per subject, the unit in the docstring."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from relay.config.admission import ConnectionSettings, LoginSettings, ProxySettings, QuotaSettings
from relay.config.authentication import AuthenticationSettings
from relay.config.jupyterhub import BaseUrl
from relay.config.policy import PolicySettings
from relay.config.values import (
    KIB,
    MIB,
    AgentUrl,
    ClusterName,
    Count,
    FilePath,
    ListenSettings,
    LogSettings,
    MetricsSettings,
    Origin,
    Seconds,
    SecondsOrZero,
    SecretFile,
    Size,
    check_distinct_ports,
)


class TlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The edge's certificate for its clients."""

    certificate: FilePath
    """PEM file: the certificate, then the rest of its chain."""
    key: SecretFile
    """PEM file: the certificate's private key, without a passphrase."""


class UpstreamTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS from the edge to a cluster's agents."""

    ca: FilePath
    """PEM file: the only certificate authorities that are accepted for agents."""
    certificate: FilePath | None = None
    """PEM file: the edge's certificate for agents that require one; by default there is none."""
    key: SecretFile | None = None
    """PEM file: the private key of ``certificate``."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless certificate and key are both set or both missing."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be set together")


class ClusterSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cluster's agents."""

    agents: list[AgentUrl]
    """URLs of its agents, ``http://host:port`` or ``https://host:port``; all serve the cluster."""
    tls: UpstreamTls | None = None
    """For ``https`` agents; without it the system's certificate authorities are accepted."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` without an agent, or for TLS settings with a plain HTTP URL."""
        if not self.agents:
            raise ValueError("agents: at least one is needed")
        if self.tls is not None and any(url.startswith("http:") for url in self.agents):
            raise ValueError("tls is set, but the URL of an agent is http")


class EdgeLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on what one client may send; what is beyond them is refused."""

    request_line_bytes: Size = 8 * KIB
    """Bytes of a request's target, at most 8 KiB; beyond: 400."""
    header_bytes: Size = 8 * KIB
    """Bytes of one header's value; beyond: 400."""
    headers: Count = 100
    """Headers of one request; beyond: 400."""
    head_bytes: Size = 32 * KIB
    """Bytes of a request line and all headers together; beyond: 400."""
    body_bytes: Size = MIB
    """Bytes of a request's body; beyond: 413."""
    message_bytes: Size = 64 * MIB
    """Bytes of one WebSocket message from a client; beyond: close code 1009."""
    message_frames: Count = 4096
    """Frames of one WebSocket message; beyond: close code 1009."""
    control_frames: Count = 200
    """Pings and other control frames from a client within a second; beyond: close code 1008."""
    unacknowledged_bytes: Size = 8 * MIB
    """Bytes of a client's messages that are kept for repetition until the kernel's holder has
    acknowledged them; at this many the edge stops reading from the client until some are."""


class WebSocketSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Detection of dead clients."""

    ping_interval: Seconds = 25.0
    """Seconds between WebSocket pings to a client; keep it below proxies' idle limits."""
    pong_timeout: Seconds = 90.0
    """Seconds that a ping may stay unanswered before the connection counts as dead."""
    proof_interval: Seconds = 0.2
    """Seconds between pings that confirm what a client has received, while it is sent output."""


class UpstreamSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the edge waits for agents."""

    connect_timeout: Seconds = 2.0
    """Seconds for a connection to an agent, TLS included."""
    request_timeout: Seconds = 30.0
    """Seconds for an agent's whole response to a request that starts no kernel."""
    start_timeout: Seconds = 150.0
    """Seconds for an agent's response to a request that starts or restarts a kernel."""
    hold: SecondsOrZero = 2.0
    """Seconds, from an agent's first failure, that a REST request waits for one to come back."""
    websocket_hold: SecondsOrZero = 10.0
    """Seconds, from an agent's first failure, that a WebSocket upgrade waits for one."""
    reattach: SecondsOrZero = 60.0
    """Seconds that a client's open WebSocket is kept without an agent before it is closed (1012),
    and that a kernel's start waits when its agent fails during the start."""
    link_ping_interval: Seconds = 15.0
    """Seconds between signs of life from an agent on each link; without one the link is lost."""


class AuditSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The audit log: one line for every decision that matters, linked to the line before."""

    file: SecretFile | None = None
    """The file, which ``relay audit verify`` checks; by default there is none, and with
    ``relay up`` it is ``audit.log`` in the state directory."""
    required: bool = False
    """Whether requests that need a line are refused (503) while none can be written."""
    waiting: Count = 1000
    """Lines kept in memory while the file cannot be written; beyond, lines are lost, and the log
    has their number."""


class BaseEdgeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of every edge, whether ``relay edge`` or ``relay up`` starts it."""

    https: ListenSettings = field(default_factory=lambda: ListenSettings(port=8443))
    """REST, and kernel channels for clients that can be given one URL only."""
    wss: ListenSettings = field(default_factory=lambda: ListenSettings(port=8444))
    """Kernel channels only."""
    base_url: BaseUrl = ""
    """The path in front of all others, such as ``/services/relay``, if a proxy sends requests with
    one; with ``authentication.jupyterhub``, by default ``$JUPYTERHUB_SERVICE_PREFIX``."""
    origins: list[Origin] = []
    """Origins, besides the relay's own, whose pages may open WebSockets, change things and read
    responses: ``https://lab.example``. Compared exactly; a page still needs a token."""
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    """Limits on what one client may send."""
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    """Limits on connections and their times."""
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    """Limits for one user and one cluster."""
    logins: LoginSettings = field(default_factory=LoginSettings)
    """Limit on wrong credentials."""
    proxies: ProxySettings = field(default_factory=ProxySettings)
    """Proxies that are trusted to name the client's address."""
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    """Detection of dead clients."""
    upstream: UpstreamSettings = field(default_factory=UpstreamSettings)
    """How long the edge waits for agents."""
    log: LogSettings = field(default_factory=LogSettings)
    """Logging of the program and of every process that it starts."""
    audit: AuditSettings = field(default_factory=AuditSettings)
    """The audit log; ``relay up`` always keeps one."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where both listeners have one port."""
        check_distinct_ports(self.https, self.wss)


class EdgeConfig(BaseEdgeConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of ``relay edge``."""

    tls: TlsSettings
    """The certificate for both ports."""
    workers: Count = 2
    """Worker processes, which share the two ports."""
    clusters: dict[ClusterName, ClusterSettings]
    """The clusters by name; the name is the first segment of their URLs."""
    authentication: AuthenticationSettings
    """How clients are authenticated."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    """What authenticated users may do."""
    ticket_key: SecretFile
    """PEM file: the Ed25519 private key that signs tickets for agents."""
    ticket_lifetime: Annotated[float, Meta(ge=1, le=120)] = 30.0
    """Seconds that a ticket is valid; agents refuse more than 120."""
    drain: SecondsOrZero = 5.0
    """Seconds from SIGTERM until unfinished requests are ended."""
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    """The address of the metrics."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for settings that contradict each other."""
        super().__post_init__()
        self.policy.check_authenticators(self.authentication.of_principals)
        if self.audit.required and self.audit.file is None:
            raise ValueError("audit.required: it needs audit.file")
