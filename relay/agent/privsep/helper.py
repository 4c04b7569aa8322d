"""The agent's parent where kernels run as other OS users: all that has to be root, and no more.

It keeps one agent running, as the agent's own user, and does for it what takes root's rights:
makes kernels' folders for their users, starts holders as these, and ends as these what dead
holders have left. Whose kernel is whose OS user's it finds out from the configuration itself. It
reads no file that an agent or a kernel can write, and follows none of their links. Holders outlive
it, as they outlive an agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import structlog

from relay import log as logging
from relay.agent.launchers.local import run_holder
from relay.agent.privsep.cleanup import empty_as_owner
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
from relay.kernel_folders import KernelFolder, hidden_name, is_hidden, kernels_folder
from relay.model import Principal
from relay.processes import (
    Command,
    ProcessManager,
    StartError,
    claim_notify_socket,
    notify,
    until_ready,
)
from relay.routing.routes import is_kernel_id

log = structlog.get_logger(__name__)

_MARGIN: Final = 3.0
"""Seconds beyond the agent's ``drain`` before it is killed."""
_BURIALS: Final = 3
"""Times that a folder is tried to be emptied; the next launcher tries again."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KERNEL_MODE: Final = 0o3770
"""Of a kernel's folder: its user's, and the agent's by the group. Sticky, since jupyter_client
makes it so, and would take the setgid bit away in passing."""
_SOCKETS_MODE: Final = 0o2750
"""Of the folder of a user's sockets: the agent passes through."""


def run(config: AgentConfig, path: Path, environ: Mapping[str, str]) -> int:
    """Run an agent until SIGTERM or SIGINT; the exit code.

    ``path`` is the file that ``config`` was read from: the agent reads it itself. Raises
    `StartError`.
    """
    claim_notify_socket()
    logging.configure(config.log.level, config.log.format, component="launcher")
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
        folders = _Folders(
            Path(config.state_dir), config.cluster, Path(config.runtime_dir), users.agent
        )
        environment = config.environment.inherited(environ)
        holders = _Holders(config.launch_as, users, folders, environment)
        return asyncio.run(PrivilegedHelper(command, config.drain + _MARGIN, holders, ours).run())


def agent_command(path: Path, user: OsUser, environ: Mapping[str, str], channel: int) -> Command:
    """How the agent is started: as root, which is the first thing that it gives up."""
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
    """Whoever can write the configuration says who runs as whom."""
    for each in (path, path.absolute().parent):
        status = each.stat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise StartError(f"launch_as: {each} must be root's, and writable by nobody else")


def _provide(folder: Path, agent: OsUser) -> None:
    """Make a folder for the agent, where there is none."""
    try:
        folder.mkdir(mode=TRAVERSABLE, parents=True)
    except FileExistsError:
        return
    except OSError as error:
        raise StartError(f"cannot make {folder}: {error.strerror}") from error
    os.chown(folder, agent.uid, agent.gid, follow_symlinks=False)


class _Folders:
    """The folders that kernels' users have among the agent's.

    The agent owns what they stand in. Each is opened without following a link, and changed
    through that descriptor: an agent in the wrong hands moves root nowhere.
    """

    def __init__(self, state_dir: Path, cluster: str, runtime: Path, agent: OsUser) -> None:
        self._state_dir = state_dir
        self._cluster = cluster
        self._runtime = runtime
        self._agent = agent

    def kernel_folder(self, name: str) -> KernelFolder:
        """A kernel's folder, by its path."""
        return KernelFolder(kernels_folder(self._state_dir, self._cluster) / name)

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[int]:
        opened: list[int] = []
        try:
            opened.append(os.open(self._state_dir, _FOLDER))
            for name in (self._cluster, kernels_folder(Path(), self._cluster).name):
                opened.append(os.open(name, _FOLDER, dir_fd=opened[-1]))
            yield opened[-1]
        finally:
            close(opened)

    def names(self) -> list[str]:
        """Every kernel's folder, those that are being deleted too."""
        try:
            with self._kernels() as kernels:
                return [entry.name for entry in os.scandir(kernels)]
        except FileNotFoundError:
            return []

    def uid(self, name: str) -> int:
        """Whose a kernel's folder is. Raises ``OSError``."""
        with self._kernels() as kernels:
            status = os.stat(name, dir_fd=kernels, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return status.st_uid

    def make_kernels(self, name: str, user: OsUser) -> None:
        """Make a kernel's folder for a user. Raises `Conflict` for another's, and ``OSError``."""
        with self._kernels() as kernels:
            if self._make(kernels, name, user, _KERNEL_MODE):
                return
            # What a kernel leaves when it has ended is empty.
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=kernels)
            if not self._make(kernels, name, user, _KERNEL_MODE):
                raise Conflict("This kernel id is taken.")

    def make_sockets(self, user: OsUser) -> None:
        """Make the folder of a user's sockets. Raises ``OSError``."""
        runtime = os.open(self._runtime, _FOLDER)
        try:
            if not self._make(runtime, str(user.uid), user, _SOCKETS_MODE):
                raise PermissionError(errno.EPERM, "the folder of sockets is another user's")
        finally:
            os.close(runtime)

    def _make(self, parent: int, name: str, user: OsUser, mode: int) -> bool:
        """Whether there is a folder of this user now."""
        made = False
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            made = True
        folder = os.open(name, _FOLDER, dir_fd=parent)
        try:
            if made and os.fstat(folder).st_uid == 0:
                os.fchown(folder, user.uid, self._agent.gid)
                os.fchmod(folder, mode)
            return os.fstat(folder).st_uid == user.uid
        finally:
            os.close(folder)

    def hide(self, name: str) -> str:
        """Free a kernel's id: its folder's new name. Raises ``OSError``."""
        hidden = hidden_name(name)
        with self._kernels() as kernels:
            os.rename(name, hidden, src_dir_fd=kernels, dst_dir_fd=kernels)
        return hidden

    def drop(self, name: str) -> bool:
        """Delete a kernel's folder that its holder has emptied; whether it is gone."""
        try:
            with self._kernels() as kernels:
                os.rmdir(name, dir_fd=kernels)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class _Holders:
    """Starts and buries holders as their users."""

    def __init__(
        self,
        settings: LaunchAs,
        users: OsUsers,
        folders: _Folders,
        environment: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._users = users
        self._folders = folders
        self._environment = environment

    def prepare(self, order: HelperRequest) -> None:
        """Raises `Forbidden`, `Conflict` and ``OSError``."""
        user = self._users.of(Principal.parse(order.owner))
        self._folders.make_sockets(user)
        self._folders.make_kernels(order.kernel_id, user)

    def start(self, order: HelperRequest, files: list[int]) -> int:
        """The holder's pid. Raises `Forbidden` and ``OSError``."""
        lock, log_file = files
        user = self._users.of(Principal.parse(order.owner))
        if self._folders.uid(order.kernel_id) != user.uid:
            raise Forbidden("The kernel's folder is another OS user's.")
        self._folders.make_sockets(user)
        options = ["--agent-uid", str(self._users.agent.uid)]
        if self._settings.no_new_privileges:
            options.append("--no-new-privileges")
        pid = run_holder(
            self._folders.kernel_folder(order.kernel_id),
            lock,
            log_file,
            own_variables(self._environment, user),
            options,
            ended=lambda: self._folders.drop(order.kernel_id),
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            umask=int(self._settings.umask, 8),
            cwd="/",
        )
        log.info(
            "launched",
            kernel_id=order.kernel_id,
            holder_pid=pid,
            os_user=user.name,
            principal=order.owner,
        )
        return pid

    async def bury(self, kernel_id: str) -> None:
        """Raises ``OSError``."""
        uid = self._uid(kernel_id)
        await self._empty(self._folders.hide(kernel_id), uid)

    async def _empty(self, hidden: str, uid: int) -> None:
        # Its user may end what runs as that user.
        for _ in range(_BURIALS):
            await empty_as_owner(self._folders.kernel_folder(hidden), uid)
            if self._folders.drop(hidden):
                return
        log.warning("folder_not_deleted", folder=hidden, uid=uid)

    def _uid(self, name: str) -> int:
        uid = self._folders.uid(name)
        if uid in (0, self._users.agent.uid):
            raise PermissionError(errno.EPERM, "the folder is no kernel user's")
        return uid

    async def sweep(self) -> None:
        """Delete what launchers that died left behind."""
        for name in self._folders.names():
            self._folders.drop(name)
            with contextlib.suppress(OSError):
                if is_hidden(name):
                    await self._empty(name, self._uid(name))


class PrivilegedHelper:
    """One run: keeps an agent and obeys it."""

    def __init__(
        self, command: Command, grace: float, holders: _Holders, channel: socket.socket
    ) -> None:
        self._keeper = ProcessManager(command, self._changed)
        self._grace = grace
        self._holders = holders
        self._channel = channel
        self._stop = asyncio.Event()
        self._change = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    async def run(self) -> int:
        """Run until a signal; the exit code."""
        self._handle_signals()
        culprit: ProcessManager | None = None
        async with asyncio.TaskGroup() as self._tasks:
            sweeper = self._tasks.create_task(self._holders.sweep(), name="sweep")
            asyncio.get_running_loop().add_reader(self._channel, self._read)
            self._tasks.create_task(self._keeper.run(), name="keep agent")
            try:
                culprit = await until_ready((self._keeper,), self._change, self._stop)
                if culprit is None and not self._stop.is_set():
                    log.info("launching", agent_pid=self._keeper.child and self._keeper.child.pid)
                    notify("READY=1")
                    await self._stop.wait()
            finally:
                notify("STOPPING=1")
                await self._keeper.stop(self._grace)
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
            self._keeper.kill()
        self._stop.set()
        self._change.set()

    def _pass_on(self, number: signal.Signals) -> None:
        if self._keeper.child is not None:
            self._keeper.child.signal(number)

    def _read(self) -> None:
        while True:
            try:
                order, files = receive(self._channel, HelperRequest)
            except BlockingIOError:
                return
            except (EOFError, OSError) as error:
                log.error("orders_not_read", problem=repr(error))  # noqa: TRY400 - says it all
                return
            if order is not None:
                self._tasks.create_task(self._obey(order, files), name=order.op)

    async def _obey(self, order: HelperRequest, files: list[int]) -> None:
        try:
            done = await self._do(order, files)
        except Forbidden as error:
            done = HelperResponse(id=order.id, kind="forbidden", problem=error.message)
        except Conflict as error:
            done = HelperResponse(id=order.id, kind="conflict", problem=error.message)
        except (OSError, ValueError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
            problem = getattr(error, "strerror", None) or str(error)
            log.warning("order_failed", op=order.op, kernel_id=order.kernel_id, problem=problem)
            done = HelperResponse(id=order.id, kind="os", problem=problem, errno=code)
        finally:
            close(files)
        with contextlib.suppress(OSError):
            send(self._channel, done)

    async def _do(self, order: HelperRequest, files: list[int]) -> HelperResponse:
        if not is_kernel_id(order.kernel_id):
            # It becomes a path.
            raise ValueError("that is no kernel id")
        match order.op:
            case "prepare":
                self._holders.prepare(order)
            case "start":
                return HelperResponse(id=order.id, pid=self._holders.start(order, files))
            case "bury":
                await self._holders.bury(order.kernel_id)
        return HelperResponse(id=order.id)
