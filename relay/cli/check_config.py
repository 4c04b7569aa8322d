"""`relay check-config`: reports mistakes and dangerous settings in configurations."""

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
    list[Path] | None,
    typer.Argument(metavar="FILE...", help="Configuration files; the program of each is detected."),
]
_ERRORS: Final = 2
_WARNINGS: Final = 1


class ReportLine(NamedTuple):
    """One finding with its place."""

    severity: Severity
    text: str


def check_config(
    files: Files = None,
    *,
    edge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file of `relay edge`.")
    ] = None,
    agent: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A file of `relay agent`; repeatable.")
    ] = None,
    up: Annotated[Path | None, typer.Option(metavar="FILE", help="A file of `relay up`.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings.")] = False,
) -> None:
    """Check configurations, alone and against each other, for mistakes and dangerous settings.

    Exit code 0: they are valid. 1: they are valid, but with --strict there are warnings. 2: they
    are not valid. Variables (RELAY_*) are read as at a start.
    """
    given = [*((each, None) for each in files or ()), *((each, "agent") for each in agent or ())]
    given += [(path, kind) for path, kind in ((edge, "edge"), (up, "up")) if path is not None]
    if not given:
        raise typer.BadParameter("expected a configuration file, such as config/edge.yaml")
    lines = list(_check(given))
    for line in lines:
        typer.echo(f"{line.severity}: {line.text}")
    errors = sum(line.severity == "error" for line in lines)
    warnings = len(lines) - errors
    typer.echo(_summary(errors, warnings))
    raise typer.Exit(_ERRORS if errors else _WARNINGS if warnings and strict else 0)


def _check(given: list[tuple[Path, str | None]]) -> Iterator[ReportLine]:
    from relay.cli.checks import findings_of

    all_loaded: list[Loaded[Any]] = []
    for path, kind in given:
        loaded = yield from _load(path, kind)
        if loaded is not None:
            all_loaded.append(loaded)
            yield from _located(findings_of(loaded.settings), loaded)
    yield from _compare(all_loaded)


def _compare(all_loaded: list[Loaded[Any]]) -> Iterator[ReportLine]:
    """Check each agent against every edge, and against the first agent of its cluster."""
    from relay.cli.checks import across_files, nodes
    from relay.config import AgentConfig, EdgeConfig

    edges = [each for each in all_loaded if isinstance(each.settings, EdgeConfig)]
    agents = [each for each in all_loaded if isinstance(each.settings, AgentConfig)]
    firsts: dict[str, Loaded[Any]] = {}
    for agent in agents:
        for edge in edges:
            yield from _located(across_files.findings_between(edge.settings, agent.settings), agent)
        first = firsts.setdefault(agent.settings.cluster, agent)
        where = first.where("state_dir")
        yield from _located(nodes.findings_among(agent.settings, first.settings, where), agent)


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
    """Return the kind of settings with most of a file's names. Raises ``ConfigError``."""
    import yaml

    from relay.config import ConfigError, Problem

    try:
        written = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([Problem("", f"cannot be read: {error.strerror}", str(path))]) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        # The file is read again, which reports the mistake and its place.
        written = {}
    names = set(written) if isinstance(written, dict) else set()
    fitting = [len(names.intersection(kind.__struct_fields__)) for kind in kinds]
    best = max(fitting)
    if fitting.count(best) > 1 and names:
        text = "this fits several programs: use --edge, --agent or --up"
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
        return "No mistakes and no dangerous settings were found."
    return f"{count(errors, 'error')}, {count(warnings, 'warning')}."
