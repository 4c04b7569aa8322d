"""One holder: journal, sessions, kernel and server put together."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from relay.bridge.control import Status
from relay.bridge.session_table import SessionLimits
from relay.config.holder import HolderConfig
from relay.errors import KernelError
from relay.holder.backends.base import KernelBackend
from relay.holder.backends.kernel_process import LaunchPlan
from relay.holder.backends.local import LocalBackend
from relay.holder.broker.broker import Broker
from relay.holder.broker.recovery import NOTICE, recover
from relay.holder.culling import cull
from relay.holder.journal.replies import SHARE, ReplyJournal
from relay.holder.journal.store import Journal
from relay.holder.lifecycle import Lifecycle
from relay.holder.record import RecordFile
from relay.holder.serve.client import ChannelLimits
from relay.holder.serve.server import HolderServer
from relay.holder.sessions import version1
from relay.holder.sessions.grants import GrantStore
from relay.holder.sessions.store import SessionStore
from relay.kernel_folders import KernelFolder, KernelRecord

log = structlog.get_logger(__name__)

_READ_REST: Final = 20.0
"""Seconds in which clients may read the rest of what a kernel said that is gone."""
_TICK: Final = 1.0
"""Seconds between looks at what changes all the time."""


class Holder:
    """Runs one kernel, of this machine unless another ``backend`` is given.

    ``agents`` are the OS users that it serves. ``left`` is the record of a holder that died: its
    kernel is adopted. ``on_serving`` is called once the socket is served.
    """

    def __init__(
        self,
        kernel_folder: KernelFolder,
        config: HolderConfig,
        agents: frozenset[int],
        left: KernelRecord | None = None,
        on_serving: Callable[[], None] = lambda: None,
        backend: KernelBackend | None = None,
    ) -> None:
        self._config = config
        self._left = left
        self._on_serving = on_serving
        self._record = RecordFile(kernel_folder)
        if left is not None:
            self._record.note_version(left)
        self._store, self._broker = _open(kernel_folder, config, self._changed)
        if left is not None:
            self._broker.synthetic.kernel_session = left.kernel_session
        plan = _plan(kernel_folder, config)
        self._backend = backend or LocalBackend(plan, secrets.token_hex(8))
        self._lifecycle = Lifecycle(
            self._backend,
            self._broker,
            config.kernels,
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
        """Serve before the kernel is launched, so that agents can follow its start.

        A kernel that was up already is adopted before that: clients find it as it was.
        """
        if self._left is None:
            self._note()
        else:
            await self._lifecycle.adopt(self._left, NOTICE)
        await self._server.listen(Path(self._config.socket))
        self._on_serving()
        async with asyncio.TaskGroup() as tasks:
            culling = cull(self._broker, self._lifecycle, self._config.culling)
            watchers = [
                tasks.create_task(self._watch(), name="watch"),
                tasks.create_task(culling, name="cull"),
            ]
            if self._left is not None:
                watchers.append(tasks.create_task(self._recover(), name="recover"))
            await self._lifecycle.run()
            for watcher in watchers:
                watcher.cancel()
        await self._close()
        log.info("holder_ended", phase=self._lifecycle.phase)

    async def _close(self) -> None:
        self._broker.outbound.end_all(1000, "the kernel was shut down")
        await self._server.deserted(_READ_REST)
        self._server.close()
        self._broker.outbound.close()
        self._store.close()
        Path(self._config.socket).unlink(missing_ok=True)

    async def _recover(self) -> None:
        await recover(self._broker)
        self._lifecycle.recovered()

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
                raise KernelError("A holder knows no such operation.")

    def _changed(self) -> None:
        self._server.changed()

    def _status(self) -> Status:
        return Status(
            phase=self._lifecycle.phase,
            name=self._config.name,
            owner=self._config.owner,
            execution_state=self._broker.activity.state,
            last_activity=self._broker.activity.last,
            connections=self._broker.sessions.connections,
            failure=self._lifecycle.failure,
            figures=self._broker.figures,
            knows_viewers=True,
        )

    def _note(self) -> None:
        self._record.note(
            self._backend,
            epoch=self._broker.sessions.epoch,
            state=self._lifecycle.state,
            kernel_session=self._broker.synthetic.kernel_session,
        )

    async def _watch(self) -> None:
        """Tell agents of activity, and keep the kernel's own output from filling the disk."""
        told = self._broker.activity.last, self._broker.figures
        while True:
            await asyncio.sleep(_TICK)
            found = self._broker.activity.last, self._broker.figures
            if found != told:
                told = found
                self._changed()
            if self._record.is_behind:
                self._note()
            self._backend.trim_log(self._config.kernels.log_bytes)


def _open(
    kernel_folder: KernelFolder, config: HolderConfig, on_change: Callable[[], None]
) -> tuple[SessionStore, Broker]:
    """Open the folder's files, as an earlier holder may have left them."""
    for_replies = config.journal.bytes // SHARE
    journal = Journal.open(
        kernel_folder.journal,
        max_bytes=config.journal.bytes - for_replies,
        segment_bytes=config.journal.segment_bytes,
        tail_bytes=config.journal.tail_bytes,
    )
    replies = ReplyJournal(kernel_folder.journal / "answers", for_replies)
    # On a full disk there may have been room for a reply only.
    store = _open_store(kernel_folder, config, max(journal.last_seq, replies.last_seq))
    grants = GrantStore(kernel_folder, config.kernels.max_grants)
    return store, Broker(store, journal, replies, grants, on_change)


def _open_store(kernel_folder: KernelFolder, config: HolderConfig, last_seq: int) -> SessionStore:
    """The log of clients and requests. In version 1 there are two files; one of them stays."""
    bounds = msgspec.convert(config.sessions, SessionLimits, from_attributes=True)
    left = version1.read_requests(kernel_folder.requests)
    store = SessionStore.open(kernel_folder.sessions, bounds, last_seq, time.time(), left)
    if store.failed is None:
        kernel_folder.requests.unlink(missing_ok=True)
    return store


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
