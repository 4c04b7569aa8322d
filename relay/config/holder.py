"""The configuration that an agent gives to a holder; stored with the kernel as ``request.json``."""

from __future__ import annotations

from msgspec import Struct

from relay.bridge.versions import FOLDER
from relay.config.agent import CullSettings, JournalSettings, KernelSettings, SessionSettings
from relay.config.values import LogSettings


class HolderConfig(Struct, frozen=True, kw_only=True):
    """One kernel to launch, and all settings of its holder."""

    version: int = FOLDER.writes
    """Of the files in a kernel's folder."""
    name: str
    """The kernelspec's name."""
    owner: str
    """The principal who asked for the kernel, as ``authenticator:subject``."""
    request_id: str = ""
    """The request that started the kernel; in every log line without a request of its own."""
    created: float
    """Unix time of the request, in seconds."""
    socket: str
    """Path of the unix socket to serve."""
    environment: dict[str, str]
    """The kernel's whole environment, before what its kernelspec adds."""
    parameters: dict[str, str] = {}
    """Values for ``{name}`` in the kernelspec's argv and env."""
    working_folder: str | None = None
    """The folder that the kernel starts in; by default the agent's working folder."""
    max_record: int
    """Bytes of the largest record that is accepted from an agent."""
    culling: CullSettings
    kernels: KernelSettings
    journal: JournalSettings
    sessions: SessionSettings
    log: LogSettings
