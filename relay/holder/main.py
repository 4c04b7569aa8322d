"""The holder's process: one kernel, from its launch to its end.

Started by an agent, apart from it: nothing that happens to agents, edge or supervisor touches a
holder. It ends with its kernel, or on SIGTERM, which ends the kernel too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Final

import msgspec
import structlog
import uvloop

from relay import limits
from relay import log as logging
from relay.bridge.control import Phase, Status
from relay.bridge.session import SessionLimits
from relay.config.holder import HolderConfig
from relay.errors import KernelError, OtherVersion
from relay.files import write_shared
from relay.holder.backends.kernel_process import KernelProcess, LaunchPlan
from relay.holder.broker.broker import Broker
from relay.holder.broker.recovery import NOTICE, make_up
from relay.holder.culling import Usage, is_idle
from relay.holder.journal.replies import SHARE, ReplyJournal
from relay.holder.journal.store import Journal
from relay.holder.lifecycle import Lifecycle
from relay.holder.serve.client import ChannelLimits
from relay.holder.serve.server import HolderServer
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.requests import RequestStore
from relay.holder.sessions.store import SessionStore
from relay.kernel_folders import KernelFolder, KernelRecord, process_started, remove
from relay.processes import hide_from_user, refuse_new_privileges

log = structlog.get_logger(__name__)

_ROOT: Final = 0
_FAREWELL: Final = 20.0
"""Seconds in which clients may read the rest of what a kernel said that is gone."""
_TICK: Final = 1.0
"""Seconds between looks at what changes all the time."""


def main() -> None:
    """Run one holder in the folder given on the command line."""
    parser = argparse.ArgumentParser(prog="relay.holder")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--lock", type=int, required=True, help="descriptor of the taken lock")
    parser.add_argument("--serving", type=int, help="descriptor to close when the socket is served")
    parser.add_argument("--agent-uid", type=int, help="the OS user of agents; ours by default")
    parser.add_argument("--no-new-privileges", action="store_true", help="for the kernel, too")
    arguments = parser.parse_args()
    agents = {os.geteuid()}
    if arguments.agent_uid is not None:
        # Our own user is the kernel's, too.
        agents = {arguments.agent_uid, _ROOT}
        hide_from_user()
    if arguments.no_new_privileges:
        refuse_new_privileges()
    kernel_folder = KernelFolder(arguments.folder)
    # The lock is held by this process alone, for as long as it lives: no child inherits it.
    os.set_inheritable(arguments.lock, False)
    if arguments.serving is not None:
        os.set_inheritable(arguments.serving, False)
    config = _read_config(kernel_folder)
    logging.configure(config.log.level, config.log.format, component="holder")
    structlog.contextvars.bind_contextvars(
        kernel_id=kernel_folder.kernel_id, request_id=config.request_id
    )
    uvloop.run(_run(kernel_folder, config, frozenset(agents), arguments.serving))


def _read_config(kernel_folder: KernelFolder) -> HolderConfig:
    """What the agent asks for. Exits where the folder is of a version that is not known here."""
    try:
        kernel_folder.check_versions()
    except OtherVersion as error:
        raise SystemExit(f"version_refused: {error.message}") from error
    return msgspec.json.decode(kernel_folder.request.read_bytes(), type=HolderConfig)


async def _run(
    kernel_folder: KernelFolder, config: HolderConfig, agents: frozenset[int], serving: int | None
) -> None:
    holder = Holder(kernel_folder, config, agents, kernel_folder.read_record(), serving)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:

        def stop() -> None:
            tasks.create_task(holder.operate("shutdown"), name="shutdown")

        loop.add_signal_handler(signal.SIGTERM, stop)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(ignored, lambda: None)
        await holder.run()
        loop.remove_signal_handler(signal.SIGTERM)
    remove(kernel_folder)


class Holder:
    """Puts journal, sessions, kernel and server together.

    ``agents`` are the OS users that it serves. ``left`` is the record of a holder that died: its
    kernel is adopted. ``serving`` is a descriptor that is closed when the socket is served: the
    agent that started this holder waits for that.
    """

    def __init__(
        self,
        kernel_folder: KernelFolder,
        config: HolderConfig,
        agents: frozenset[int],
        left: KernelRecord | None = None,
        serving: int | None = None,
    ) -> None:
        self._kernel_folder = kernel_folder
        self._config = config
        self._left = left
        self._serving = serving
        self._noted = True
        """Whether what there is to note for others has been."""
        for_answers = config.journal.bytes // SHARE
        journal = Journal.open(
            kernel_folder.journal,
            max_bytes=config.journal.bytes - for_answers,
            segment_bytes=config.journal.segment_bytes,
            tail_bytes=config.journal.tail_bytes,
        )
        answers = ReplyJournal(kernel_folder.journal / "answers", for_answers)
        remembered = msgspec.convert(config.sessions, SessionLimits, from_attributes=True)
        # On a full disk there may have been room for an answer only.
        last = max(journal.last_seq, answers.last_seq)
        self._memory = SessionStore.open(kernel_folder.sessions, remembered, last, time.time())
        self._requests = RequestStore(kernel_folder.requests, remembered.requests)
        guests = GrantStore(kernel_folder, config.kernels.max_grants)
        self._broker = Broker(self._memory, journal, answers, self._requests, guests, self._changed)
        if left is not None:
            self._broker.synthetic.kernel_session = left.kernel_session
        self._process = KernelProcess(_plan(kernel_folder, config))
        self._lifecycle = Lifecycle(
            self._process,
            self._broker,
            config.kernels,
            identity=secrets.token_hex(8),
            on_change=self._changed,
            on_note=self._note,
        )
        self._server = HolderServer(
            self._broker,
            status=self._status,
            operate=self.operate,
            agents=agents,
            max_record=config.max_record,
            limits=ChannelLimits(
                message_bytes=config.kernels.message_bytes, journal_bytes=config.journal.bytes
            ),
        )

    async def run(self) -> None:
        """Serve from the first moment, so that whoever asked for the kernel can wait for it.

        A kernel that was up already is adopted before that: clients find it as it was.
        """
        if self._left is None:
            self._note()
        else:
            await self._lifecycle.adopt(self._left, NOTICE)
        await self._server.listen(Path(self._config.socket))
        if self._serving is not None:
            os.close(self._serving)
        async with asyncio.TaskGroup() as tasks:
            watchers = [
                tasks.create_task(self._watch(), name="watch"),
                tasks.create_task(self._cull(), name="cull"),
            ]
            if self._left is not None:
                watchers.append(tasks.create_task(self._make_up(), name="make up"))
            await self._lifecycle.run()
            for watcher in watchers:
                watcher.cancel()
        self._broker.end_all(1000, "the kernel was shut down")
        await self._server.deserted(_FAREWELL)
        self._server.close()
        self._broker.journal.close()
        self._broker.answers.close()
        self._memory.close()
        self._requests.close()
        Path(self._config.socket).unlink(missing_ok=True)
        log.info("ended", phase=self._lifecycle.phase)

    async def _make_up(self) -> None:
        await make_up(self._broker, self._requests)
        self._lifecycle.made_up()

    async def operate(self, operation: str) -> None:
        """Do what an agent asks. Raises `KernelError`."""
        match operation:
            case "interrupt":
                await self._lifecycle.interrupt()
            case "restart":
                await self._lifecycle.restart()
            case "shutdown":
                await self._lifecycle.stop()
            case "status":
                # Asked only to be told the status from now on.
                pass
            case _:
                msg = "A holder knows no such operation."
                raise KernelError(msg)

    def _changed(self) -> None:
        self._server.changed()

    def _status(self) -> Status:
        return Status(
            phase=self._lifecycle.phase,
            name=self._config.name,
            owner=self._config.owner,
            execution_state=self._broker.activity.state,
            last_activity=self._broker.activity.last,
            connections=self._broker.connections,
            failure=self._lifecycle.failure,
            figures=self._broker.figures,
            knows_viewers=True,
        )

    def _note(self) -> None:
        """Leave word of holder and kernel for whoever finds the folder."""
        pid = self._process.pid
        record = KernelRecord(
            holder_pid=os.getpid(),
            holder_started=process_started(os.getpid()) or 0,
            epoch=self._broker.epoch,
            state=self._lifecycle.state,
            identities=self._lifecycle.identities,
            kernel_pid=pid,
            kernel_started=process_started(pid) if pid else None,
            kernel_session=self._broker.synthetic.kernel_session,
            **self._process.noted,
        )
        try:
            write_shared(self._kernel_folder.record, msgspec.json.encode(record))
        except OSError as error:
            # A holder is no worse without it, unless it dies: until there is room again.
            if self._noted:
                log.error("record_not_written", problem=str(error))  # noqa: TRY400 - says it all
            self._noted = False
        else:
            self._noted = True

    async def _watch(self) -> None:
        """Tell agents of activity, and keep the kernel's own output from filling the disk."""
        told = self._broker.activity.last, self._broker.figures
        while True:
            await asyncio.sleep(_TICK)
            found = self._broker.activity.last, self._broker.figures
            if found != told:
                told = found
                self._changed()
            if not self._noted:
                self._note()
            self._cut_log(self._config.kernels.log_bytes)

    async def _cull(self) -> None:
        """Shut the kernel down when nobody has used it for long enough."""
        settings = self._config.culling
        while settings.cull_idle_timeout > 0:
            await asyncio.sleep(settings.cull_interval)
            usage = Usage(
                self._broker.activity.last, self._broker.activity.state, self._broker.connections
            )
            if self._lifecycle.phase is Phase.READY and is_idle(usage, settings, time.time()):
                log.warning("culled", setting="culling.cull_idle_timeout")
                limits.record("culling.cull_idle_timeout")
                self._broker.say(
                    "[relay] This kernel is shut down: nobody has used it for "
                    f"{settings.cull_idle_timeout:g} s (culling.cull_idle_timeout).\n"
                )
                await self._lifecycle.stop()

    def _cut_log(self, limit: int) -> None:
        path = self._kernel_folder.kernel_log
        with contextlib.suppress(OSError):
            if path.stat().st_size > limit:
                # The kernel appends: it goes on at the new end.
                os.truncate(path, 0)
                log.warning("kernel_log_cut", limit=limit, setting="kernels.log_bytes")
                limits.record("kernels.log_bytes")


def _plan(kernel_folder: KernelFolder, config: HolderConfig) -> LaunchPlan:
    return LaunchPlan(
        kernel_id=kernel_folder.kernel_id,
        name=config.name,
        environment=config.environment,
        parameters=config.parameters,
        working_folder=config.working_folder,
        transport=config.kernels.transport,
        port_range=config.kernels.port_range,
        connection_file=kernel_folder.connection_file,
        log_file=kernel_folder.kernel_log,
        ipc_prefix=Path(config.socket).with_suffix(""),
        shutdown_timeout=config.kernels.shutdown_timeout,
    )
