"""`relay token`: makes, lists and revokes tokens."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from relay.cli.exit_on_error import exit_on_error

if TYPE_CHECKING:
    from relay.auth.tokens import TokenRecord, TokenStore
    from relay.config import AuthenticationSettings
    from relay.supervisor import StateFolder

app = typer.Typer(help="Make, list and revoke tokens.", no_args_is_help=True)

StateDir = Annotated[
    Path | None,
    typer.Option(help="As given to `relay up`; used unless --file or --config is given."),
]
File = Annotated[
    Path | None, typer.Option(metavar="TOKENS.JSON", help="The token file of an edge.")
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="EDGE.YAML", help="An edge's configuration, which names the token file."),
]

_TTL: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TIME: Final = "%Y-%m-%d %H:%M:%SZ"
_HEADINGS: Final = ("ID", "USER", "GROUPS", "CLUSTERS", "SCOPES", "CREATED", "EXPIRES", "NOTE")


class TokenFileLocation(NamedTuple):
    """The token file, and the edge that reads it as far as that is known."""

    path: Path
    authentication: AuthenticationSettings | None = None
    """The edge's settings, where its configuration is known."""
    folder: StateFolder | None = None
    """The file's state directory, which is made with its first token."""


@app.command()
def create(  # noqa: PLR0913 - one for each option
    *,
    user: Annotated[str, typer.Option(metavar="NAME", help="The token's user.")],
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A group of the user; repeatable.")
    ] = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Limit the token to this cluster; repeatable."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Limit it to rules with this scope; repeatable."),
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(metavar="12h", help="Lifetime in s, m, h, d or w (default: unlimited)."),
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="For `relay token list`.")] = "",
    path: Annotated[
        bool,
        typer.Option("--path", help="Make a path token, for URLs /t/TOKEN/<cluster>/... only."),
    ] = False,
    state_dir: StateDir = None,
    file: File = None,
    config: Config = None,
) -> None:
    """Make a token and print it, once; messages go to stderr."""
    with exit_on_error(), _start_errors():
        from relay.auth.tokens import generate

        for name in cluster or ():
            _check_cluster(name)
        lifetime = None if ttl is None else _seconds(ttl)
        location = _locate(state_dir, file, config)
        if path:
            _check_path_token(lifetime, location.authentication)
        token, record = generate(
            user,
            time.time(),
            note=note,
            lifetime=lifetime,
            groups=group or (),
            scopes=scope or (),
            clusters=cluster or None,
            path=path,
        )
        _add(record, location)
    until = "" if record.expires is None else f", valid until {_format_time(record.expires)}"
    typer.echo(f"Made token {record.id} of {user}{until}. It is shown only once.", err=True)
    if path:
        typer.echo("It belongs into a URL: https://HOST:PORT/t/TOKEN/<cluster>", err=True)
    typer.echo(token)


@app.command("list")
def list_(*, state_dir: StateDir = None, file: File = None, config: Config = None) -> None:
    """List all tokens, expired ones too."""
    with exit_on_error(), _start_errors():
        from relay.auth.tokens import TokenStore
        from relay.cli import output

        store = _read(_locate(state_dir, file, config).path, missing=TokenStore())
        if store.records:
            rows = [_HEADINGS, *(_row(record, time.time()) for record in store.records)]
            output.show(output.OutputLine(line) for line in _table(rows))
        else:
            typer.echo("There are no tokens.", err=True)


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As in `relay token list`.")],
    *,
    state_dir: StateDir = None,
    file: File = None,
    config: Config = None,
) -> None:
    """Revoke a token: it is no longer accepted, and the connections that it opened are closed."""
    with exit_on_error(), _start_errors():
        from relay import tokenfile
        from relay.auth.tokens import TokenStore
        from relay.processes import StartError

        path = _locate(state_dir, file, config).path
        if not path.exists():
            raise StartError(f"there are no tokens: {path} does not exist")
        with tokenfile.locked(path):
            store = _read(path)
            found = [record for record in store.records if record.id == token_id]
            if not found:
                raise StartError(f"no token has the id {token_id!r}")
            kept = (record for record in store.records if record.id != token_id)
            tokenfile.write(path, TokenStore(kept))
    typer.echo(f"Revoked token {token_id} of {found[0].user}.", err=True)


@contextmanager
def _start_errors() -> Iterator[None]:
    """Turn errors of files and values, which the user must correct, into `StartError`."""
    from relay.processes import StartError

    try:
        yield
    except OSError as error:
        raise StartError(f"{error.filename or 'the tokens'}: {error.strerror}") from error
    except ValueError as error:
        raise StartError(str(error)) from error


def _locate(state_dir: Path | None, file: Path | None, config: Path | None) -> TokenFileLocation:
    """Find the token file. Raises `StartError` and `ConfigError`."""
    from relay import supervisor
    from relay.config import EdgeConfig, load
    from relay.processes import StartError

    if sum(each is not None for each in (state_dir, file, config)) > 1:
        raise StartError("give only one of --state-dir, --file and --config")
    if file is not None:
        return TokenFileLocation(file.expanduser().absolute())
    if config is not None:
        found = load(EdgeConfig, config, os.environ).authentication
        if found.tokens is None:
            raise StartError(f"{config}: authentication.tokens is not set")
        return TokenFileLocation(Path(found.tokens.file), found)
    chosen = state_dir or supervisor.default_state_dir(os.environ)
    folder = supervisor.StateFolder(chosen.expanduser().absolute())
    written = folder.configurations / "edge.yaml"
    known = load(EdgeConfig, written, {}).authentication if written.exists() else None
    return TokenFileLocation(folder.tokens, known, folder)


def _read(path: Path, missing: TokenStore | None = None) -> TokenStore:
    """Read the tokens. Raises ``OSError``, and `StartError` for a damaged file."""
    from relay import tokenfile
    from relay.processes import StartError

    try:
        return tokenfile.read(path)
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
    except ValueError as error:
        raise StartError(f"{path} is damaged: {error}") from error


def _add(record: TokenRecord, location: TokenFileLocation) -> None:
    """Add a token to the file. Raises as `_read`."""
    from relay import tokenfile
    from relay.auth.tokens import TokenStore

    if location.folder is not None:
        location.folder.create()
    with tokenfile.locked(location.path):
        store = _read(location.path, missing=TokenStore())
        tokenfile.write(location.path, TokenStore((*store.records, record)))


def _check_cluster(name: str) -> None:
    """Raise ``ValueError`` for a name that no cluster can have."""
    from relay.routing.clusters import check_name

    try:
        check_name(name)
    except ValueError as error:
        raise ValueError(f"--cluster {name}: {error}") from None


def _seconds(ttl: str) -> float:
    """Read a duration. Raises ``ValueError``."""
    found = _TTL.fullmatch(ttl)
    if found is None or not int(found[1]):
        raise ValueError(f"--ttl {ttl}: expected a number and one of s, m, h, d, w, such as 12h")
    return float(int(found[1]) * _SECONDS[found[2]])


def _check_path_token(lifetime: float | None, known: AuthenticationSettings | None) -> None:
    """Raise `StartError` for a path token that the edge would refuse."""
    from relay.config import PathTokenSettings
    from relay.processes import StartError

    settings = PathTokenSettings() if known is None else known.path_tokens
    if settings is None:
        raise StartError("path tokens are off: set authentication.path_tokens (path_tokens for up)")
    if lifetime is None or lifetime > settings.max_lifetime:
        raise StartError(
            f"a path token needs a --ttl of at most {settings.max_lifetime:.0f}s"
            " (authentication.path_tokens.max_lifetime)"
        )


def _row(record: TokenRecord, now: float) -> tuple[str, ...]:
    from relay.auth.tokens import has_expired

    if record.expires is None:
        expires = "never"
    else:
        expires = _format_time(record.expires) + (" (expired)" if has_expired(record, now) else "")
    return (
        record.id,
        record.user,
        ",".join(record.groups) or "-",
        "all" if record.clusters is None else ",".join(record.clusters),
        ",".join(record.scopes) or "-",
        _format_time(record.created),
        expires,
        " ".join(filter(None, ("[path]" if record.path else "", _printable(record.note)))),
    )


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _format_time(seconds: float) -> str:
    try:
        return time.strftime(_TIME, time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return list(padded)
