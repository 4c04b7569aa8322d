"""The `relay` command, one file per subcommand.

``up`` and ``down`` run everything on one machine, ``edge`` and ``agent`` one program each;
``token`` and ``audit`` manage tokens and the audit log, ``check_config`` and ``checks`` examine
configurations; ``output`` is text for people, ``exit_on_error`` turns errors into exit codes.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from relay import __version__
from relay.cli import agent, audit, check_config, down, edge, token, up

app = typer.Typer(
    name="relay",
    help="One authenticated HTTPS entry to Jupyter kernels in many clusters.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command(context_settings={"allow_extra_args": True})(up.up)
for command in (down.down, edge.edge, agent.agent, check_config.check_config):
    app.command()(command)
app.add_typer(token.app, name="token")
app.add_typer(audit.app, name="audit")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"relay {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; exit with 0, 1 for a failure, 2 for what the operator must correct."""
    try:
        code = app(prog_name="relay", standalone_mode=False)
    except typer.TyperException as error:
        # One line instead of Typer's box, for readers of logs. Without a message help was shown.
        if message := error.format_message():
            typer.echo(f"relay: {message}", err=True)
        code = getattr(error, "exit_code", 2)
    except typer.Abort:
        code = 130
    sys.exit(code or 0)
