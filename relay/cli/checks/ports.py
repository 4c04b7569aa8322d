"""Where programs listen, and who can listen in."""

from __future__ import annotations

from collections.abc import Iterator

from relay import processes
from relay.cli.checks.finding import Finding, check, error, is_loopback, warning
from relay.config import AgentConfig, EdgeConfig, UpConfig

Place = tuple[str, str, int]
"""A section with ``host`` and ``port``, and both."""


@check(EdgeConfig, AgentConfig)
def metrics(config: EdgeConfig | AgentConfig) -> Iterator[Finding]:
    """Metrics for everybody."""
    if config.metrics.port is not None and not is_loopback(config.metrics.host):
        yield warning(
            "metrics.host", "whoever reaches this address reads the metrics: nothing asks who it is"
        )


@check(EdgeConfig)
def plain_agents(config: EdgeConfig) -> Iterator[Finding]:
    """Tickets and all that kernels say, in clear."""
    for name, cluster in config.clusters.items():
        for number, url in enumerate(cluster.agents):
            host = url.removeprefix("http://").rpartition(":")[0].strip("[]")
            if url.startswith("http://") and not is_loopback(host):
                yield warning(
                    f"clusters.{name}.agents.{number}",
                    "plain HTTP beyond this machine: who is on the way reads what kernels say, and"
                    " can use a ticket again while it is valid",
                )


@check(AgentConfig)
def plain_listener(config: AgentConfig) -> Iterator[Finding]:
    """The same from the other end."""
    if config.tls is None and not is_loopback(config.listen.host):
        yield warning(
            "tls",
            f"plain HTTP on {config.listen.host}, which is not loopback: who is on the way reads"
            " what kernels say, and can use a ticket again while it is valid",
        )


@check(UpConfig)
def own_authority(config: UpConfig) -> Iterator[Finding]:
    """An authority made on the spot, for strangers."""
    for name, listener in (("https", config.https), ("wss", config.wss)):
        if not is_loopback(listener.host):
            yield warning(
                f"{name}.host",
                "reached from other machines, with a certificate of the relay's own authority:"
                " clients have to be given its ca.pem, and who holds the state folder can be"
                " anybody to them. For others use `relay edge` with a certificate of yours",
            )


@check(EdgeConfig)
def edge_ports(config: EdgeConfig) -> Iterator[Finding]:
    """Ports that cannot be had."""
    yield from _ports(
        ("https", config.https.host, config.https.port),
        ("wss", config.wss.host, config.wss.port),
        ("metrics", config.metrics.host, config.metrics.port or 0),
    )


@check(AgentConfig)
def agent_ports(config: AgentConfig) -> Iterator[Finding]:
    """As `edge_ports`."""
    yield from _ports(
        ("listen", config.listen.host, config.listen.port),
        ("metrics", config.metrics.host, config.metrics.port or 0),
    )


@check(UpConfig)
def up_ports(config: UpConfig) -> Iterator[Finding]:
    """As `edge_ports`."""
    yield from _ports(
        ("https", config.https.host, config.https.port),
        ("wss", config.wss.host, config.wss.port),
    )


def _ports(*places: Place) -> Iterator[Finding]:
    taken: dict[int, str] = {}
    for name, host, port in places:
        if not port:
            continue
        if port in taken:
            yield error(f"{name}.port", f"is {taken[port]}'s too")
            continue
        taken[port] = name
        try:
            processes.listen(host, port).close()
        except processes.PortInUse as problem:
            # This very program perhaps, which runs already.
            yield warning(f"{name}.port", str(problem))
        except processes.StartError as problem:
            yield error(f"{name}.host", str(problem))
