"""The settings of ``relay agent``: one frozen struct per subject, the unit in the docstring."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from relay.config.values import (
    A_DAY,
    KIB,
    LAST_PORT,
    MIB,
    THE_RELAYS,
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
    """Who an agent is, and whom it lets in."""

    certificate: FilePath
    """PEM file: the agent's certificate and its chain."""
    key: SecretFile
    """PEM file: the certificate's private key, without a passphrase."""
    client_ca: FilePath
    """PEM file: the authorities that an edge's certificate must come from."""


class KernelEnvironment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which environment variables reach a kernel."""

    allowed: list[EnvironmentName] = []
    """Names that a client may set in ``env`` besides ``KERNEL_*``, of which those that say who
    somebody is never pass."""
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
    variables: Count = 100
    """Variables in one ``env``; beyond: 400."""
    bytes: Size = 64 * KIB
    """Bytes of all names and values in one ``env`` that pass; beyond: 400."""

    def inherited(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What a kernel gets of ``environ``, the agent's own; nothing of the relay's."""
        return {
            name: value
            for name, value in environ.items()
            if not name.startswith(THE_RELAYS)
            and any(fnmatch.fnmatchcase(name, pattern) for pattern in self.inherit)
        }


class JournalSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a kernel's output for whoever reads later; per kernel."""

    bytes: Size = 256 * MIB
    """Bytes on disk, an eighth of them for replies and states; the oldest segments go first, and
    their readers are told."""
    segment_bytes: Size = 16 * MIB
    """Bytes of one file of the journal."""
    tail_bytes: Size = 4 * MIB
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
        if not 0 <= timeout <= A_DAY:
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
    message_bytes: Size = 256 * MIB
    """Bytes of one message. A client gets a notice instead of a larger one, and is closed with
    1009 when it sends one."""
    log_bytes: Size = 16 * MIB
    """Bytes kept of what the kernel's process itself writes to stdout and stderr."""
    max_kernels: CountOrZero = 0
    """Kernels of one cluster on this node; beyond: 403. 0: as many as are asked for."""
    max_grants: Count = 100
    """Users whom a kernel's owner lets use or view it; beyond: 403."""
    allow_free_parameters: bool = False
    """Whether clients may set parameters of a kernelspec that take any text, not just a choice."""
    transport: Literal["ipc", "tcp"] = "ipc"
    """How holder and kernel speak: unix sockets in a private folder, or loopback TCP, encrypted
    where the kernel can. Through TCP's larger buffers a kernel loses less of a burst of thousands
    of messages on a machine that has no time for its holder. Kernels that cannot do ipc use TCP."""
    port_range: Annotated[str, Meta(pattern=r"\A([0-9]{1,5}-[0-9]{1,5})?\Z")] = ""
    """TCP ports for kernels that cannot do ipc, as ``first-last``; empty: any free ones."""
    gateway_message_bytes: Size = 10 * MIB
    """Bytes of one message to a Jupyter Server in gateway mode, whose WebSocket client gives up on
    a larger one: it gets a notice instead."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a range that has not five ports."""
        if self.port_range:
            first, _, last = self.port_range.partition("-")
            if not 1 <= int(first) <= int(last) - 4 <= LAST_PORT - 4:
                raise ValueError("port_range: expected first-last with five ports at least")


class LaunchAs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As which OS user the kernels of a principal run; nobody else may start any."""

    map: dict[PrincipalName, OsUserName] = {}
    """OS users by principal, as ``authenticator:subject``."""
    template: Annotated[str, Meta(pattern=r"\A[a-z0-9._-]*\{subject\}[a-z0-9._-]*\Z")] | None = None
    """OS users of principals that ``map`` lacks: ``{subject}`` stands for the subject."""
    authenticators: list[AuthenticatorName] = []
    """Whose principals ``template`` is for: their subjects become names of OS users."""
    refuse: list[OsUser] = field(default_factory=lambda: ["root", "nobody"])
    """OS users, by name or uid, as whom no kernel runs; never as uid 0 nor as the agent's user."""
    min_uid: OsUserId = 1000
    """The lowest uid that a kernel may have."""
    umask: Annotated[str, Meta(pattern=r"\A0?[0-7]{3}\Z")] = "077"
    """What is taken from the permissions of the files that kernels make, in octal."""
    no_new_privileges: bool = True
    """Whether programs that change the user, such as sudo, are of no use in a kernel."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a template that is for nobody, or authenticators without one."""
        if (self.template is None) != (not self.authenticators):
            raise ValueError("template and authenticators go together")


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``relay agent``."""

    cluster: ClusterName
    """The cluster's name, the same as in the edge's configuration: tickets are made out to it."""
    listen: ListenSettings
    """Where edges reach this agent."""
    tls: AgentTls | None = None
    """Mutual TLS; without it the agent speaks plain HTTP: trusted networks only, and no
    ``launch_as``."""
    state_dir: FilePath
    """Folder of the kernels' records and journals; shared by all agents of a cluster, which are on
    one node."""
    runtime_dir: FilePath | None = None
    """Folder of unix sockets, with a short path; by default in the user's runtime folder."""
    user: OsUserName | None = None
    """OS user that the agent runs as where it launches kernels as others (``launch_as``)."""
    launch_as: LaunchAs | None = None
    """As which OS user each principal's kernels run; the agent is then started as root and needs
    ``tls``. null: as the agent's own, where each kernel can read what the others and the agent
    can."""
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
    shared_uid: bool = False
    """Whether the kernels of several users may run under one user id, the agent's: on one uid any
    kernel can read every other's files. Without it only the first user who starts a kernel may."""
    root_dir: FilePath | None = None
    """Folder below which the ``path`` of a request says where its kernel starts; by default the
    folder that the agent was started in."""
    drain: SecondsOrZero = 5.0
    """Seconds between SIGTERM and the end of whatever is not finished by then; kernels go on."""
    body_bytes: Size = MIB
    """Bytes of a request's body; beyond: 413."""
    log: LogSettings = field(default_factory=LogSettings)
    """The log of the agent and of the holders it starts."""
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    """Where its metrics are read."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where nobody could get in."""
        if not self.ticket_keys:
            raise ValueError("ticket_keys: without a key nobody gets in")
        if (self.user is None) != (self.launch_as is None):
            raise ValueError("user and launch_as go together")
        if self.launch_as is not None and self.runtime_dir is None:
            raise ValueError("runtime_dir: launch_as needs one, such as /run/kernel-relay")
        if self.launch_as is not None and self.tls is None:
            raise ValueError(
                "launch_as: needs mutual TLS: without it a user's kernel that takes the agent's"
                " port while it is free gets other users' tickets and acts as them; set tls here,"
                " and https:// in clusters.<name>.agents with clusters.<name>.tls at the edge"
            )
