"""`relay edge`: runs the public side alone, for real deployments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from relay.cli.exit_on_error import exit_on_error, require_strict_parser


def edge(
    config: Annotated[Path, typer.Option(help="YAML file; the sample is config/edge.yaml.")],
    die_with_parent: Annotated[int | None, typer.Option(hidden=True, metavar="PID")] = None,
) -> None:
    """Run an edge, which authenticates requests and forwards them to agents."""
    from relay import processes

    if die_with_parent is not None:
        processes.die_with_parent(die_with_parent)
    with exit_on_error():
        require_strict_parser(os.environ)
        from relay import log
        from relay.config import EdgeConfig, load
        from relay.edge import parent

        settings = load(EdgeConfig, config, os.environ)
        log.configure(settings.log.level, settings.log.format, component="edge")
        raise typer.Exit(parent.run(settings, config))
