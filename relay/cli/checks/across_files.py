"""Whether an edge and an agent fit together. What is found is about the agent's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from relay.auth.tickets import TicketSigner, TicketVerifier
from relay.cli.checks import files
from relay.cli.checks.finding import Finding, error, warning
from relay.config import AgentConfig, ClusterSettings, EdgeConfig


def findings_between(edge: EdgeConfig, agent: AgentConfig) -> list[Finding]:
    """What keeps the two from working together."""
    cluster = edge.clusters.get(agent.cluster)
    if cluster is None:
        known = ", ".join(edge.clusters)
        return [error("cluster", f"the edge has no cluster {agent.cluster!r}; it has {known}")]
    return [
        *_keys(edge, agent),
        *_addresses(cluster, agent),
        *_certificates(cluster, agent),
        *_sizes(edge, agent),
    ]


def _keys(edge: EdgeConfig, agent: AgentConfig) -> Iterator[Finding]:
    try:
        signer = TicketSigner(Path(edge.ticket_key).read_bytes())
        keys = [Path(name).read_bytes() for name in agent.ticket_keys]
        known = {kid for key in keys for kid in TicketVerifier([key], agent.cluster).kids}
    except (OSError, ValueError):
        # Reported where the one that cannot be used is set.
        return
    if signer.kid not in known:
        yield error(
            "ticket_keys",
            f"none of them is the public half of the edge's ticket_key ({edge.ticket_key}): every"
            " request would be refused",
        )


def _addresses(cluster: ClusterSettings, agent: AgentConfig) -> Iterator[Finding]:
    urls = [urlsplit(url) for url in cluster.agents]
    here = [url for url in urls if url.port == agent.listen.port]
    if not here:
        ports = ", ".join(str(url.port) for url in urls)
        yield warning("listen.port", f"the edge asks agents of this cluster on port {ports}")
    for url in here or urls:
        if (url.scheme == "https") != (agent.tls is not None):
            speaks = "no TLS" if agent.tls is None else "TLS only"
            yield error("tls", f"the edge has {url.geturl()} for an agent that speaks {speaks}")


def _certificates(cluster: ClusterSettings, agent: AgentConfig) -> Iterator[Finding]:
    if cluster.tls is None or agent.tls is None:
        return
    if not files.issued(agent.tls.certificate, cluster.tls.ca):
        yield error("tls.certificate", f"does not come from the edge's {cluster.tls.ca}")
    if cluster.tls.certificate is None:
        yield error("tls.client_ca", "the agent wants a certificate, and the edge shows none")
    elif not files.issued(cluster.tls.certificate, agent.tls.client_ca):
        yield error("tls.client_ca", f"the edge's {cluster.tls.certificate} does not come from it")


def _sizes(edge: EdgeConfig, agent: AgentConfig) -> Iterator[Finding]:
    if edge.limits.message_bytes >= agent.kernels.message_bytes:
        yield warning(
            "kernels.message_bytes",
            f"must be over the edge's limits.message_bytes, {edge.limits.message_bytes}",
        )
    if edge.limits.body_bytes > agent.body_bytes:
        yield warning(
            "body_bytes", f"is below the edge's limits.body_bytes, {edge.limits.body_bytes}"
        )
