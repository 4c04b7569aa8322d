"""The settings of ``relay agent``: one frozen struct per subject, the unit in the docstring."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from relay.config.values import (
    KIB,
    LAST_PORT,
    MIB,
    RELAY_PREFIXES,
    SECONDS_PER_DAY,
    AuthenticatorName,
    ClusterName,
    Count,
    CountOrZero,
    EnvironmentName,
    EnvironmentPattern,
    FilePath,
    ListenSettings,
    LogSettings,
    MetricsSettings,
    OsUser,
    OsUserId,
    OsUserName,
    PrincipalName,
    Seconds,
    SecondsOrZero,
    SecretFile,
    Size,
)


class AgentTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent's certificate, and the edges that may connect to it."""

    certificate: FilePath
    """PEM file: the agent's certificate and its chain."""
    key: SecretFile
    """PEM file: the certificate's private key, without a passphrase."""
    client_ca: FilePath
    """PEM file: the certificate authorities of edges' certificates."""


class KernelEnvironment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Environment variables of kernels."""

    allowed: list[EnvironmentName] = []
    """Names that a client may set in ``env`` besides ``KERNEL_*``. Variables that identify a user
    are never taken from a client."""
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
    """Names that a kernel inherits from the agent's environment; a final ``*`` is any ending."""
    value_bytes: Size = 4096
    """Bytes of one value in ``env``, as UTF-8; beyond: 400."""
    variables: Count = 100
    """Variables in one ``env``; beyond: 400."""
    bytes: Size = 64 * KIB
    """Bytes of all names and values in one ``env`` that reach the kernel; beyond: 400."""

    def inherited(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return what a kernel inherits of ``environ``, the agent's; never the relay's own."""
        return {
            name: value
            for name, value in environ.items()
            if not name.startswith(RELAY_PREFIXES)
            and any(fnmatch.fnmatchcase(name, pattern) for pattern in self.inherit)
        }


class JournalSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on a kernel's journal, which keeps its output for clients that read later."""

    bytes: Size = 256 * MIB
    """Bytes on disk, an eighth of them for replies and states; the oldest segments are deleted
    first, and clients that had not read them are told."""
    segment_bytes: Size = 16 * MIB
    """Bytes of one file of the journal."""
    tail_bytes: Size = 4 * MIB
    """Bytes of the newest messages kept in memory too, for clients that keep up."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where deleting the oldest segment would delete everything."""
        if self.bytes < 2 * self.segment_bytes:
            raise ValueError("bytes: it must be at least twice segment_bytes")


class PastSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on reading a kernel's earlier messages (``/api/kernels/<id>/messages``)."""

    limit: Count = 10_000
    """Messages in one response where the request has no ``limit`` and no ``follow``."""
    max_limit: Count = 1_000_000
    """The highest ``limit`` that a request may have; beyond: 400."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where the default is over the maximum."""
        if self.limit > self.max_limit:
            raise ValueError("limit: it must not be over max_limit")


class SessionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of a kernel's clients; limits per kernel."""

    sessions: Count = 1000
    """Clients remembered, connected or not; beyond, the one that left first is forgotten."""
    requests: Count = 10_000
    """Unanswered requests remembered; beyond, the reply to the oldest is dropped."""
    repeats: Count = 1000
    """Requests remembered of a client that repeats them (``last_seq``), so that each runs once."""
    lifetime: Seconds = 86400.0
    """Seconds after which a client that stays away is forgotten; it then starts at the newest
    message, like a new client."""
    anonymous_lifetime: Seconds = 300.0
    """The same for clients without a ``session_id``; within this time the next such client of the
    same user continues where the last one left."""


class CullSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an unused kernel is shut down; named as Jupyter Server's settings."""

    cull_idle_timeout: SecondsOrZero = 0.0
    """Seconds without activity after which a kernel is shut down; 0: never. A kernelspec's
    ``metadata.cull_idle_timeout`` takes precedence."""
    cull_interval: Seconds = 300.0
    """Seconds between two checks."""
    cull_connected: bool = False
    """Whether kernels with connected clients are shut down too."""
    cull_busy: bool = False
    """Whether busy kernels are shut down too."""

    def for_kernelspec(self, metadata: Mapping[str, Any] | None) -> CullSettings:
        """Return these settings with those in a kernelspec's metadata applied."""
        timeout = (metadata or {}).get("cull_idle_timeout")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            return self
        if not 0 <= timeout <= SECONDS_PER_DAY:
            return self
        return replace(self, cull_idle_timeout=float(timeout))


class KernelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How kernels run; limits per kernel unless stated otherwise."""

    launch_timeout: Seconds = 60.0
    """Seconds from a kernel's launch to its first message."""
    shutdown_timeout: Seconds = 5.0
    """Seconds that a kernel has to shut down before it is killed."""
    restart_limit: CountOrZero = 5
    """Automatic restarts in a row; at the next death the kernel is reported dead."""
    restart_window: Seconds = 60.0
    """Seconds after which a kernel's next death is counted as the first in a row again."""
    holder_restart_limit: CountOrZero = 3
    """Times that a holder which died is replaced within ``holder_restart_window``; at its next
    death the kernel is ended. 0: a kernel ends with its holder."""
    holder_restart_window: Seconds = 60.0
    """Seconds within which replacements of a holder are counted."""
    message_bytes: Size = 256 * MIB
    """Bytes of one message. Beyond, clients get a notice in place of a kernel's message, and a
    client that sends such a message is closed with 1009."""
    log_bytes: Size = 16 * MIB
    """Bytes kept of what the kernel's process writes to stdout and stderr itself."""
    max_kernels: CountOrZero = 0
    """Kernels of one cluster on this node; beyond: 403. 0: no limit."""
    max_grants: Count = 100
    """Users with whom a kernel may be shared; beyond: 403."""
    allow_free_parameters: bool = False
    """Whether clients may set parameters of a kernelspec that accept any text, not only those with
    a list of choices."""
    transport: Literal["ipc", "tcp"] = "ipc"
    """How holder and kernel are connected: unix sockets in a private folder, or loopback TCP, which
    is encrypted if the kernel supports it. TCP's larger buffers help a kernel that prints in bursts
    on a busy machine. Kernels that do not support ipc use TCP."""
    port_range: Annotated[str, Meta(pattern=r"\A([0-9]{1,5}-[0-9]{1,5})?\Z")] = ""
    """TCP ports for kernels that do not support ipc, as ``first-last``; empty: any free ones."""
    gateway_message_bytes: Size = 10 * MIB
    """Bytes of one message to a Jupyter Server in gateway mode, whose WebSocket client fails on a
    larger one; beyond, a notice is sent instead."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a range without five ports."""
        if self.port_range:
            first, _, last = self.port_range.partition("-")
            if not 1 <= int(first) <= int(last) - 4 <= LAST_PORT - 4:
                raise ValueError("port_range: expected first-last, at least five ports")


class LaunchAs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The OS users that kernels run as; a principal without one cannot start kernels."""

    map: dict[PrincipalName, OsUserName] = {}
    """OS users by principal, as ``authenticator:subject``."""
    template: Annotated[str, Meta(pattern=r"\A[a-z0-9._-]*\{subject\}[a-z0-9._-]*\Z")] | None = None
    """The OS user of principals that are not in ``map``: ``{subject}`` stands for the subject."""
    authenticators: list[AuthenticatorName] = []
    """Authenticators whose principals ``template`` applies to: their subjects become OS users."""
    refuse: list[OsUser] = field(default_factory=lambda: ["root", "nobody"])
    """OS users, by name or uid, as which no kernel runs; uid 0 and the agent's user are always
    refused."""
    min_uid: OsUserId = 1000
    """The lowest uid that a kernel may run as."""
    umask: Annotated[str, Meta(pattern=r"\A0?[0-7]{3}\Z")] = "077"
    """Permissions that files made by kernels do not get, in octal."""
    no_new_privileges: bool = True
    """Whether sudo and setuid programs have no effect in kernels."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless template and authenticators are both set or both missing."""
        if (self.template is None) != (not self.authenticators):
            raise ValueError("template and authenticators must be set together")


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of ``relay agent``."""

    cluster: ClusterName
    """The cluster's name, as in the edge's configuration: tickets are issued for this name."""
    listen: ListenSettings
    """The address that edges connect to."""
    tls: AgentTls | None = None
    """Mutual TLS; without it the agent serves plain HTTP: for trusted networks only, and never with
    ``launch_as``."""
    state_dir: FilePath
    """Directory for kernels' records and journals; shared by all agents of a cluster, which are on
    one node."""
    runtime_dir: FilePath | None = None
    """Directory for unix sockets, with a short path; by default in the user's runtime directory."""
    user: OsUserName | None = None
    """OS user that the agent runs as where it starts kernels as other users (``launch_as``)."""
    launch_as: LaunchAs | None = None
    """The OS users that kernels run as; the agent is then started as root and needs ``tls``. null:
    all kernels run as the agent's user, and each can read what the others and the agent can."""
    ticket_keys: list[FilePath]
    """PEM files: the public keys of the edges whose tickets are accepted."""
    environment: KernelEnvironment = field(default_factory=KernelEnvironment)
    """Environment variables of kernels."""
    journal: JournalSettings = field(default_factory=JournalSettings)
    """Limits on a kernel's journal."""
    past: PastSettings = field(default_factory=PastSettings)
    """Limits on reading a kernel's earlier messages."""
    sessions: SessionSettings = field(default_factory=SessionSettings)
    """What is remembered of a kernel's clients."""
    kernels: KernelSettings = field(default_factory=KernelSettings)
    """How kernels run."""
    culling: CullSettings = field(default_factory=CullSettings)
    """When an unused kernel is shut down."""
    shared_uid: bool = False
    """Whether kernels of several users may run as one OS user, the agent's: any of them can then
    read the others' files. Without it only the first user who starts a kernel may start more."""
    root_dir: FilePath | None = None
    """Directory below which the ``path`` of a request selects where its kernel starts; by default
    the directory that the agent was started in."""
    drain: SecondsOrZero = 5.0
    """Seconds from SIGTERM until unfinished requests are ended; kernels keep running."""
    body_bytes: Size = MIB
    """Bytes of a request's body; beyond: 413."""
    log: LogSettings = field(default_factory=LogSettings)
    """Logging of the agent and of the holders it starts."""
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    """The address of the metrics."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for settings that contradict each other, or without a key."""
        if not self.ticket_keys:
            raise ValueError("ticket_keys: at least one key is needed")
        if (self.user is None) != (self.launch_as is None):
            raise ValueError("user and launch_as must be set together")
        if self.launch_as is not None and self.runtime_dir is None:
            raise ValueError("runtime_dir: launch_as needs it, such as /run/kernel-relay")
        if self.launch_as is not None and self.tls is None:
            raise ValueError(
                "launch_as: it needs mutual TLS, since a user's kernel that takes the agent's port"
                " while it is free would get other users' tickets and could act as them; set tls"
                " here, and https:// in clusters.<name>.agents with clusters.<name>.tls at the edge"
            )
