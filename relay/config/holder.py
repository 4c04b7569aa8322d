"""What an agent tells the holder it starts; kept beside the kernel as ``request.json``."""

from __future__ import annotations

from msgspec import Struct

from relay.bridge.versions import FOLDER
from relay.config.agent import CullSettings, JournalSettings, KernelSettings, SessionSettings
from relay.config.values import LogSettings


class HolderConfig(Struct, frozen=True, kw_only=True):
    """One kernel to launch and everything that its holder is bound by."""

    version: int = FOLDER.writes
    """Of the files in a kernel's folder."""
    name: str
    """The kernelspec's name."""
    owner: str
    """The principal who asked for the kernel, as ``authenticator:subject``."""
    request_id: str = ""
    """The request that asked for it; every line that has no request of its own bears it."""
    created: float
    """When it was asked for, in seconds since the epoch."""
    socket: str
    """Path of the unix socket to serve."""
    environment: dict[str, str]
    """The kernel's whole environment, before what its kernelspec adds."""
    parameters: dict[str, str] = {}
    """What stands in for ``{name}`` in the kernelspec's argv and env."""
    working_folder: str | None = None
    """Where the kernel starts; the agent's own folder by default."""
    max_record: int
    """Bytes of one record from an agent."""
    culling: CullSettings
    kernels: KernelSettings
    journal: JournalSettings
    sessions: SessionSettings
    log: LogSettings
