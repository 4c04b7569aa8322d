"""The privileged helper: all that has to be root where kernels run as other OS users, and no more.

It is the agent's parent. It keeps one agent running, as the agent's own user, and performs for it
what takes root's rights: it makes kernels' folders for their users, starts holders as these users,
and ends as these users what dead holders have left. It derives from the configuration itself which
principal is which OS user. It reads no file that an agent or a kernel can write, and follows none
of their links. Holders outlive the helper, as they outlive an agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from relay import log as logging
from relay.agent.holder_process import HolderFiles, run_holder
from relay.agent.privsep.cleanup import empty_as_owner
from relay.agent.privsep.folders import UserFolders
from relay.agent.privsep.os_users import OsUser, OsUsers, own_variables
from relay.agent.privsep.protocol import (
    CHANNEL,
    HelperRequest,
    HelperResponse,
    close,
    receive,
    send,
)
from relay.config import AgentConfig, LaunchAs
from relay.errors import Conflict, Forbidden
from relay.files import TRAVERSABLE
from relay.kernel_folders import is_hidden
from relay.model import Principal
from relay.processes import (
    Command,
    ProcessManager,
    StartError,
    claim_notify_socket,
    notify,
    wait_until_ready,
)
from relay.routing.names import is_kernel_id

log = structlog.get_logger(__name__)

_MARGIN: Final = 3.0
"""Seconds beyond the agent's ``drain`` before it is killed."""
_CLEANUPS: Final = 3
"""Times that a folder is tried to be emptied; the next helper tries again."""


def run(config: AgentConfig, path: Path, environ: Mapping[str, str]) -> int:
    """Run an agent until SIGTERM or SIGINT and return the exit code.

    ``path`` is the file that ``config`` was read from: the agent reads it itself.

    Raises:
        StartError: the configuration, or what this process may do, does not suffice.
    """
    claim_notify_socket()
    logging.configure(config.log.level, config.log.format, component="privileged_helper")
    structlog.contextvars.bind_contextvars(cluster=config.cluster)
    if os.geteuid() != 0:
        raise StartError("launch_as: start the agent as root; it runs as its own user (user)")
    if config.launch_as is None or config.user is None or config.runtime_dir is None:
        raise StartError("launch_as is not set")
    _require_roots(path)
    users = OsUsers.of_config(config.launch_as, config.user)
    for folder in (config.state_dir, config.runtime_dir):
        _provide(Path(folder), users.agent)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(0)
        command = agent_command(path, users.agent, environ, theirs.fileno())
        folders = UserFolders(
            Path(config.state_dir), config.cluster, Path(config.runtime_dir), users.agent
        )
        environment = config.environment.inherited(environ)
        holders = _Holders(config.launch_as, users, folders, environment)
        return asyncio.run(PrivilegedHelper(command, config.drain + _MARGIN, holders, ours).run())


def agent_command(path: Path, user: OsUser, environ: Mapping[str, str], channel: int) -> Command:
    """Return how the agent is started: as root, which is the first thing that it gives up."""
    return Command(
        name="agent",
        argv=(
            *(sys.executable, "-P", "-m", "relay", "agent", "--config", str(path.absolute())),
            *("--become", user.name, "--die-with-parent", str(os.getpid())),
        ),
        environment=own_variables(environ, user),
        listeners={CHANNEL: channel},
    )


def _require_roots(path: Path) -> None:
    """Raise `StartError` unless root alone can write the configuration, which names OS users."""
    for each in (path, path.absolute().parent):
        status = each.stat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise StartError(f"launch_as: {each} must be root's, and writable by nobody else")


def _provide(folder: Path, agent: OsUser) -> None:
    """Make a folder for the agent, unless it exists."""
    try:
        folder.mkdir(mode=TRAVERSABLE, parents=True)
    except FileExistsError:
        return
    except OSError as error:
        raise StartError(f"cannot make {folder}: {error.strerror}") from error
    os.chown(folder, agent.uid, agent.gid, follow_symlinks=False)


class _Holders:
    """Starts holders, and ends what they left, as their users."""

    def __init__(
        self,
        settings: LaunchAs,
        users: OsUsers,
        folders: UserFolders,
        environment: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._users = users
        self._folders = folders
        self._environment = environment

    def prepare(self, request: HelperRequest) -> None:
        """Make a kernel's folder. Raises `Forbidden`, `Conflict` and ``OSError``."""
        user = self._users.of(Principal.parse(request.owner))
        self._folders.make_socket_folder(user)
        self._folders.make_kernel_folder(request.kernel_id, user)

    def start(self, request: HelperRequest, files: list[int]) -> int:
        """Start a holder and return its pid. Raises `Forbidden` and ``OSError``."""
        if len(files) != len(HolderFiles._fields):
            raise ValueError("a start comes with the holder's files")
        user = self._users.of(Principal.parse(request.owner))
        if self._folders.uid(request.kernel_id) != user.uid:
            raise Forbidden("The kernel's folder is another OS user's.")
        self._folders.make_socket_folder(user)
        options = ["--agent-uid", str(self._users.agent.uid)]
        if self._settings.no_new_privileges:
            options.append("--no-new-privileges")
        pid = run_holder(
            self._folders.kernel_folder(request.kernel_id),
            HolderFiles(*files),
            own_variables(self._environment, user),
            options,
            on_end=lambda: self._folders.drop(request.kernel_id),
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            umask=int(self._settings.umask, 8),
            cwd="/",
        )
        log.info(
            "holder_launched",
            kernel_id=request.kernel_id,
            holder_pid=pid,
            os_user=user.name,
            principal=request.owner,
        )
        return pid

    async def clean_up(self, kernel_id: str) -> None:
        """End what runs for a kernel and free its id. Raises ``OSError``."""
        uid = self._uid(kernel_id)
        await self._empty(self._folders.hide(kernel_id), uid)

    async def _empty(self, hidden: str, uid: int) -> None:
        # The folder's user may end a process that runs as that user.
        for _ in range(_CLEANUPS):
            await empty_as_owner(self._folders.kernel_folder(hidden), uid)
            if self._folders.drop(hidden):
                return
        log.warning("folder_delete_failed", folder=hidden, uid=uid)

    def _uid(self, name: str) -> int:
        uid = self._folders.uid(name)
        if uid in (0, self._users.agent.uid):
            raise PermissionError(errno.EPERM, "the folder is no kernel user's")
        return uid

    async def sweep(self) -> None:
        """Delete what helpers that died left behind."""
        for name in self._folders.names():
            self._folders.drop(name)
            with contextlib.suppress(OSError):
                if is_hidden(name):
                    await self._empty(name, self._uid(name))


class PrivilegedHelper:
    """One run: keeps an agent running and performs its requests."""

    def __init__(
        self, command: Command, grace: float, holders: _Holders, channel: socket.socket
    ) -> None:
        self._agent = ProcessManager(command, self._changed)
        self._grace = grace
        self._holders = holders
        self._channel = channel
        self._stop = asyncio.Event()
        self._change = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    async def run(self) -> int:
        """Run until a signal and return the exit code."""
        self._handle_signals()
        culprit: ProcessManager | None = None
        async with asyncio.TaskGroup() as self._tasks:
            sweeper = self._tasks.create_task(self._holders.sweep(), name="sweep")
            asyncio.get_running_loop().add_reader(self._channel, self._read)
            self._tasks.create_task(self._agent.run(), name="keep agent")
            try:
                culprit = await wait_until_ready((self._agent,), self._change, self._stop)
                if culprit is None and not self._stop.is_set():
                    log.info("agent_ready", agent_pid=self._agent.child and self._agent.child.pid)
                    notify("READY=1")
                    await self._stop.wait()
            finally:
                notify("STOPPING=1")
                await self._agent.stop(self._grace)
                asyncio.get_running_loop().remove_reader(self._channel)
                sweeper.cancel()
        if culprit is None or culprit.last_exit is None:
            return 0
        return culprit.last_exit.code if culprit.last_exit.code > 0 else 1

    def _changed(self) -> None:
        self._change.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._agent.kill()
        self._stop.set()
        self._change.set()

    def _pass_on(self, number: signal.Signals) -> None:
        if self._agent.child is not None:
            self._agent.child.signal(number)

    def _read(self) -> None:
        while True:
            try:
                request, files = receive(self._channel, HelperRequest)
            except BlockingIOError:
                return
            except (EOFError, OSError) as error:
                log.error("requests_not_read", problem=repr(error))  # noqa: TRY400 - says it all
                return
            if request is not None:
                self._tasks.create_task(self._respond(request, files), name=request.op)

    async def _respond(self, request: HelperRequest, files: list[int]) -> None:
        try:
            response = await self._perform(request, files)
        except Forbidden as error:
            response = HelperResponse(id=request.id, kind="forbidden", problem=error.message)
        except Conflict as error:
            response = HelperResponse(id=request.id, kind="conflict", problem=error.message)
        except (OSError, ValueError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
            problem = getattr(error, "strerror", None) or str(error)
            log.warning(
                "request_failed", op=request.op, kernel_id=request.kernel_id, problem=problem
            )
            response = HelperResponse(id=request.id, kind="os", problem=problem, errno=code)
        finally:
            close(files)
        with contextlib.suppress(OSError):
            send(self._channel, response)

    async def _perform(self, request: HelperRequest, files: list[int]) -> HelperResponse:
        if not is_kernel_id(request.kernel_id):
            # It becomes a path.
            raise ValueError("that is no kernel id")
        match request.op:
            case "prepare":
                self._holders.prepare(request)
            case "start":
                return HelperResponse(id=request.id, pid=self._holders.start(request, files))
            case "clean_up":
                await self._holders.clean_up(request.kernel_id)
        return HelperResponse(id=request.id)
