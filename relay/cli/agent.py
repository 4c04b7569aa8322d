"""`relay agent`: one cluster's side alone, for real deployments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from relay.cli.refusals import refusals, require_strict_parser


def agent(
    config: Annotated[Path, typer.Option(help="YAML file; see config/agent.yaml.")],
    die_with_parent: Annotated[int | None, typer.Option(hidden=True, metavar="PID")] = None,
) -> None:
    """Run an agent: kernels of one cluster, on this node."""
    from relay import processes

    if die_with_parent is not None:
        processes.die_with_parent(die_with_parent)
    processes.claim_notify_socket()
    with refusals():
        require_strict_parser(os.environ)
        from relay import log
        from relay.agent.main import run
        from relay.config import AgentConfig, load

        settings = load(AgentConfig, config, os.environ)
        log.configure(settings.log.level, settings.log.format, component="agent")
        run(settings)
