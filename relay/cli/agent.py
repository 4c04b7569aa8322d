"""`relay agent`: one cluster's side alone, for real deployments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from relay.cli.exit_on_error import refusals, require_strict_parser


def agent(
    config: Annotated[Path, typer.Option(help="YAML file; see config/agent.yaml.")],
    die_with_parent: Annotated[int | None, typer.Option(hidden=True, metavar="PID")] = None,
    become: Annotated[str | None, typer.Option(hidden=True, metavar="USER")] = None,
) -> None:
    """Run an agent: kernels of one cluster, on this node."""
    from relay import processes

    with refusals():
        if become is not None:
            # Before anything is read. It would undo what follows, too (`prctl(2)`).
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
