"""Jupyter's sessions: which document runs on which kernel. One small file each.

``STATE_DIR/<cluster>/sessions/<id>.json``. A session lives no longer than its kernel: without one
it is forgotten the next time that it is read.

Its owner and admins see it, as long as they may see its kernel. Others who may use that kernel do
not: clients take a session with a document's path for that document's.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from pathlib import Path
from typing import Annotated, Any
from weakref import WeakValueDictionary

import msgspec
import structlog

from relay.agent.api.access import KernelAccess
from relay.agent.api.start_request import KernelStarts, StartBody
from relay.agent.holders.client import HolderClient
from relay.auth.ownership import REVEALING
from relay.auth.policy import Action
from relay.auth.tickets import Ticket
from relay.errors import BadRequest, DiskFull, Forbidden, NotFound
from relay.files import private_folder, write_atomic

log = structlog.get_logger(__name__)

_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class KernelChoice(msgspec.Struct, frozen=True):
    """The kernel in a request: the id of one that runs, or the name of a kernelspec to start."""

    id: _Text | None = None
    name: _Text | None = None
    env: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None


class NewSession(msgspec.Struct, frozen=True):
    """The body of ``POST /api/sessions``."""

    path: _Text
    type: _Text
    name: _Text | None = None
    kernel: KernelChoice | None = None


class SessionChange(msgspec.Struct, frozen=True):
    """The body of ``PATCH /api/sessions/<id>``: what is left out stays."""

    path: _Text | None = None
    type: _Text | None = None
    name: _Text | None = None
    kernel: KernelChoice | None = None


class JupyterSession(msgspec.Struct, frozen=True, kw_only=True):
    """One session as its file has it."""

    id: str
    path: str
    name: str
    type: str
    kernel_id: str
    owner: str


class JupyterSessions:
    """The sessions of one cluster; agents that share the state folder share them."""

    def __init__(self, folder: Path, kernels: KernelAccess, starts: KernelStarts) -> None:
        self._folder = private_folder(folder)
        self._kernels = kernels
        self._starts = starts
        self._creating: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def all(self, ticket: Ticket) -> list[dict[str, Any]]:
        """Return every session's model. Raises `AgentUnavailable` rather than leave one out."""
        clients = {
            client.kernel_folder.kernel_id: client for client in await self._kernels.all(ticket)
        }
        models = []
        for session in self._read_all():
            if not _is_theirs(session, ticket):
                continue
            # The kernel of a session may have started since the kernels were listed.
            with contextlib.suppress(NotFound):
                client = clients.get(session.kernel_id) or await self._client(session, ticket)
                models.append(_model(session, client))
        return models

    async def get(self, session_id: str, ticket: Ticket) -> dict[str, Any]:
        """Return one session's model. Raises `NotFound`."""
        session = self._read_theirs(session_id, ticket)
        return _model(session, await self._client(session, ticket))

    async def create(self, body: NewSession, ticket: Ticket) -> dict[str, Any]:
        """Make a session, and a kernel for it unless it names one that runs.

        A path that has a session keeps it.

        Raises:
            Forbidden: the caller may not use the kernel.
            RelayError: as `KernelStarts.start`.
        """
        owner = str(ticket.principal)
        async with self._creating.setdefault((owner, body.path), asyncio.Lock()):
            return await self._create(body, owner, ticket)

    async def _create(self, body: NewSession, owner: str, ticket: Ticket) -> dict[str, Any]:
        for session in self._read_all():
            if session.path == body.path and session.owner == owner:
                with contextlib.suppress(NotFound):
                    return _model(session, await self._client(session, ticket))
        client, started = await self._kernel(body.kernel or KernelChoice(), body.path, ticket)
        session = JupyterSession(
            id=str(uuid.uuid4()),
            path=body.path,
            name=body.name or "",
            type=body.type,
            kernel_id=client.kernel_folder.kernel_id,
            owner=owner,
        )
        await self._keep(session, ticket, started=started)
        return _model(session, client)

    async def change(self, session_id: str, body: SessionChange, ticket: Ticket) -> dict[str, Any]:
        """Rename a session or give it another kernel; the one it had is shut down.

        Raises:
            NotFound: there is no such session.
            RelayError: as `create`.
        """
        before = self._read_theirs(session_id, ticket)
        client, started = await self._client(before, ticket), False
        if body.kernel is not None and (body.kernel.id or body.kernel.name):
            client, started = await self._kernel(body.kernel, body.path or before.path, ticket)
        session = msgspec.structs.replace(
            before,
            path=before.path if body.path is None else body.path,
            name=before.name if body.name is None else body.name,
            type=before.type if body.type is None else body.type,
            kernel_id=client.kernel_folder.kernel_id,
        )
        await self._keep(session, ticket, started=started)
        if session.kernel_id != before.kernel_id:
            # A caller who may not end the old kernel leaves it running.
            with contextlib.suppress(NotFound, Forbidden):
                await self._kernels.stop(before.kernel_id, ticket)
        return _model(session, client)

    async def delete(self, session_id: str, ticket: Ticket) -> None:
        """End a session and its kernel. Raises `NotFound` and `Forbidden`."""
        session = self._read_theirs(session_id, ticket)
        try:
            # In this order: a request that is repeated after an agent's death finds the session.
            await self._kernels.stop(session.kernel_id, ticket)
        except NotFound:
            if self._kernels.exists(session.kernel_id):
                raise _no_such_session() from None
        self._forget(session)

    async def _keep(self, session: JupyterSession, ticket: Ticket, *, started: bool) -> None:
        """Write a session. Raises `DiskFull`, and then ends a kernel that was started for it."""
        try:
            self._write(session)
        except DiskFull:
            if started:
                with contextlib.suppress(NotFound):
                    await self._kernels.discard(session.kernel_id, ticket)
            raise

    async def _kernel(
        self, choice: KernelChoice, path: str, ticket: Ticket
    ) -> tuple[HolderClient, bool]:
        """Return the kernel that was chosen, and whether it was started just now."""
        if choice.id is not None:
            try:
                return await self._kernels.get(choice.id, ticket, {Action.USE}), False
            except NotFound:
                if choice.name is None:
                    raise BadRequest("The session's kernel does not exist.") from None
        body = StartBody(
            name=choice.name,
            kernel_id=choice.id,
            path=path,
            env=choice.env,
            parameters=choice.parameters,
        )
        return await self._starts.start(body, ticket), True

    async def _client(self, session: JupyterSession, ticket: Ticket) -> HolderClient:
        try:
            return await self._kernels.get(session.kernel_id, ticket, REVEALING)
        except NotFound:
            if not self._kernels.exists(session.kernel_id):
                self._forget(session)
            raise _no_such_session() from None

    # Files.

    def _path(self, session_id: str) -> Path:
        return self._folder / f"{session_id}.json"

    def _read(self, session_id: str) -> JupyterSession:
        try:
            return msgspec.json.decode(self._path(session_id).read_bytes(), type=JupyterSession)
        except (OSError, msgspec.MsgspecError):
            raise _no_such_session() from None

    def _read_theirs(self, session_id: str, ticket: Ticket) -> JupyterSession:
        session = self._read(session_id)
        if not _is_theirs(session, ticket):
            raise _no_such_session()
        return session

    def _read_all(self) -> list[JupyterSession]:
        found = []
        for path in sorted(self._folder.glob("[!.]*.json")):
            try:
                found.append(self._read(path.stem))
            except NotFound:
                # Deleted by another agent in between.
                continue
        return found

    def _write(self, session: JupyterSession) -> None:
        """Write a session's file. Raises `DiskFull`."""
        try:
            write_atomic(self._path(session.id), msgspec.json.encode(session))
        except OSError as error:
            log.error("session_write_failed", problem=str(error))  # noqa: TRY400 - says it all
            raise DiskFull(f"The session cannot be kept: {error.strerror}.") from error

    def _forget(self, session: JupyterSession) -> None:
        self._path(session.id).unlink(missing_ok=True)


def _is_theirs(session: JupyterSession, ticket: Ticket) -> bool:
    return session.owner == str(ticket.principal) or ticket.is_admin


def _no_such_session() -> NotFound:
    return NotFound("There is no such session.")


def _model(session: JupyterSession, client: HolderClient) -> dict[str, Any]:
    model = {
        "id": session.id,
        "path": session.path,
        "name": session.name,
        "type": session.type,
        "kernel": client.model,
    }
    if session.type == "notebook":
        # Clients from before Jupyter 4.1 look here.
        model["notebook"] = {"path": session.path, "name": session.name}
    return model
