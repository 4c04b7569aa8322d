"""One edge worker: a process that serves both ports, beside others that share them."""

from __future__ import annotations

import argparse
import asyncio
import logging as stdlib_logging
import os
import random
import signal
import ssl
from pathlib import Path

import structlog
import uvloop

from relay import log as logging
from relay import processes
from relay.auth.chain import Chain
from relay.auth.policy import Policy
from relay.auth.tickets import TicketSigner
from relay.auth.tokens import TokenStore
from relay.config import EdgeConfig, TlsSettings, load
from relay.edge.app import App
from relay.edge.channels import Channels
from relay.edge.rest import Rest
from relay.edge.upstream import Upstream
from relay.http import server

log = structlog.get_logger(__name__)


def main() -> None:
    """Run a worker on the sockets that its parent opened."""
    parser = argparse.ArgumentParser(prog="relay.edge.worker")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--die-with-parent", type=int)
    arguments = parser.parse_args()
    if arguments.die_with_parent is not None:
        processes.die_with_parent(arguments.die_with_parent)
    config = load(EdgeConfig, arguments.config, os.environ)
    logging.configure(config.log.level, config.log.format, component="edge")
    # One line of its own for every connection that ends.
    stdlib_logging.getLogger("websockets").setLevel(stdlib_logging.WARNING)
    uvloop.run(_run(config))


async def _run(config: EdgeConfig) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    sockets = processes.inherited_listeners()
    signer = TicketSigner(Path(config.ticket_key).read_bytes())
    tokens = TokenStore.parse(Path(config.tokens_file).read_bytes())
    async with Upstream(config, signer) as upstream:
        channels = Channels(config, upstream)
        app = App(
            chain=Chain([tokens]),
            policy=Policy.allow_all("token"),
            upstream=upstream,
            rest=Rest(config, upstream),
            channels=channels,
        )
        limits = {
            "request_line_bytes": config.limits.request_line_bytes,
            "header_bytes": config.limits.header_bytes,
            "headers": config.limits.headers,
        }
        context = _tls(config.tls)
        servers = [server(app.handle_https, **limits), server(app.handle_wss, **limits)]
        listeners = [
            await loop.create_server(
                http, sock=sockets[name], ssl=context, ssl_handshake_timeout=10.0
            )
            for name, http in zip(("https", "wss"), servers, strict=True)
        ]
        processes.notify("READY=1")
        log.info("ready")
        await stopped.wait()
        log.info("stopping", drain=config.drain)
        app.ready = False
        for listener in listeners:
            listener.close()
        # Not all at once: they come back together.
        await asyncio.sleep(random.uniform(0, min(0.5, config.drain / 4)))  # noqa: S311
        channels.drain()
        for http in servers:
            http.pre_shutdown()
        await asyncio.gather(*(http.shutdown(config.drain) for http in servers))


def _tls(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.key)
    return context


if __name__ == "__main__":
    main()
