"""Turns errors that the operator must correct into lines on stderr and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit with code 2 and one line per mistake for an invalid configuration or a failed start."""
    from relay.config import ConfigError
    from relay.processes import StartError

    try:
        yield
    except (ConfigError, StartError) as error:
        for line in str(error).splitlines():
            typer.echo(f"relay: {line}", err=True)
        raise typer.Exit(2) from None


def require_strict_parser(environ: Mapping[str, str]) -> None:
    """Raise `StartError` for aiohttp's pure-Python HTTP parser, which accepts smuggled requests."""
    from aiohttp import http_parser

    from relay.processes import StartError

    if environ.get("AIOHTTP_NO_EXTENSIONS"):
        raise StartError("AIOHTTP_NO_EXTENSIONS is set: aiohttp's Python parser is not safe")
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise StartError(
            "aiohttp was installed without its C parser; its Python parser is not safe"
        )
