"""Settings of ``relay up``, from which it makes those of an edge and of agents."""

from __future__ import annotations

from msgspec import field

from relay.auth.tokens import AUTHENTICATOR
from relay.config.agent import (
    CullSettings,
    JournalSettings,
    KernelEnvironment,
    KernelSettings,
    PastSettings,
    SessionSettings,
)
from relay.config.authentication import AuthenticationSettings, PathTokenSettings
from relay.config.edge import BaseEdgeConfig
from relay.config.policy import PolicySettings
from relay.config.values import ClusterName, Count, FilePath


class UpConfig(BaseEdgeConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of ``relay up``: edge and agents on one machine."""

    state_dir: FilePath | None = None
    """Directory for certificates, tokens and kernels; by default ``kernel-relay`` in the user's
    state directory."""
    clusters: list[ClusterName] = field(default_factory=lambda: ["alpha", "beta"])
    """The local clusters, with one agent each."""
    edge_workers: Count = 2
    """Worker processes of the edge, which share the two ports."""
    path_tokens: PathTokenSettings | None = None
    """Path tokens; without this section there are none."""
    authentication: AuthenticationSettings | None = None
    """Authenticators besides the state directory's tokens; without ``tokens``."""
    policy: PolicySettings | None = None
    """What authenticated users may do; by default everything with kernels of their own."""
    kernels: KernelSettings = field(default_factory=KernelSettings)
    """How kernels run."""
    culling: CullSettings = field(default_factory=CullSettings)
    """When an unused kernel is shut down."""
    shared_uid: bool = False
    """Whether several users may start kernels, all as the OS user of ``relay up``: any of them can
    then read the others' files. Without it only the first user who starts one may start more."""
    root_dir: FilePath | None = None
    """Directory below which the ``path`` of a request selects where its kernel starts; by default
    the directory that ``relay up`` was started in."""
    journal: JournalSettings = field(default_factory=JournalSettings)
    """Limits on a kernel's journal."""
    past: PastSettings = field(default_factory=PastSettings)
    """Limits on reading a kernel's earlier messages."""
    sessions: SessionSettings = field(default_factory=SessionSettings)
    """What is remembered of a kernel's clients."""
    environment: KernelEnvironment = field(default_factory=KernelEnvironment)
    """Environment variables of kernels."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for settings that contradict each other."""
        super().__post_init__()
        if self.authentication is not None and self.authentication.tokens is not None:
            raise ValueError("authentication: tokens cannot be set; the state directory has them")
        if not self.clusters:
            raise ValueError("clusters: at least one is needed")
        if len(set(self.clusters)) < len(self.clusters):
            raise ValueError("clusters: a name appears twice")
        if self.policy is not None:
            others = [] if self.authentication is None else self.authentication.of_principals
            # Each once, though an alias may name the static tokens' authenticator too.
            self.policy.check_authenticators(list(dict.fromkeys([AUTHENTICATOR, *others])))
