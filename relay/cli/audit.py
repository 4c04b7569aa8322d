"""`relay audit`: looks after the audit log that an edge writes."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from relay.auth.audit import ChainVerifier

app = typer.Typer(help="Check the audit log.", no_args_is_help=True)


@app.callback()
def _audit() -> None:
    pass


@app.command()
def verify(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="One log with its rotated files, in any order; .gz too."
        ),
    ],
    *,
    noted: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="A hash that this command showed once: that line must be there."
        ),
    ] = None,
) -> None:
    """Tell whether every line of an audit log is as it was written, and where it was.

    Exit code 0: it is. 1: it is not; the first line that is wrong is shown. 2: no audit log.
    """
    from relay.auth.audit import ChainVerifier

    verifier = ChainVerifier((noted or "").lower())
    try:
        ordered = sorted(files, key=_first_number)
        for path in ordered:
            with _opened(path) as lines:
                broken = verifier.read(lines)
            if broken is not None:
                typer.echo(f"relay: {path}:{broken.line}: {broken.reason}", err=True)
                raise typer.Exit(1)
    except (OSError, EOFError, zlib.error) as error:
        typer.echo(f"relay: {_problem(error)}", err=True)
        raise typer.Exit(2) from None
    if noted is not None and not verifier.noted:
        typer.echo(f"relay: no line has the hash {noted}: the log was cut, or is another", err=True)
        raise typer.Exit(1)
    for line in _summary(verifier):
        typer.echo(line)


def _summary(verifier: ChainVerifier) -> Iterator[str]:
    first, last = verifier.first, verifier.first + verifier.lines - 1
    yield f"All {verifier.lines} lines, {first} to {last} of their chain, are as they were written."
    if first > 0:
        yield f"Lines 0 to {first - 1} are in older files, which were not given."
    if verifier.torn:
        yield f"Cut off while they were written, and noted as such: {verifier.torn}."
    yield f"First  {verifier.begins}"
    yield f"Last   {verifier.ends}"
    yield f"Hash   {verifier.hash}"
    yield "Keep the hash elsewhere: with --noted HASH it shows that up to here nothing was cut off."


def _first_number(path: Path) -> int:
    from relay.auth.audit import number

    with _opened(path) as lines:
        first = next(lines, b"")
    if not first:
        raise _UnusableError(f"{path}: is empty")
    found = number(first)
    # What cannot be read is reported when its turn comes, in the first place.
    return -1 if found is None else found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterator[bytes]]:
    """A file's lines, one at a time and never more than may be in one."""
    from relay.auth.audit import LINE_BYTES

    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield iter(lambda: file.readline(LINE_BYTES), b"")


class _UnusableError(OSError):
    """The file is no audit log."""


def _problem(error: Exception) -> str:
    name = getattr(error, "filename", None)
    text = getattr(error, "strerror", None) or str(error)
    return f"{name}: {text}" if name else text
