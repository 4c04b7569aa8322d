"""The settings of ``relay up``, which makes those of an edge and of agents from them."""

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
    """``relay up``: edge and agents on one machine."""

    state_dir: FilePath | None = None
    """Folder of everything that is kept; by default ``kernel-relay`` in the user's state folder."""
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

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where names or ports coincide, or no edge can be made of it."""
        super().__post_init__()
        if self.authentication is not None and self.authentication.tokens is not None:
            raise ValueError("authentication: tokens are those of the state folder")
        if not self.clusters:
            raise ValueError("clusters: at least one is needed")
        if len(set(self.clusters)) < len(self.clusters):
            raise ValueError("clusters: a name appears twice")
        if self.policy is not None:
            besides = [] if self.authentication is None else self.authentication.principals
            # Once, though an alias may name it too.
            self.policy.check_authenticators(list(dict.fromkeys([AUTHENTICATOR, *besides])))
