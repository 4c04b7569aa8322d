"""`relay check-config`: what is wrong with configurations, and what is dangerous about them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

if TYPE_CHECKING:
    from relay.cli.checks import Finding, Severity
    from relay.config import Loaded

Files = Annotated[
    list[Path] | None, typer.Argument(metavar="FILE...", help="What it is for is found out.")
]
_ERRORS: Final = 2
_WARNINGS: Final = 1


class ReportLine(NamedTuple):
    """One finding and where it is."""

    severity: Severity
    text: str


def check_config(
    files: Files = None,
    *,
    edge: Annotated[Path | None, typer.Option(metavar="FILE", help="For `relay edge`.")] = None,
    agent: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="For `relay agent`; repeatable.")
    ] = None,
    up: Annotated[Path | None, typer.Option(metavar="FILE", help="For `relay up`.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
) -> None:
    """Check configurations, alone and against each other: all mistakes, and what is dangerous.

    Exit code 0: they can be used. 1: they can, and with --strict there are warnings. 2: they
    cannot. Variables (RELAY_*) count as they do at a start.
    """
    given = [*((each, None) for each in files or ()), *((each, "agent") for each in agent or ())]
    given += [(path, kind) for path, kind in ((edge, "edge"), (up, "up")) if path is not None]
    if not given:
        raise typer.BadParameter("name a configuration file, as config/edge.yaml")
    lines = list(_check(given))
    for line in lines:
        typer.echo(f"{line.severity}: {line.text}")
    errors = sum(line.severity == "error" for line in lines)
    warnings = len(lines) - errors
    typer.echo(_summary(errors, warnings))
    raise typer.Exit(_ERRORS if errors else _WARNINGS if warnings and strict else 0)


def _check(given: list[tuple[Path, str | None]]) -> Iterator[ReportLine]:
    from relay.cli.checks import across_files, findings_of
    from relay.config import AgentConfig, EdgeConfig

    all_loaded: list[Loaded[Any]] = []
    for path, kind in given:
        loaded = yield from _load(path, kind)
        if loaded is not None:
            all_loaded.append(loaded)
            yield from _located(findings_of(loaded.settings), loaded)
    for one in all_loaded:
        for other in all_loaded:
            if isinstance(one.settings, EdgeConfig) and isinstance(other.settings, AgentConfig):
                found = across_files.findings_between(one.settings, other.settings)
                yield from _located(found, other)


def _load(path: Path, kind: str | None) -> Generator[ReportLine, None, Loaded[Any] | None]:
    from relay.config import ConfigError, load_located

    kinds = _kinds()
    try:
        chosen = kinds[kind] if kind is not None else _guess(path, list(kinds.values()))
        return load_located(chosen, path, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            subject = f"{problem.path}: {problem.text}" if problem.path else problem.text
            yield ReportLine("error", f"{problem.where or path}: {subject}")
    return None


def _kinds() -> dict[str, type[Any]]:
    from relay.config import AgentConfig, EdgeConfig, UpConfig

    return {"edge": EdgeConfig, "agent": AgentConfig, "up": UpConfig}


def _guess(path: Path, kinds: list[type[Any]]) -> type[Any]:
    """The kind of settings that has most of the names in a file. Raises ``ConfigError``."""
    import yaml

    from relay.config import ConfigError, Problem

    try:
        written = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([Problem("", f"cannot be read: {error.strerror}", str(path))]) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        # Whatever it is, reading it again says what is wrong, and where.
        written = {}
    names = set(written) if isinstance(written, dict) else set()
    fitting = [len(names.intersection(kind.__struct_fields__)) for kind in kinds]
    best = max(fitting)
    if fitting.count(best) > 1 and names:
        text = "this could be for several programs: say --edge, --agent or --up"
        raise ConfigError([Problem("", text, str(path))])
    return kinds[fitting.index(best)]


def _located(findings: list[Finding], loaded: Loaded[Any]) -> Iterator[ReportLine]:
    for each in findings:
        where = loaded.where(each.path)
        subject = f"{each.path}: {each.text}" if each.path else each.text
        yield ReportLine(each.severity, f"{where}: {subject}" if where else subject)


def _summary(errors: int, warnings: int) -> str:
    from relay.cli.output import count

    if not errors and not warnings:
        return "No mistake was found, and nothing dangerous."
    return f"{count(errors, 'error')}, {count(warnings, 'warning')}."
