"""The agent's process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import uvloop

from relay import limits, processes
from relay import log as logging
from relay.agent.api.access import KernelAccess
from relay.agent.api.app import App
from relay.agent.api.kernelspecs import KernelSpecs
from relay.agent.api.messages import JournalMessages
from relay.agent.api.rest import Rest
from relay.agent.api.sessions import JupyterSessions
from relay.agent.api.start_request import KernelStarts
from relay.agent.holders.registry import HolderRegistry
from relay.agent.launchers.base import Launcher
from relay.agent.launchers.local import LocalLauncher
from relay.agent.launchers.other_user import OtherUserRunner
from relay.agent.launchers.own_user import OwnUserRunner
from relay.agent.privsep.os_users import OsUsers
from relay.agent.privsep.protocol import CHANNEL
from relay.auth.tickets import TicketVerifier
from relay.config import AgentConfig, AgentTls
from relay.connections import HttpServer, page_server, server
from relay.files import FolderError
from relay.metrics import AgentMetrics, agent_registry, page

log = structlog.get_logger(__name__)

_RECORD_MARGIN: Final = 1024 * 1024
"""Bytes that framing adds to the largest message at the most."""


def run(config: AgentConfig) -> None:
    """Serve one cluster's kernels of this node until SIGTERM; the kernels live on.

    Raises:
        StartError: a file or folder is not as it has to be.
    """
    logging.configure(config.log.level, config.log.format, component="agent")
    structlog.contextvars.bind_contextvars(cluster=config.cluster)
    try:
        keys = [Path(path).read_bytes() for path in config.ticket_keys]
        verifier = TicketVerifier(keys, config.cluster)
        context = _tls(config.tls)
        launcher = _launcher(config)
        launcher.open_folders()
    except (OSError, ValueError, FolderError) as error:  # ssl's errors are among them
        raise processes.StartError(str(error)) from error
    with contextlib.ExitStack() as opened:
        scraped = None
        if config.metrics.port is not None:
            listener = processes.listen_with_retry(config.metrics.host, config.metrics.port)
            scraped = opened.enter_context(listener)
        uvloop.run(_run(config, launcher, verifier, context, scraped))


def _launcher(config: AgentConfig) -> Launcher:
    """Return what starts holders. Raises `StartError`, `FolderError` and ``OSError``."""
    state_dir, cluster = Path(config.state_dir), config.cluster
    if config.launch_as is None or config.user is None:
        runner = OwnUserRunner(state_dir, cluster, config.runtime_dir)
        return LocalLauncher(state_dir, cluster, runner)
    users = OsUsers.of_config(config.launch_as, config.user)
    channel = processes.inherited_channel(CHANNEL)
    return LocalLauncher(state_dir, cluster, OtherUserRunner(config, users, channel))


class _Agent:
    """The parts of one agent, put together. ``tasks`` owns its connections to holders."""

    def __init__(
        self,
        config: AgentConfig,
        launcher: Launcher,
        verifier: TicketVerifier,
        tasks: asyncio.TaskGroup,
    ) -> None:
        max_record = config.kernels.message_bytes + _RECORD_MARGIN
        self.holders = HolderRegistry(config, launcher, max_record, tasks)
        kernels = KernelAccess(self.holders)
        kernelspecs = KernelSpecs(f"/{config.cluster}")
        starts = KernelStarts(config, self.holders, kernelspecs)
        folder = Path(config.state_dir) / config.cluster / "sessions"
        self.messages = JournalMessages(
            config.past, message_bytes=config.kernels.message_bytes, max_record=max_record
        )
        rest = Rest(
            config,
            kernels=kernels,
            kernelspecs=kernelspecs,
            starts=starts,
            sessions=JupyterSessions(folder, kernels, starts),
            past=self.messages,
        )
        self.app = App(
            config,
            verifier=verifier,
            holders=self.holders,
            kernels=kernels,
            rest=rest,
            max_record=max_record,
        )


async def _run(
    config: AgentConfig,
    launcher: Launcher,
    verifier: TicketVerifier,
    context: ssl.SSLContext | None,
    scraped: socket.socket | None,
) -> None:
    stopped = _stopped_by_signal()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        agent = _Agent(config, launcher, verifier, tasks)
        http = server(agent.app.handle)
        listener = await loop.create_server(http, sock=_listen(config), ssl=context, backlog=1024)
        if scraped is not None:
            await loop.create_server(_metrics_server(agent.holders), sock=scraped)
        tasks.create_task(agent.holders.find(), name="find kernels")
        if config.shared_uid:
            log.warning("no_isolation_between_users", uid=os.geteuid())
        processes.notify("READY=1")
        log.info("ready", port=listener.sockets[0].getsockname()[1])
        await stopped.wait()
        log.info("stopping")
        listener.close()
        agent.messages.break_off()
        await _drain(agent.app, http, config.drain)
        agent.holders.close()


def _stopped_by_signal() -> asyncio.Event:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # To a daemon SIGHUP means "read the configuration again", never its end.
    loop.add_signal_handler(signal.SIGHUP, log.info, "sighup_ignored")
    return stopped


def _metrics_server(holders: HolderRegistry) -> HttpServer:
    metrics = AgentMetrics(lambda: holders.stats.figures(holders.ready, limits.counts))
    return page_server("/metrics", partial(page, agent_registry(metrics)))


async def _drain(app: App, http: HttpServer, seconds: float) -> None:
    """Close links at once, since edges attach again elsewhere or later; let requests finish."""
    app.end_links()
    http.pre_shutdown()
    await http.shutdown(seconds)


def _listen(config: AgentConfig) -> socket.socket:
    return processes.listen_with_retry(config.listen.host, config.listen.port)


def _tls(settings: AgentTls | None) -> ssl.SSLContext | None:
    if settings is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.key)
    context.load_verify_locations(settings.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
