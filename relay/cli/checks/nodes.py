"""Whether the agents of one cluster share a node and a state folder, as they must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from relay.cli.checks.finding import Finding, check, error, is_loopback
from relay.config import AgentConfig, EdgeConfig

_WHY: Final = (
    "an agent knows the kernels of its own state_dir only, so lists would lack kernels and kernels"
    " that live would be 404"
)


@check(EdgeConfig)
def one_host(config: EdgeConfig) -> Iterator[Finding]:
    """Agents of one cluster on several hosts."""
    for name, cluster in config.clusters.items():
        first, *others = (urlsplit(url).hostname or "" for url in cluster.agents)
        for number, host in enumerate(others, start=1):
            if not _is_same(host, first):
                yield error(
                    f"clusters.{name}.agents.{number}",
                    f"{host} is not {first}: the agents of a cluster must be on one node, named"
                    f" alike in each URL, and share a state_dir; {_WHY}",
                )


def _is_same(host: str, other: str) -> bool:
    return host == other or (is_loopback(host) and is_loopback(other))


def findings_among(agent: AgentConfig, other: AgentConfig, where: str) -> list[Finding]:
    """Tell, about ``agent``, that it does not share the state folder of its cluster's ``other``.

    ``where``: the file and line of the other's ``state_dir``.
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
