"""`relay up`: runs everything on one machine, without configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli.exit_on_error import exit_on_error, require_strict_parser

if TYPE_CHECKING:
    from relay.config import UpConfig

HttpsPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, metavar="N", help="Port for HTTPS; 0 takes a free one."),
]
WssPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, metavar="N", help="Port for channels only; 0 takes a free one."),
]


def up(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; the sample is config/up.yaml.")
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory for certificates, tokens and kernels"
            " (default: kernel-relay in the user's state directory)."
        ),
    ] = None,
    https_port: HttpsPort = None,
    wss_port: WssPort = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME ...", help="Names of local clusters (default: alpha beta)."),
    ] = None,
    edge_workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Worker processes of the edge.")
    ] = None,
    shared_uid: Annotated[
        bool,
        typer.Option(
            "--shared-uid",
            help="Let several users start kernels, all as one OS user: users are not isolated.",
        ),
    ] = False,
) -> None:
    """Run an edge and local clusters until Ctrl-C. Kernels keep running after that."""
    # `--cluster a b` as well as `--cluster a --cluster b`.
    if context.args and not cluster:
        raise typer.BadParameter(f"unexpected argument {context.args[0]!r}")
    clusters = [*(cluster or ()), *context.args]
    with exit_on_error():
        require_strict_parser(os.environ)
        settings = _settings(config, https_port, wss_port, clusters, edge_workers, shared_uid)
        chosen = state_dir or (Path(settings.state_dir) if settings.state_dir else None)
        _run(settings, chosen)


def _settings(
    path: Path | None,
    https_port: int | None,
    wss_port: int | None,
    clusters: list[str],
    edge_workers: int | None,
    shared_uid: bool,
) -> UpConfig:
    """Return the configuration with the options applied. Raises `StartError`."""
    from msgspec.structs import replace

    from relay.config import UpConfig, load
    from relay.config.jupyterhub import base_url
    from relay.processes import StartError
    from relay.routing.clusters import check_name

    settings = load(UpConfig, path, os.environ)
    try:
        hub = None if settings.authentication is None else settings.authentication.jupyterhub
        prefix = base_url(settings.base_url, hub, os.environ)
    except ValueError as error:
        raise StartError(str(error)) from None
    options = {
        "base_url": prefix,
        "https": None if https_port is None else replace(settings.https, port=https_port),
        "wss": None if wss_port is None else replace(settings.wss, port=wss_port),
        "clusters": clusters or None,
        "edge_workers": edge_workers,
        "shared_uid": shared_uid or None,
    }
    for name in clusters:
        try:
            check_name(name)
        except ValueError as error:
            raise StartError(f"--cluster {name}: {error}") from None
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return replace(settings, **given)
    except ValueError as error:
        raise StartError(str(error)) from None


def _run(settings: UpConfig, state_dir: Path | None) -> None:
    from relay import log, supervisor
    from relay.cli import output

    log.configure(settings.log.level, settings.log.format, component="supervisor")
    path = (state_dir or supervisor.default_state_dir(os.environ)).expanduser().absolute()
    folder = supervisor.StateFolder(path)
    failure: supervisor.ProgramFailed | None = None
    try:
        supervisor.run(
            settings,
            folder,
            os.environ,
            lambda ready: output.show(
                output.ready(ready, path, os.getuid(), shared=settings.shared_uid)
            ),
        )
    except supervisor.ProgramFailed as error:
        failure = error
        typer.echo(f"relay: {error}", err=True)
    option = output.state_option(path, os.environ)
    output.show(output.remaining_kernels(supervisor.living_kernels(path), option))
    raise typer.Exit(1 if failure else 0)
