"""What every subcommand does before its work, and how it says no: one line, exit code 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the operator must put right into a line on stderr (one for each mistake)."""
    from relay.config import ConfigError
    from relay.processes import StartError

    try:
        yield
    except (ConfigError, StartError) as error:
        for line in str(error).splitlines():
            typer.echo(f"relay: {line}", err=True)
        raise typer.Exit(2) from None


def require_strict_parser(environ: Mapping[str, str]) -> None:
    """Refuse to serve with aiohttp's pure-Python HTTP parser: weaker against smuggled requests."""
    from aiohttp import http_parser

    from relay.processes import StartError

    if environ.get("AIOHTTP_NO_EXTENSIONS"):
        raise StartError("AIOHTTP_NO_EXTENSIONS is set: its parser is not safe to serve with")
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise StartError("aiohttp was installed without its C parser: not safe to serve with")
