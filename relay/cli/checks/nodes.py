"""Checks that the agents of one cluster share a node and a state directory, as they must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from relay.cli.checks.finding import Finding, check, error, is_loopback
from relay.config import AgentConfig, EdgeConfig

_WHY: Final = (
    "an agent knows the kernels of its own state_dir only, so lists would lack kernels and running"
    " kernels would be 404"
)


@check(EdgeConfig)
def one_host(config: EdgeConfig) -> Iterator[Finding]:
    """Check that a cluster's agents are on one host."""
    for name, cluster in config.clusters.items():
        first, *others = (urlsplit(url).hostname or "" for url in cluster.agents)
        for number, host in enumerate(others, start=1):
            if not _is_same(host, first):
                yield error(
                    f"clusters.{name}.agents.{number}",
                    f"{host} is not {first}: the agents of a cluster must be on one node, with"
                    f" one name in all URLs, and share a state_dir; {_WHY}",
                )


def _is_same(host: str, other: str) -> bool:
    return host == other or (is_loopback(host) and is_loopback(other))


def findings_among(agent: AgentConfig, other: AgentConfig, where: str) -> list[Finding]:
    """Find that ``agent`` has another state directory than its cluster's agent ``other``.

    ``where`` is the file and line of the other's ``state_dir``.
    """
    if agent.cluster != other.cluster:
        return []
    if Path(agent.state_dir).resolve() == Path(other.state_dir).resolve():
        return []
    text = (
        f"{agent.state_dir} is not {other.state_dir} ({where}): the agents of cluster"
        f" {agent.cluster!r} must share a state_dir; {_WHY}"
    )
    return [error("state_dir", text)]
