"""Requests for kernels: read, checked, and completed with environment and working folder."""

from __future__ import annotations

import os
import re
import unicodedata
import uuid
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from relay import limits
from relay.agent.api import parameters
from relay.agent.api.kernelspecs import KernelSpecs
from relay.agent.holders.client import HolderClient
from relay.agent.holders.create import StartRequest
from relay.agent.holders.registry import HolderRegistry
from relay.auth.tickets import Ticket
from relay.config import AgentConfig, KernelEnvironment
from relay.errors import BadRequest
from relay.routing.names import is_kernel_id, is_kernelspec_name

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CLIENTS: Final = "KERNEL_"
_USER: Final = "KERNEL_USERNAME"
_IDENTITIES: Final = frozenset(
    {
        _USER,
        *("KERNEL_USER", "KERNEL_USERID", "KERNEL_USER_ID", "KERNEL_UID"),
        *("KERNEL_GROUP", "KERNEL_GROUPS", "KERNEL_GID", "KERNEL_TENANT_ID"),
        # Enterprise Gateway and its provisioners derive a pod's identity and place from these.
        *("KERNEL_ID", "KERNEL_POD_NAME", "KERNEL_NAMESPACE", "KERNEL_SERVICE_ACCOUNT_NAME"),
    }
)
"""Variables by which kernels and provisioners know the user: no client sets them."""
_LAUNCH_TIMEOUT: Final = "KERNEL_LAUNCH_TIMEOUT"
_UNFIT: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of Unicode: control characters, halves of a pair, separators of lines."""


class StartBody(msgspec.Struct, frozen=True):
    """The body of ``POST /api/kernels``; fields of other servers are ignored."""

    name: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    kernel_id: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    path: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    env: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None


class KernelStarts:
    """Starts kernels for callers that hold a ticket."""

    def __init__(
        self, config: AgentConfig, holders: HolderRegistry, kernelspecs: KernelSpecs
    ) -> None:
        self._config = config
        self._holders = holders
        self._kernelspecs = kernelspecs

    async def start(self, body: StartBody, ticket: Ticket) -> HolderClient:
        """Start a kernel, or find the one with the id that was asked for.

        Raises:
            BadRequest: something in ``body`` is malformed.
            NotFound: there is no such kernelspec, or the caller may not start its kernels.
            RelayError: as `HolderRegistry.start`.
        """
        name = body.name or await self._kernelspecs.default(ticket.rights)
        if not is_kernelspec_name(name):
            raise BadRequest("The kernelspec's name is malformed.")
        if body.kernel_id is not None and not is_kernel_id(body.kernel_id):
            raise BadRequest("A kernel_id is five groups of letters and digits joined by hyphens.")
        kernelspec = await self._kernelspecs.get(name, ticket.rights)
        settings = self._config.environment
        client_env = client_environment(body.env or {}, settings)
        # The user is the ticket's, whatever the client sent.
        client_env[_USER] = ticket.principal.subject
        return await self._holders.start(
            StartRequest(
                # The ticket brings the id that the edge chose, so that it can ask again.
                kernel_id=body.kernel_id or ticket.kernel or str(uuid.uuid4()),
                name=kernelspec["name"],
                owner=ticket.principal,
                environment=settings.inherited(os.environ) | client_env,
                parameters=parameters.choose(
                    kernelspec,
                    body.parameters,
                    allow_free=self._config.kernels.allow_free_parameters,
                ),
                working_folder=working_folder(self._config.root_dir, body.path),
                cull=self._config.culling.for_kernelspec(kernelspec["spec"].get("metadata")),
                launch_timeout=self._launch_timeout(client_env),
                max_kernels=ticket.max_kernels,
                request_id=ticket.request_id,
            )
        )

    def _launch_timeout(self, client_env: dict[str, str]) -> float:
        """Return the launch timeout in seconds: the setting, or the client's if that is shorter."""
        limit = self._config.kernels.launch_timeout
        try:
            asked = float(client_env[_LAUNCH_TIMEOUT])
        except (KeyError, ValueError):
            return limit
        return min(asked, limit) if asked > 0 else limit


def working_folder(root: str | None, path: str | None) -> str | None:
    """Return where a kernel starts: the deepest folder that exists on ``path`` below ``root``.

    ``path`` comes from the client: a folder or a file, with slashes, from the root of what the
    client sees. None: wherever the agent runs. Raises `BadRequest` for a path out of ``root``.
    """
    folder = Path(root or ".").resolve()
    if path is None or "\0" in path:
        return str(folder) if root else None
    found = folder
    for part in path.strip("/").split("/"):
        step = found / part
        if not part or not _is_folder(step):
            break
        found = step.resolve()
        if not found.is_relative_to(folder):
            raise BadRequest("path leads out of the folder that kernels start in (root_dir).")
    return str(found)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # A name that is too long.
        return False


def client_environment(asked: dict[str, Any], settings: KernelEnvironment) -> dict[str, str]:
    """Return the variables of ``asked`` that a client may set; others are left out, as elsewhere.

    No variable by which code is loaded (PATH, LD_*, PYTHON*, BASH_ENV, …) begins with KERNEL_: such
    variables pass where the configuration names them.

    Raises:
        BadRequest: a value is no text, too long or has control characters, or there are too many
            variables or bytes.
    """
    if len(asked) > settings.variables:
        raise _too_much(f"env has over {settings.variables} variables", "variables")
    passed = {}
    for name, value in asked.items():
        if not _NAME.fullmatch(name):
            raise BadRequest("A name in env is malformed.")
        if name in _IDENTITIES or not (name.startswith(_CLIENTS) or name in settings.allowed):
            continue
        passed[name] = _checked(name, value, settings.value_bytes)
    size = sum(len(name) + len(value.encode()) for name, value in passed.items())
    if size > settings.bytes:
        raise _too_much(f"env is over {settings.bytes} bytes", "bytes")
    return passed


def _checked(name: str, value: object, limit: int) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"env: the value of {name} is not a string.")
    if len(value.encode(errors="surrogatepass")) > limit:
        raise _too_much(f"env: the value of {name} is over {limit} bytes", "value_bytes")
    if any(unicodedata.category(character) in _UNFIT for character in value):
        raise BadRequest(f"env: the value of {name} has control characters.")
    return value


def _too_much(what: str, setting: str) -> BadRequest:
    limits.record(f"environment.{setting}")
    return BadRequest(f"{what} (environment.{setting}).")
