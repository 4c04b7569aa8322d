"""The edge's parent process: keeps N workers running that share the two listening sockets.

Touches no connection, so that it has little reason to die; it keeps what the workers share about
clients (`ipc`), and the next parent misses nothing of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from relay.auth.audit import AuditEvent, AuditNote
from relay.config import EdgeConfig
from relay.connections import page_server
from relay.edge.ipc.audit_file import AuditFile, audit_service
from relay.edge.ipc.quotas import Quotas, quotas_service
from relay.edge.ipc.server import ParentServer, socket_path
from relay.edge.reload import SharedConfig
from relay.edge.shared_dir import private_folder
from relay.log import get_logger
from relay.metrics import (
    AuditFigures,
    ParentFigures,
    ParentMetrics,
    SharedFolder,
    edge_registry,
    page,
)
from relay.processes import (
    Command,
    ProcessManager,
    StartError,
    claim_notify_socket,
    inherited_listeners,
    listen_with_retry,
    notify,
    stop_all,
    wait_until_ready,
)

LISTENERS: Final = ("https", "wss")
"""The names under which a worker finds its two sockets."""
_MARGIN: Final = 2.0
"""Seconds beyond ``drain`` before a worker is killed; below the supervisor's own patience."""

log = get_logger()


def run(config: EdgeConfig, path: Path) -> int:
    """Run the edge until SIGTERM or SIGINT; the exit code: 0, or 1 where no worker comes up.

    ``path`` is the file that ``config`` was read from, and is read from again at SIGHUP. Raises
    `StartError` where a port is taken.
    """
    claim_notify_socket()
    listeners = listening_sockets(config)
    with contextlib.ExitStack() as opened:
        for listener in listeners.values():
            opened.enter_context(listener)
        metrics = None
        if config.metrics.port is not None:
            metrics = listen_with_retry(config.metrics.host, config.metrics.port)
            opened.enter_context(metrics)
        try:
            folder = opened.enter_context(private_folder())
            settings = SharedConfig(config, path, folder)
            scraped = None if metrics is None else Scraped(SharedFolder(folder), metrics)
        except OSError as error:
            raise StartError(f"no folder to share with the workers: {error}") from error
        shared = None if scraped is None else scraped.folder.path
        command = worker_command(settings.path, listeners, folder, shared)
        audit = None
        if config.audit.file is not None:
            audit = AuditFile(Path(config.audit.file), config.audit.waiting)
            opened.callback(audit.close)
        return asyncio.run(Parent(settings, command, listeners, folder, scraped, audit).run())


class Scraped(NamedTuple):
    """What it takes to serve the workers' metrics."""

    folder: SharedFolder
    listener: socket.socket


def listening_sockets(config: EdgeConfig) -> dict[str, socket.socket]:
    """The two sockets: inherited (``LISTEN_FDS``), else opened as the configuration says."""
    inherited = inherited_listeners()
    if not inherited:
        with contextlib.ExitStack() as opened:
            found = {
                name: opened.enter_context(listen_with_retry(settings.host, settings.port))
                for name, settings in zip(LISTENERS, (config.https, config.wss), strict=True)
            }
            opened.pop_all()
        return found
    if set(inherited) != set(LISTENERS):
        raise StartError(f"LISTEN_FDNAMES must be https and wss, not {', '.join(inherited)}")
    return inherited


def worker_command(
    path: Path,
    listeners: Mapping[str, socket.socket],
    folder: Path,
    metrics_folder: Path | None = None,
) -> Command:
    """How a worker is started; the names in the order of `LISTENERS`.

    ``folder`` is where it finds the parent's socket.
    """
    return Command(
        name="edge worker",
        argv=(
            *(sys.executable, "-P", "-m", "relay.edge.worker"),
            *("--settings", str(path), "--die-with-parent", str(os.getpid())),
            *("--parent-socket", str(socket_path(folder))),
            *(() if metrics_folder is None else ("--metrics-folder", str(metrics_folder))),
        ),
        environment=dict(os.environ),
        listeners={name: listeners[name].fileno() for name in LISTENERS},
    )


class Parent:
    """One run of the parent, for as long as it keeps workers."""

    def __init__(
        self,
        settings: SharedConfig,
        command: Command,
        listeners: Mapping[str, socket.socket],
        folder: Path,
        scraped: Scraped | None = None,
        audit: AuditFile | None = None,
    ) -> None:
        config = settings.accepted
        self._settings = settings
        self._grace = config.drain + _MARGIN
        self._listeners = listeners
        self._keepers = tuple(ProcessManager(command, self._changed) for _ in range(config.workers))
        self._stop = asyncio.Event()
        self._change = asyncio.Event()
        self._reported: tuple[int, ...] = ()
        self._scraped = scraped
        services = [quotas_service(Quotas(config.connections, config.quotas, config.logins))]
        if audit is not None:
            services.append(audit_service(audit))
        self._server = ParentServer(socket_path(folder), services, is_worker=self._is_worker)
        self._audit = audit
        self._workers: frozenset[int] = frozenset()
        self._ended = 0
        self._reloads = 0
        self._told: dict[int, int] = {}
        """How many reloads each worker knows of, by its pid."""

    async def run(self) -> int:
        """Keep the workers until a signal; the exit code."""
        self._handle_signals()
        culprit: ProcessManager | None = None
        if self._scraped is not None:
            await self._serve_metrics(self._scraped)
        await self._server.listen()
        async with asyncio.TaskGroup() as group:
            trying = None
            if self._audit is not None:
                self._audit.keep(AuditNote(time=time.time(), event=AuditEvent.EDGE_STARTED))
                trying = group.create_task(self._audit.keep_trying(), name="keep the audit log")
            for number, keeper in enumerate(self._keepers):
                group.create_task(keeper.run(), name=f"keep edge worker {number}")
            try:
                culprit = await wait_until_ready(self._keepers, self._change, self._stop)
                if culprit is None and not self._stop.is_set():
                    log.info("edge_ready", **self._addresses())
                    notify("READY=1")
                    await self._stop.wait()
            finally:
                await self._end()
                self._server.close()
                if trying is not None:
                    trying.cancel()
        if culprit is None or culprit.last_exit is None:
            return 0
        log.error("workers_failed_to_start", exit_code=culprit.last_exit.code)
        return culprit.last_exit.code if culprit.last_exit.code > 0 else 1

    def _is_worker(self, pid: int) -> bool:
        return any(keeper.child is not None and keeper.child.pid == pid for keeper in self._keepers)

    def _changed(self) -> None:
        self._change.set()
        self._pass_on_reload()
        workers = tuple(keeper.child.pid for keeper in self._keepers if keeper.child is not None)
        self._bury(self._workers.difference(workers))
        self._workers = frozenset(workers)
        if workers != self._reported and notify(f"X_WORKERS={','.join(map(str, workers))}"):
            self._reported = workers

    def _bury(self, ended: frozenset[int]) -> None:
        self._ended += len(ended)
        for pid in ended:
            self._told.pop(pid, None)
            if self._scraped is not None:
                self._scraped.folder.retire(pid)

    async def _serve_metrics(self, scraped: Scraped) -> None:
        audit = self._audit
        metrics = ParentMetrics(
            lambda: ParentFigures(
                workers=len(self._workers),
                worker_ends=self._ended,
                refused_configurations=self._settings.failures,
                audit=AuditFigures() if audit is None else audit.figures,
            )
        )
        serve = page_server("/metrics", partial(page, edge_registry(scraped.folder, metrics)))
        await asyncio.get_running_loop().create_server(serve, sock=scraped.listener)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            for keeper in self._keepers:
                keeper.kill()
        self._stop.set()
        self._change.set()

    def _on_hangup(self) -> None:
        """To a daemon SIGHUP means "read it again, open your logs again", never its end."""
        if self._audit is not None:
            self._audit.write()
        if self._settings.read_again():
            self._reloads += 1
            self._pass_on_reload()

    def _pass_on_reload(self) -> None:
        # A worker that is starting may have read the old one: it hears of it once it is ready.
        for keeper in self._keepers:
            child = keeper.child
            if child is not None and child.ready and self._told.get(child.pid, 0) < self._reloads:
                self._told[child.pid] = self._reloads
                child.signal(signal.SIGHUP)

    async def _end(self) -> None:
        notify("STOPPING=1")
        # Workers close theirs; with the last one gone, new connections are refused at once.
        for listener in self._listeners.values():
            listener.close()
        await stop_all(self._keepers, self._grace)

    def _addresses(self) -> dict[str, str]:
        found = {}
        for name, listener in self._listeners.items():
            host, port, *_ = listener.getsockname()
            found[name] = f"{host}:{port}"
        return found
