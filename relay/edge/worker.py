"""One edge worker: a process that serves both ports, beside others that share them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging as stdlib_logging
import os
import random
import resource
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog
import uvloop

from relay import limits, processes
from relay import log as logging
from relay.auth.audit import AuditNote
from relay.auth.tickets import TicketSigner
from relay.config import EdgeConfig
from relay.config.jupyterhub import base_url
from relay.connections import HeadLimits, HttpServer, Timeouts, server
from relay.edge import reload
from relay.edge.authn import authenticators
from relay.edge.authn.authenticators import Authenticators
from relay.edge.authn.revalidation import Reauthorizer
from relay.edge.http.audit import AuditTrail
from relay.edge.http.channels import ChannelsHandler
from relay.edge.http.forward import Forwarder
from relay.edge.http.pipeline import Dependencies, Pipeline
from relay.edge.http.rate_limits import RateLimits
from relay.edge.ipc.audit_file import WriteNote
from relay.edge.ipc.client import CallError, ParentClient
from relay.edge.listener.acceptor import Acceptor
from relay.edge.listener.client_address import ClientAddresses
from relay.edge.listener.client_certs import ClientCertificates, server_context
from relay.edge.listener.proxy_headers import Networks
from relay.edge.upstream.client import UpstreamClient
from relay.metrics import EdgeMetrics

log = structlog.get_logger(__name__)


def main() -> None:
    """Run a worker on the sockets that its parent opened."""
    parser = argparse.ArgumentParser(prog="relay.edge.worker")
    parser.add_argument("--settings", type=Path, required=True, help="what the parent accepted")
    parser.add_argument("--die-with-parent", type=int)
    parser.add_argument("--parent-socket", type=Path, required=True)
    parser.add_argument("--metrics-folder", type=Path, help="shared with the parent")
    arguments = parser.parse_args()
    if arguments.die_with_parent is not None:
        processes.die_with_parent(arguments.die_with_parent)
    path: Path = arguments.settings
    config = reload.read(path)
    logging.configure(config.log.level, config.log.format, component="edge")
    # One line of its own for every connection that ends.
    stdlib_logging.getLogger("websockets").setLevel(stdlib_logging.WARNING)
    _raise_descriptor_limit()
    metrics = _metrics(arguments.metrics_folder)
    try:
        secrets = Secrets.read(config, metrics)
    except (OSError, ValueError) as error:
        # The parent takes 2 for what another try will not mend.
        log.error("start_failed", problem=str(error))  # noqa: TRY400 - one line says it all
        sys.exit(2)
    uvloop.run(_run(config, path, secrets, metrics, arguments.parent_socket))


def _raise_descriptor_limit() -> None:
    """Many systems begin with 1,024, which is less than the connections that there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _metrics(folder: Path | None) -> EdgeMetrics:
    """To be counted in: a worker that cannot share its counts serves all the same."""
    metrics = EdgeMetrics.local()
    if folder is not None:
        try:
            metrics = EdgeMetrics.shared(folder)
        except OSError as error:
            log.error("shared_metrics_unavailable", problem=str(error))  # noqa: TRY400 - says it all
    limits.subscribe(metrics.count_limit_hit)
    return metrics


class Secrets(NamedTuple):
    """What a worker reads when it starts."""

    tls: ssl.SSLContext
    certificates: ClientCertificates
    signer: TicketSigner
    authentication: Authenticators
    base_url: str

    @classmethod
    def read(cls, config: EdgeConfig, metrics: EdgeMetrics) -> Secrets:
        """Raises ``OSError`` and ``ValueError``, which name the setting."""
        with _naming("tls"):
            context = server_context(config.tls)
        with _naming("authentication.mtls"):
            certificates = ClientCertificates(config.tls, config.authentication.mtls)
        with _naming("ticket_key"):
            signer = TicketSigner(Path(config.ticket_key).read_bytes())
        prefix = base_url(config.base_url, config.authentication.jupyterhub, os.environ)
        who = authenticators.build(config.authentication, metrics)
        return cls(context, certificates, signer, who, prefix)


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ssl's errors are among them
        raise ValueError(f"{setting}: {error}") from error


async def _run(
    config: EdgeConfig, path: Path, secrets: Secrets, metrics: EdgeMetrics, parent_socket: Path
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    sockets = processes.inherited_listeners()
    reauthorizer = Reauthorizer(secrets.authentication.identify, metrics)
    parent = await ParentClient.connect(parent_socket, os.getppid(), stopped.set)
    async with (
        secrets.authentication,
        UpstreamClient(config, secrets.signer, metrics=metrics) as upstream,
        _background(
            revalidation=reauthorizer.run(),
            watching=secrets.authentication.watch(reauthorizer.reauthorize_all),
        ),
    ):
        parts = Dependencies(
            addresses=ClientAddresses(config.proxies),
            rate_limits=RateLimits(parent),
            authenticators=secrets.authentication,
            reauthorizer=reauthorizer,
            audit=AuditTrail(config.audit, partial(_write_audit, parent)),
            upstream=upstream,
            forwarder=Forwarder(config, upstream, metrics),
            channels=ChannelsHandler(config, upstream, metrics, secrets.authentication.follow),
            metrics=metrics,
        )
        app = Pipeline(msgspec.structs.replace(config, base_url=secrets.base_url), parts)
        loop.add_signal_handler(signal.SIGHUP, _change_policy, app, path)
        head, patience = _bounds(config)
        servers = {
            "https": server(app.handle_https, head, patience),
            "wss": server(app.handle_wss, head, patience),
        }
        acceptors = [
            _acceptor(config, secrets, parent, sockets[name], http)
            for name, http in servers.items()
        ]
        await _accept(acceptors, stopped, parent, app, config.drain)
        for listener in sockets.values():
            listener.close()
        await _drain(parts, list(servers.values()), config.drain)


def _acceptor(
    config: EdgeConfig,
    secrets: Secrets,
    parent: ParentClient,
    listener: socket.socket,
    http: HttpServer,
) -> Acceptor:
    return Acceptor(
        listener,
        http,
        parent=parent,
        tls=secrets.tls,
        certificates=secrets.certificates,
        proxies=Networks(config.proxies.proxy_protocol),
        settings=config.connections,
    )


async def _accept(
    acceptors: list[Acceptor],
    stopped: asyncio.Event,
    parent: ParentClient,
    app: Pipeline,
    drain: float,
) -> None:
    """Accept connections until the worker is to stop; without the parent the process exits."""
    async with asyncio.TaskGroup() as accepting:
        tasks = [
            accepting.create_task(acceptor.run(), name="accept connections")
            for acceptor in acceptors
        ]
        processes.notify("READY=1")
        log.info("ready")
        await stopped.wait()
        if parent.gone:
            # Nobody can be let in without the parent, and nobody else would end this process.
            log.error("parent_died")
            sys.exit(1)
        log.info("stopping", drain=drain)
        app.edge_routes.ready = False
        for task in tasks:
            task.cancel()


async def _drain(parts: Dependencies, servers: list[HttpServer], seconds: float) -> None:
    """End what is open, within ``seconds``."""
    # Not all at once: they come back together.
    await asyncio.sleep(random.uniform(0, min(0.5, seconds / 4)))  # noqa: S311
    parts.channels.drain()
    parts.forwarder.drain()
    for http in servers:
        http.pre_shutdown()
    await asyncio.gather(*(http.shutdown(seconds) for http in servers))


def _bounds(config: EdgeConfig) -> tuple[HeadLimits, Timeouts]:
    head = HeadLimits(
        request_line_bytes=config.limits.request_line_bytes,
        header_bytes=config.limits.header_bytes,
        headers=config.limits.headers,
        head_bytes=config.limits.head_bytes,
    )
    patience = Timeouts(
        head=config.connections.head_timeout,
        body=config.connections.body_timeout,
        write=config.connections.write_timeout,
        idle=config.connections.idle_timeout,
        # A body that nobody asked for is not read: the connection ends instead.
        linger=0.0,
    )
    return head, patience


def _change_policy(app: Pipeline, path: Path) -> None:
    """Judge by what the parent has accepted meanwhile."""
    policy = reload.read(path).policy
    app.change_policy(policy.policy())
    log.info("policy_applied", rules=len(policy.rules))


@contextlib.asynccontextmanager
async def _background(**work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these, by name, as long as the block; one that fails ends it."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each, name=name) for name, each in work.items()]
        yield
        for task in running:
            task.cancel()


async def _write_audit(parent: ParentClient, note: AuditNote | None) -> bool:
    """Have the parent write to the audit log, and return whether all is written.

    Raises ``ConnectionError`` once the parent is gone, with which the client's connection ends:
    nobody hears of a decision that nobody will write down.
    """
    try:
        await parent.call(WriteNote(note))
    except CallError:
        return False
    return True


if __name__ == "__main__":
    main()
