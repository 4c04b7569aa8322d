"""Checks whether an edge and an agent fit together; findings are about the agent's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from relay.auth.tickets import TicketSigner, TicketVerifier
from relay.cli.checks import files
from relay.cli.checks.finding import Finding, error, warning
from relay.config import AgentConfig, ClusterSettings, EdgeConfig


def findings_between(edge: EdgeConfig, agent: AgentConfig) -> list[Finding]:
    """Find what keeps an edge and an agent from working together."""
    cluster = edge.clusters.get(agent.cluster)
    if cluster is None:
        known = ", ".join(edge.clusters)
        return [error("cluster", f"the edge has no cluster {agent.cluster!r}; it has {known}")]
    return [
        *_keys(edge, agent),
        *_addresses(cluster, agent),
        *_plain_addresses(cluster, agent),
        *_certificates(cluster, agent),
        *_sizes(edge, agent),
    ]


def _keys(edge: EdgeConfig, agent: AgentConfig) -> Iterator[Finding]:
    try:
        signer = TicketSigner(Path(edge.ticket_key).read_bytes())
        keys = [Path(name).read_bytes() for name in agent.ticket_keys]
        known = {kid for key in keys for kid in TicketVerifier([key], agent.cluster).kids}
    except (OSError, ValueError):
        # Reported by the check of the setting that names the file.
        return
    if signer.kid not in known:
        yield error(
            "ticket_keys",
            f"none of them is the public key of the edge's ticket_key ({edge.ticket_key}): every"
            " request would be refused",
        )


def _addresses(cluster: ClusterSettings, agent: AgentConfig) -> Iterator[Finding]:
    urls = [urlsplit(url) for url in cluster.agents]
    here = [url for url in urls if url.port == agent.listen.port]
    if not here:
        ports = ", ".join(str(url.port) for url in urls)
        yield warning("listen.port", f"the edge expects agents of this cluster on port {ports}")
    for url in here or urls:
        if (url.scheme == "https") != (agent.tls is not None):
            scheme = "http" if agent.tls is None else "https"
            yield error("tls", f"the edge has {url.geturl()}, but this agent serves {scheme} only")


def _plain_addresses(cluster: ClusterSettings, agent: AgentConfig) -> Iterator[Finding]:
    """Find addresses without TLS, where a kernel could take the place of the agent."""
    plain = [url for url in cluster.agents if url.startswith("http://")]
    for url in plain if agent.launch_as is not None else ():
        yield error(
            "launch_as",
            f"the edge has {url} for this cluster: a user's kernel that takes that port while it"
            " is free would get other users' tickets; set https:// for all its agents, and tls",
        )


def _certificates(cluster: ClusterSettings, agent: AgentConfig) -> Iterator[Finding]:
    if cluster.tls is None or agent.tls is None:
        return
    if not files.issued(agent.tls.certificate, cluster.tls.ca):
        yield error("tls.certificate", f"it was not issued by the edge's {cluster.tls.ca}")
    if cluster.tls.certificate is None:
        yield error("tls.client_ca", "the agent requires a client certificate; the edge has none")
    elif not files.issued(cluster.tls.certificate, agent.tls.client_ca):
        yield error("tls.client_ca", f"the edge's {cluster.tls.certificate} was not issued by it")


def _sizes(edge: EdgeConfig, agent: AgentConfig) -> Iterator[Finding]:
    if edge.limits.message_bytes >= agent.kernels.message_bytes:
        yield warning(
            "kernels.message_bytes",
            f"it must be over the edge's limits.message_bytes, {edge.limits.message_bytes}",
        )
    if edge.limits.body_bytes > agent.body_bytes:
        yield warning(
            "body_bytes", f"it is below the edge's limits.body_bytes, {edge.limits.body_bytes}"
        )
