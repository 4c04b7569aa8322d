"""`relay agent`: runs one cluster's agent alone, for real deployments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from relay.cli.exit_on_error import exit_on_error, require_strict_parser


def agent(
    config: Annotated[Path, typer.Option(help="YAML file; the sample is config/agent.yaml.")],
    die_with_parent: Annotated[int | None, typer.Option(hidden=True, metavar="PID")] = None,
    become: Annotated[str | None, typer.Option(hidden=True, metavar="USER")] = None,
) -> None:
    """Run an agent, which serves the kernels of one cluster on this node."""
    from relay import processes

    with exit_on_error():
        if become is not None:
            # First of all; and it would undo the setting of `die_with_parent` (`prctl(2)`).
            processes.become(become)
        if die_with_parent is not None:
            processes.die_with_parent(die_with_parent)
        processes.claim_notify_socket()
        from relay import log
        from relay.config import AgentConfig, load

        settings = load(AgentConfig, config, os.environ)
        log.configure(settings.log.level, settings.log.format, component="agent")
        if settings.launch_as is not None and become is None:
            from relay.agent.privsep import helper

            raise typer.Exit(helper.run(settings, config, os.environ))
        require_strict_parser(os.environ)
        from relay.agent.main import run

        run(settings)
