"""Checks of ports and of connections that can be intercepted."""

from __future__ import annotations

from collections.abc import Iterator

from relay import processes
from relay.cli.checks.finding import Finding, check, error, is_loopback, warning
from relay.config import AgentConfig, EdgeConfig, UpConfig

Endpoint = tuple[str, str, int]
"""A section with ``host`` and ``port``, and their values."""


@check(EdgeConfig, AgentConfig)
def metrics(config: EdgeConfig | AgentConfig) -> Iterator[Finding]:
    """Warn of metrics that other machines can read."""
    if config.metrics.port is not None and not is_loopback(config.metrics.host):
        yield warning(
            "metrics.host", "other machines can read the metrics, which need no authentication"
        )


@check(EdgeConfig)
def plain_agents(config: EdgeConfig) -> Iterator[Finding]:
    """Warn of tickets and kernels' output on plain HTTP."""
    for name, cluster in config.clusters.items():
        for number, url in enumerate(cluster.agents):
            host = url.removeprefix("http://").rpartition(":")[0].strip("[]")
            if url.startswith("http://") and not is_loopback(host):
                yield warning(
                    f"clusters.{name}.agents.{number}",
                    "plain HTTP beyond this machine: whoever is on the network path can read"
                    " kernels' output, and use a ticket while it is valid",
                )


@check(AgentConfig)
def plain_listener(config: AgentConfig) -> Iterator[Finding]:
    """Warn of plain HTTP at the agent's end."""
    if config.tls is None and not is_loopback(config.listen.host):
        yield warning(
            "tls",
            f"plain HTTP on {config.listen.host}, which is not loopback: whoever is on the network"
            " path can read kernels' output, and use a ticket while it is valid",
        )


@check(UpConfig)
def own_authority(config: UpConfig) -> Iterator[Finding]:
    """Warn of other machines' clients, which do not know the relay's own CA."""
    for name, listener in (("https", config.https), ("wss", config.wss)):
        if not is_loopback(listener.host):
            yield warning(
                f"{name}.host",
                "reached from other machines with a certificate of the relay's own CA: clients need"
                " its ca.pem, and whoever can read the state directory can impersonate any server"
                " to them. Use `relay edge` with a certificate of yours instead",
            )


@check(EdgeConfig)
def edge_ports(config: EdgeConfig) -> Iterator[Finding]:
    """Check the ports of an edge."""
    yield from _ports(
        ("https", config.https.host, config.https.port),
        ("wss", config.wss.host, config.wss.port),
        ("metrics", config.metrics.host, config.metrics.port or 0),
    )


@check(AgentConfig)
def agent_ports(config: AgentConfig) -> Iterator[Finding]:
    """Check the ports of an agent."""
    yield from _ports(
        ("listen", config.listen.host, config.listen.port),
        ("metrics", config.metrics.host, config.metrics.port or 0),
    )


@check(UpConfig)
def up_ports(config: UpConfig) -> Iterator[Finding]:
    """Check the ports of `relay up`."""
    yield from _ports(
        ("https", config.https.host, config.https.port),
        ("wss", config.wss.host, config.wss.port),
    )


def _ports(*endpoints: Endpoint) -> Iterator[Finding]:
    taken: dict[int, str] = {}
    for name, host, port in endpoints:
        if not port:
            continue
        if port in taken:
            yield error(f"{name}.port", f"is the port of {taken[port]} too")
            continue
        taken[port] = name
        try:
            processes.listen(host, port).close()
        except processes.PortInUse as problem:
            # Perhaps by this very program, which is running.
            yield warning(f"{name}.port", str(problem))
        except processes.StartError as problem:
            yield error(f"{name}.host", str(problem))
