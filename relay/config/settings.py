"""Every setting of every program: one frozen struct per subject, the unit in the docstring.

A struct made in code is not checked field by field; ``load`` checks everything it reads. What one
value must be is in its type here; what several must be together is in ``__post_init__``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from relay.routing.clusters import check_name

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_UNITS: Final = {"": 1, "B": 1, "KiB": _KIB, "MiB": _MIB, "GiB": 1024 * _MIB}
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([A-Za-z]*)")


def read_size(value: object) -> object:
    """Bytes for a text such as ``64 MiB``; anything but text passes unchanged.

    Raises ``ValueError`` for a text that is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None or match[2] not in _UNITS:
        raise ValueError("expected bytes: a number, or one with B, KiB, MiB or GiB behind it")
    return int(match[1]) * _UNITS[match[2]]


def check_agent_url(url: str) -> None:
    """Raise ``ValueError`` unless ``url`` is exactly ``http(s)://host:port``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port is None:
        raise ValueError("expected http://host:port or https://host:port")
    if url != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ValueError("expected nothing but scheme, host and port")


# `load` knows three extras: `read` turns what is written into the value, `check` raises ValueError
# for what the type alone cannot exclude, `path` takes a relative path from the right folder.
_A_DAY: Final = 86_400
Seconds = Annotated[float, Meta(gt=0, le=_A_DAY)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=_A_DAY)]
Size = Annotated[int, Meta(ge=1, extra={"read": read_size})]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, Meta(ge=0, le=1_000_000)]
_LAST_PORT: Final = 65_535
Port = Annotated[int, Meta(ge=0, le=_LAST_PORT)]
Host = Annotated[str, Meta(min_length=1, max_length=255)]
FilePath = Annotated[str, Meta(min_length=1, extra={"path": True})]
ClusterName = Annotated[str, Meta(extra={"check": check_name})]
AgentUrl = Annotated[str, Meta(extra={"check": check_agent_url})]
EnvironmentName = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\Z", max_length=255)]
EnvironmentPattern = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\*?\Z", max_length=255)]


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """One JSON object per line, or lines for people; ``auto``: for people on a terminal only."""


class ListenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address to listen on."""

    host: Host = "127.0.0.1"
    """A name or an IP address; ``0.0.0.0`` or ``::`` is every interface."""
    port: Port
    """A TCP port; 0 takes a free one."""


class MetricsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Prometheus finds a program's metrics, at ``/metrics``: plain HTTP, to whoever asks."""

    host: Host = "127.0.0.1"
    """A name or an IP address; who can reach it can read all metrics."""
    port: Port | None = None
    """A TCP port; by default there is none, and nothing is served."""


class TlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the edge is towards its clients."""

    certificate: FilePath
    """PEM file: the certificate, then what else its chain needs."""
    key: FilePath
    """PEM file: the certificate's private key, without a passphrase."""


class UpstreamTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the edge trusts a cluster's agents, and proves itself to them."""

    ca: FilePath
    """PEM file: the authorities, and no others, that an agent's certificate may come from."""
    certificate: FilePath | None = None
    """PEM file: the edge's certificate for agents that ask for one; none is shown by default."""
    key: FilePath | None = None
    """PEM file: the private key of ``certificate``."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for half a pair."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")


class AgentTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who an agent is, and whom it lets in."""

    certificate: FilePath
    """PEM file: the agent's certificate and its chain."""
    key: FilePath
    """PEM file: the certificate's private key, without a passphrase."""
    client_ca: FilePath
    """PEM file: the authorities that an edge's certificate must come from."""


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

    request_line_bytes: Size = 8 * _KIB
    """Bytes of a request's target, never more than 8 KiB; beyond: 400."""
    header_bytes: Size = 8 * _KIB
    """Bytes of one header's value; beyond: 400."""
    headers: Count = 100
    """Headers of one request; beyond: 400."""
    body_bytes: Size = _MIB
    """Bytes of a request's body; beyond: 413."""
    message_bytes: Size = 64 * _MIB
    """Bytes of one WebSocket message from a client; beyond: close code 1009."""
    unacknowledged_bytes: Size = 8 * _MIB
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


class EdgeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``relay edge``."""

    https: ListenSettings = field(default_factory=lambda: ListenSettings(port=8443))
    """REST, and kernel channels for clients that know one URL."""
    wss: ListenSettings = field(default_factory=lambda: ListenSettings(port=8444))
    """Kernel channels only."""
    tls: TlsSettings
    """The certificate for both ports."""
    workers: Count = 2
    """Processes that share the two ports."""
    clusters: dict[ClusterName, ClusterSettings]
    """The clusters by name; the name is the first segment of their URLs."""
    tokens_file: FilePath
    """JSON file: the hashes of the tokens that may come in, and whose they are."""
    ticket_key: FilePath
    """PEM file: the Ed25519 private key that signs the tickets which agents ask for."""
    ticket_lifetime: Annotated[float, Meta(ge=1, le=120)] = 30.0
    """Seconds a ticket is good for; agents refuse more than 120."""
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    """What one client may send."""
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    """Pings."""
    upstream: UpstreamSettings = field(default_factory=UpstreamSettings)
    """Patience with agents."""
    drain: SecondsOrZero = 5.0
    """Seconds between SIGTERM and the end of whatever is not finished by then."""
    log: LogSettings = field(default_factory=LogSettings)
    """The log of the edge and its workers."""
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    """Where its metrics are read."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where the two ports are one."""
        _check_two_ports(self.https, self.wss)


class KernelEnvironment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which environment variables reach a kernel."""

    allowed: list[EnvironmentName] = []
    """Names that a client may set in ``env`` besides ``KERNEL_*``."""
    inherit: list[EnvironmentPattern] = field(
        default_factory=lambda: [
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "LANG",
            "LC_*",
            "TZ",
            "TMPDIR",
            "VIRTUAL_ENV",
            "CONDA_*",
            "LD_LIBRARY_PATH",
            "JUPYTER_PATH",
            "JUPYTER_DATA_DIR",
            "IPYTHONDIR",
        ]
    )
    """Names that a kernel gets from the agent's own environment; a last ``*`` is any ending."""
    value_bytes: Size = 4096
    """Bytes of one value in ``env``, as UTF-8; beyond: 400."""


class JournalSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a kernel's output for whoever reads later; per kernel."""

    bytes: Size = 256 * _MIB
    """Bytes on disk; the oldest segments go first, and their readers are told."""
    segment_bytes: Size = 16 * _MIB
    """Bytes of one file of the journal."""
    tail_bytes: Size = 4 * _MIB
    """Bytes of the newest messages kept in memory too, for readers that keep up."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where dropping the oldest segment would drop everything."""
        if self.bytes < 2 * self.segment_bytes:
            raise ValueError("bytes must be at least twice segment_bytes")


class PastSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a kernel's past one request may read (``/api/kernels/<id>/messages``)."""

    limit: Count = 10_000
    """Messages in one answer where the request names no ``limit`` and does not ``follow``."""
    max_limit: Count = 1_000_000
    """The highest ``limit`` that a request may name; beyond: 400."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where the default is more than is allowed."""
        if self.limit > self.max_limit:
            raise ValueError("limit must not be over max_limit")


class SessionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of a kernel's clients; per kernel."""

    sessions: Count = 1000
    """Clients remembered, connected or not; past that, the one that left first is forgotten."""
    requests: Count = 10_000
    """Unanswered requests remembered; past that, the reply to the oldest finds nobody."""
    repeats: Count = 1000
    """Requests remembered of a client that repeats them (``last_seq``), so that each runs once."""
    lifetime: Seconds = 86400.0
    """Seconds after which a client that stays away is forgotten: it would begin at the newest
    message, like a new one."""
    anonymous_lifetime: Seconds = 300.0
    """The same for clients without a ``session_id``, in whose place the next one of the same
    person begins."""


class CullSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a kernel that nobody uses is shut down, as Jupyter Server's settings of these names."""

    cull_idle_timeout: SecondsOrZero = 0.0
    """Seconds without activity after which a kernel is shut down; 0: never. A kernelspec's
    ``metadata.cull_idle_timeout`` takes its place."""
    cull_interval: Seconds = 300.0
    """Seconds between two looks at whether a kernel is idle for too long."""
    cull_connected: bool = False
    """Whether a kernel with clients is shut down too."""
    cull_busy: bool = False
    """Whether a kernel that runs something is shut down too."""

    def for_kernelspec(self, metadata: Mapping[str, Any] | None) -> CullSettings:
        """These settings with what a kernelspec's metadata says instead."""
        timeout = (metadata or {}).get("cull_idle_timeout")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            return self
        if not 0 <= timeout <= _A_DAY:
            return self
        return replace(self, cull_idle_timeout=float(timeout))


class KernelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How kernels are run; per kernel."""

    launch_timeout: Seconds = 60.0
    """Seconds from launch until the kernel must have been heard."""
    shutdown_timeout: Seconds = 5.0
    """Seconds that a kernel asked to shut down has before it is killed."""
    restart_limit: CountOrZero = 5
    """Automatic restarts in a row before a kernel that keeps dying is reported dead."""
    restart_window: Seconds = 60.0
    """Seconds a kernel must live for its next death to count as the first in a row."""
    holder_restart_limit: CountOrZero = 3
    """Times that a holder which died is replaced within ``holder_restart_window``; when one dies
    once more its kernel is ended. 0: a kernel ends with its holder."""
    holder_restart_window: Seconds = 60.0
    """Seconds after which the replacement of a holder counts no more."""
    message_bytes: Size = 256 * _MIB
    """Bytes of one message. A client gets a notice instead of a larger one, and is closed with
    1009 when it sends one."""
    log_bytes: Size = 16 * _MIB
    """Bytes kept of what the kernel's process itself writes to stdout and stderr."""
    max_kernels: CountOrZero = 0
    """Kernels of one cluster on this node; beyond: 403. 0: as many as are asked for."""
    allow_free_parameters: bool = False
    """Whether clients may set parameters of a kernelspec that take any text, not just a choice."""
    transport: Literal["ipc", "tcp"] = "ipc"
    """How holder and kernel speak: unix sockets in a private folder, or loopback TCP, encrypted
    where the kernel can. Through TCP's larger buffers a kernel loses less of a burst of thousands
    of messages on a machine that has no time for its holder. Kernels that cannot do ipc use TCP."""
    port_range: Annotated[str, Meta(pattern=r"\A([0-9]{1,5}-[0-9]{1,5})?\Z")] = ""
    """TCP ports for kernels that cannot do ipc, as ``first-last``; empty: any free ones."""
    gateway_message_bytes: Size = 10 * _MIB
    """Bytes of one message to a Jupyter Server in gateway mode, whose WebSocket client gives up on
    a larger one: it gets a notice instead."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a range that has not five ports."""
        if self.port_range:
            first, _, last = self.port_range.partition("-")
            if not 1 <= int(first) <= int(last) - 4 <= _LAST_PORT - 4:
                raise ValueError("port_range: expected first-last with five ports at least")


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``relay agent``."""

    cluster: ClusterName
    """The cluster's name, the same as in the edge's configuration: tickets are made out to it."""
    listen: ListenSettings
    """Where edges reach this agent."""
    tls: AgentTls | None = None
    """Mutual TLS; without it the agent speaks plain HTTP: trusted networks only."""
    state_dir: FilePath
    """Folder of the kernels' records and journals; shared by the agents of one node."""
    runtime_dir: FilePath | None = None
    """Folder of unix sockets, with a short path; by default in the user's runtime folder."""
    ticket_keys: list[FilePath]
    """PEM files: the public keys of the edges whose tickets count."""
    environment: KernelEnvironment = field(default_factory=KernelEnvironment)
    """Which environment variables reach a kernel."""
    journal: JournalSettings = field(default_factory=JournalSettings)
    """What is kept of a kernel's output."""
    past: PastSettings = field(default_factory=PastSettings)
    """How much of a kernel's past one request may read."""
    sessions: SessionSettings = field(default_factory=SessionSettings)
    """What is remembered of a kernel's clients."""
    kernels: KernelSettings = field(default_factory=KernelSettings)
    """How kernels are run."""
    culling: CullSettings = field(default_factory=CullSettings)
    """When a kernel that nobody uses is shut down."""
    root_dir: FilePath | None = None
    """Folder below which the ``path`` of a request says where its kernel starts; by default the
    folder that the agent was started in."""
    drain: SecondsOrZero = 5.0
    """Seconds between SIGTERM and the end of whatever is not finished by then; kernels go on."""
    body_bytes: Size = _MIB
    """Bytes of a request's body; beyond: 413."""
    log: LogSettings = field(default_factory=LogSettings)
    """The log of the agent and of the holders it starts."""
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    """Where its metrics are read."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where nobody could get in."""
        if not self.ticket_keys:
            raise ValueError("ticket_keys: without a key nobody gets in")


class UpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``relay up``: edge and agents on one machine."""

    state_dir: FilePath | None = None
    """Folder of everything that is kept; by default ``kernel-relay`` in the user's state folder."""
    https: ListenSettings = field(default_factory=lambda: ListenSettings(port=8443))
    """REST, and kernel channels for clients that know one URL."""
    wss: ListenSettings = field(default_factory=lambda: ListenSettings(port=8444))
    """Kernel channels only."""
    clusters: list[ClusterName] = field(default_factory=lambda: ["alpha", "beta"])
    """The local clusters, each an agent of its own."""
    edge_workers: Count = 2
    """Processes that share the two ports."""
    kernels: KernelSettings = field(default_factory=KernelSettings)
    """How kernels are run."""
    culling: CullSettings = field(default_factory=CullSettings)
    """When a kernel that nobody uses is shut down."""
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
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    """What one client may send."""
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    """Pings."""
    upstream: UpstreamSettings = field(default_factory=UpstreamSettings)
    """The edge's patience with agents."""
    log: LogSettings = field(default_factory=LogSettings)
    """The log of every process."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where clusters or ports coincide, or no cluster is left."""
        _check_two_ports(self.https, self.wss)
        if not self.clusters:
            raise ValueError("clusters: at least one is needed")
        if len(set(self.clusters)) < len(self.clusters):
            raise ValueError("clusters: a name appears twice")


def _check_two_ports(https: ListenSettings, wss: ListenSettings) -> None:
    if https.port == wss.port != 0 and https.host == wss.host:
        raise ValueError("https and wss need two different ports")
