"""`relay audit`: verifies the audit log that an edge writes."""

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

app = typer.Typer(help="Verify the audit log.", no_args_is_help=True)


@app.callback()
def _audit() -> None:
    pass


@app.command()
def verify(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="One log and its rotated files, in any order; also .gz."
        ),
    ],
    *,
    noted: Annotated[
        str | None,
        typer.Option(
            metavar="HASH",
            help="A hash shown by an earlier run; fail unless the log still contains its line.",
        ),
    ] = None,
) -> None:
    """Verify that every line of an audit log is as it was written.

    Exit code 0: it is. 1: it is not; the first wrong line is shown. 2: this is not an audit log.
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
    if noted is not None and not verifier.found_expected:
        typer.echo(f"relay: no line has the hash {noted}: the log was cut or is another", err=True)
        raise typer.Exit(1)
    for line in _summary(verifier):
        typer.echo(line)


def _summary(verifier: ChainVerifier) -> Iterator[str]:
    first, last = verifier.first, verifier.first + verifier.lines - 1
    yield f"All {verifier.lines} lines, {first} to {last} of their chain, are as they were written."
    if first > 0:
        yield f"Lines 0 to {first - 1} are in older files, which were not given."
    if verifier.torn:
        yield f"Cut off while they were written, and reported by the next line: {verifier.torn}."
    yield f"First  {verifier.begins}"
    yield f"Last   {verifier.ends}"
    yield f"Hash   {verifier.hash}"
    yield "Keep the hash elsewhere: --noted HASH detects lines that are cut off the end later."


def _first_number(path: Path) -> int:
    from relay.auth.audit import line_number

    with _opened(path) as lines:
        first = next(lines, b"")
    if not first:
        raise _NotAnAuditLogError(f"{path}: the file is empty")
    found = line_number(first)
    # A file with an unreadable first line comes first, so that its mistake is reported.
    return -1 if found is None else found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterator[bytes]]:
    """Open a file as an iterator of its lines, each bounded by the length of a valid line."""
    from relay.auth.audit import LINE_BYTES

    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield iter(lambda: file.readline(LINE_BYTES), b"")


class _NotAnAuditLogError(OSError):
    """The file is not an audit log."""


def _problem(error: Exception) -> str:
    name = getattr(error, "filename", None)
    text = getattr(error, "strerror", None) or str(error)
    return f"{name}: {text}" if name else text
