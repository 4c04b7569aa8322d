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
from relay.agent.launchers.local import Launcher, LocalLauncher
from relay.agent.launchers.other_user import OtherUserLauncher
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

    Raises `StartError` for a file or folder that is not as it has to be.
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
            listener = processes.listen_patiently(config.metrics.host, config.metrics.port)
            scraped = opened.enter_context(listener)
        uvloop.run(_run(config, launcher, verifier, context, scraped))


def _launcher(config: AgentConfig) -> Launcher:
    """Who starts holders. Raises `StartError`, `FolderError` and ``OSError``."""
    if config.launch_as is None or config.user is None:
        return LocalLauncher(Path(config.state_dir), config.cluster, config.runtime_dir)
    users = OsUsers.of_config(config.launch_as, config.user)
    return OtherUserLauncher(config, users, processes.inherited_channel(CHANNEL))


async def _run(
    config: AgentConfig,
    launcher: Launcher,
    verifier: TicketVerifier,
    context: ssl.SSLContext | None,
    scraped: socket.socket | None,
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # To a daemon SIGHUP means "read the configuration again", never its end.
    loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP ignored")
    max_record = config.kernels.message_bytes + _RECORD_MARGIN
    async with asyncio.TaskGroup() as tasks:
        holders = HolderRegistry(config, launcher, max_record, tasks)
        kernels = KernelAccess(holders)
        kernelspecs = KernelSpecs(f"/{config.cluster}")
        starts = KernelStarts(config, holders, kernelspecs)
        sessions = JupyterSessions(
            Path(config.state_dir) / config.cluster / "sessions", kernels, starts
        )
        past = JournalMessages(
            config.past, message_bytes=config.kernels.message_bytes, max_record=max_record
        )
        rest = Rest(
            config,
            kernels=kernels,
            kernelspecs=kernelspecs,
            starts=starts,
            sessions=sessions,
            past=past,
        )
        app = App(
            config,
            verifier=verifier,
            holders=holders,
            kernels=kernels,
            rest=rest,
            max_record=max_record,
        )
        http = server(app.handle)
        listener = await loop.create_server(http, sock=_listen(config), ssl=context, backlog=1024)
        if scraped is not None:
            await loop.create_server(_metrics_server(holders), sock=scraped)
        tasks.create_task(holders.find(), name="find kernels")
        if config.shared_uid:
            log.warning("no_isolation_between_users", uid=os.geteuid())
        processes.notify("READY=1")
        log.info("ready", port=listener.sockets[0].getsockname()[1])
        await stopped.wait()
        log.info("stopping")
        listener.close()
        past.cut()
        await _drain(app, http, config.drain)
        holders.close()


def _metrics_server(holders: HolderRegistry) -> HttpServer:
    metrics = AgentMetrics(lambda: holders.tally.figures(holders.ready, limits.counts))
    return page_server("/metrics", partial(page, agent_registry(metrics)))


async def _drain(app: App, http: HttpServer, seconds: float) -> None:
    """End links at once, edges attach again elsewhere or later; let requests finish."""
    app.end_links()
    http.pre_shutdown()
    await http.shutdown(seconds)


def _listen(config: AgentConfig) -> socket.socket:
    return processes.listen_patiently(config.listen.host, config.listen.port)


def _tls(settings: AgentTls | None) -> ssl.SSLContext | None:
    if settings is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.key)
    context.load_verify_locations(settings.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
