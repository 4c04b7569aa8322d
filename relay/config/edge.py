"""The settings of ``relay edge``: one frozen struct per subject, the unit in the docstring."""

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
    check_two_ports,
)


class TlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the edge is towards its clients."""

    certificate: FilePath
    """PEM file: the certificate, then what else its chain needs."""
    key: SecretFile
    """PEM file: the certificate's private key, without a passphrase."""


class UpstreamTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the edge trusts a cluster's agents, and proves itself to them."""

    ca: FilePath
    """PEM file: the authorities, and no others, that an agent's certificate may come from."""
    certificate: FilePath | None = None
    """PEM file: the edge's certificate for agents that ask for one; none is shown by default."""
    key: SecretFile | None = None
    """PEM file: the private key of ``certificate``."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for half a pair."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")


class ClusterSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cluster, as the edge sees it."""

    agents: list[AgentUrl]
    """Its agents, each as ``http://host:port`` or ``https://host:port``; any of them will do."""
    title: Annotated[str, Meta(max_length=100)] = ""
    """What people read; empty: the cluster's name."""
    tls: UpstreamTls | None = None
    """For ``https`` agents; without it the system's authorities are trusted."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where nobody could be reached, or not as it seems."""
        if not self.agents:
            raise ValueError("agents: a cluster needs at least one")
        if self.tls is not None and any(url.startswith("http:") for url in self.agents):
            raise ValueError("tls is set, but an agent's URL is http")


class EdgeLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client may send; whatever is beyond is refused and costs nothing more."""

    request_line_bytes: Size = 8 * KIB
    """Bytes of a request's target, never more than 8 KiB; beyond: 400."""
    header_bytes: Size = 8 * KIB
    """Bytes of one header's value; beyond: 400."""
    headers: Count = 100
    """Headers of one request; beyond: 400."""
    head_bytes: Size = 32 * KIB
    """Bytes of a request's line and headers together; beyond: 400."""
    body_bytes: Size = MIB
    """Bytes of a request's body; beyond: 413."""
    message_bytes: Size = 64 * MIB
    """Bytes of one WebSocket message from a client; beyond: close code 1009."""
    message_frames: Count = 4096
    """WebSocket frames that one message may come in; beyond: close code 1009."""
    control_frames: Count = 200
    """Pings and other control frames that a client may send within a second; beyond: close code
    1008."""
    unacknowledged_bytes: Size = 8 * MIB
    """Bytes of a client's messages kept until the kernel's holder has them, to be sent again if
    the agent dies; at this many the edge stops reading from that client until some are through."""


class WebSocketSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a dead peer is told from a quiet one."""

    ping_interval: Seconds = 25.0
    """Seconds between WebSocket pings to a client; below most proxies' idle limits."""
    pong_timeout: Seconds = 90.0
    """Seconds that a ping may stay unanswered before the connection counts as dead."""
    proof_interval: Seconds = 0.2
    """Seconds between pings that ask a client how far it has come, while it is sent output."""


class UpstreamSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the edge waits for agents."""

    connect_timeout: Seconds = 2.0
    """Seconds for a connection to an agent, TLS included."""
    request_timeout: Seconds = 30.0
    """Seconds for an agent's whole answer to a request that starts no kernel."""
    start_timeout: Seconds = 150.0
    """Seconds for an agent's answer to a request that starts or restarts a kernel."""
    hold: SecondsOrZero = 2.0
    """Seconds, from an agent's first failure, that a REST request waits for one to come back."""
    websocket_hold: SecondsOrZero = 10.0
    """Seconds, from an agent's first failure, that a WebSocket upgrade waits for one."""
    reattach: SecondsOrZero = 60.0
    """Seconds that a client's open WebSocket outlives its agent before it is closed (1012), and
    that a kernel's start waits when its agent breaks off in the middle."""
    link_ping_interval: Seconds = 15.0
    """Seconds between signs of life that an agent gives on each link; without one it is gone."""


class AuditSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The audit log: one line for every decision that matters, each bound to the one before."""

    file: SecretFile | None = None
    """The file, which ``relay audit verify`` checks; by default there is none. Of ``relay up`` it
    is ``audit.log`` in the state folder by default."""
    required: bool = False
    """Whether what would leave a line is refused (503) while none can be written."""
    waiting: Count = 1000
    """Lines that wait in memory while the file cannot be written; beyond that they are lost, and
    the log says how many."""


class BaseEdgeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set of an edge, whether ``relay edge`` or ``relay up`` starts it."""

    https: ListenSettings = field(default_factory=lambda: ListenSettings(port=8443))
    """REST, and kernel channels for clients that know one URL."""
    wss: ListenSettings = field(default_factory=lambda: ListenSettings(port=8444))
    """Kernel channels only."""
    base_url: BaseUrl = ""
    """The path in front of all others, as ``/services/relay``, if a proxy sends us requests with
    one; where ``authentication.jupyterhub`` is set, by default ``$JUPYTERHUB_SERVICE_PREFIX``."""
    origins: list[Origin] = []
    """Origins, besides the relay's own, whose pages may open WebSockets, change things and read
    answers: ``https://lab.example``. Compared exactly; a page still needs a token."""
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    """What one client may send."""
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    """How many connections there may be, and how long they may take."""
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    """What one user, and one cluster, may have."""
    logins: LoginSettings = field(default_factory=LoginSettings)
    """How often an address may be wrong."""
    proxies: ProxySettings = field(default_factory=ProxySettings)
    """Who speaks for others."""
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    """Pings."""
    upstream: UpstreamSettings = field(default_factory=UpstreamSettings)
    """The edge's patience with agents."""
    log: LogSettings = field(default_factory=LogSettings)
    """The log of the program and of every process that it starts."""
    audit: AuditSettings = field(default_factory=AuditSettings)
    """The audit log; ``relay up`` always keeps one."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where two ports are one."""
        check_two_ports(self.https, self.wss)


class EdgeConfig(BaseEdgeConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``relay edge``."""

    tls: TlsSettings
    """The certificate for both ports."""
    workers: Count = 2
    """Processes that share the two ports."""
    clusters: dict[ClusterName, ClusterSettings]
    """The clusters by name; the name is the first segment of their URLs."""
    authentication: AuthenticationSettings
    """Who may come in."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    """What they may do."""
    ticket_key: SecretFile
    """PEM file: the Ed25519 private key that signs the tickets which agents ask for."""
    ticket_lifetime: Annotated[float, Meta(ge=1, le=120)] = 30.0
    """Seconds a ticket is good for; agents refuse more than 120."""
    drain: SecondsOrZero = 5.0
    """Seconds between SIGTERM and the end of whatever is not finished by then."""
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    """Where its metrics are read."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where two ports are one, or a rule or a demand makes no sense."""
        super().__post_init__()
        self.policy.check_authenticators(self.authentication.principals)
        if self.audit.required and self.audit.file is None:
            raise ValueError("audit.required: there is no audit.file")
