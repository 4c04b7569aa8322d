"""The settings of ``relay up``, which makes those of an edge and of agents from them."""

from __future__ import annotations

from msgspec import Struct, field

from relay.config.agent import (
    CullSettings,
    JournalSettings,
    KernelEnvironment,
    KernelSettings,
    PastSettings,
    SessionSettings,
)
from relay.config.authentication import AuthenticationSettings, PathTokenSettings
from relay.config.door import ConnectionSettings, LoginSettings, ProxySettings, QuotaSettings
from relay.config.edge import (
    AuditSettings,
    EdgeLimits,
    UpstreamSettings,
    WebSocketSettings,
)
from relay.config.jupyterhub import BaseUrl
from relay.config.policy import PolicySettings
from relay.config.values import (
    ClusterName,
    Count,
    FilePath,
    ListenSettings,
    LogSettings,
    Origin,
    check_two_ports,
)


class UpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``relay up``: edge and agents on one machine."""

    state_dir: FilePath | None = None
    """Folder of everything that is kept; by default ``kernel-relay`` in the user's state folder."""
    https: ListenSettings = field(default_factory=lambda: ListenSettings(port=8443))
    """REST, and kernel channels for clients that know one URL."""
    wss: ListenSettings = field(default_factory=lambda: ListenSettings(port=8444))
    """Kernel channels only."""
    base_url: BaseUrl = ""
    """The path in front of all others, as ``/services/relay``, if a proxy sends us requests with
    one; where ``authentication.jupyterhub`` is set, by default ``$JUPYTERHUB_SERVICE_PREFIX``."""
    clusters: list[ClusterName] = field(default_factory=lambda: ["alpha", "beta"])
    """The local clusters, each an agent of its own."""
    edge_workers: Count = 2
    """Processes that share the two ports."""
    path_tokens: PathTokenSettings | None = None
    """Tokens in URLs' paths; without this section there are none."""
    authentication: AuthenticationSettings | None = None
    """Who may come in besides those with a token of the state folder: without ``tokens``."""
    policy: PolicySettings | None = None
    """What whoever comes in may do; by default everything with kernels of their own."""
    kernels: KernelSettings = field(default_factory=KernelSettings)
    """How kernels are run."""
    culling: CullSettings = field(default_factory=CullSettings)
    """When a kernel that nobody uses is shut down."""
    shared_uid: bool = False
    """Whether several users may start kernels, all under the user id of ``relay up``: on one uid
    any kernel can read every other's files. Without it only the first who starts one may."""
    root_dir: FilePath | None = None
    """Folder below which the ``path`` of a request says where its kernel starts; by default the
    folder that ``relay up`` was started in."""
    journal: JournalSettings = field(default_factory=JournalSettings)
    """What is kept of a kernel's output."""
    past: PastSettings = field(default_factory=PastSettings)
    """How much of a kernel's past one request may read."""
    sessions: SessionSettings = field(default_factory=SessionSettings)
    """What is remembered of a kernel's clients."""
    environment: KernelEnvironment = field(default_factory=KernelEnvironment)
    """Which environment variables reach a kernel."""
    origins: list[Origin] = []
    """Origins, besides the relay's own, whose pages may use it."""
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
    """The log of every process."""
    audit: AuditSettings = field(default_factory=AuditSettings)
    """The audit log; always there."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where names or ports coincide, or the tokens are elsewhere."""
        check_two_ports(self.https, self.wss)
        if self.authentication is not None and self.authentication.tokens is not None:
            raise ValueError("authentication: tokens are those of the state folder")
        if not self.clusters:
            raise ValueError("clusters: at least one is needed")
        if len(set(self.clusters)) < len(self.clusters):
            raise ValueError("clusters: a name appears twice")
