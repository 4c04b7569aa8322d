"""`relay down`: stops a running `relay up`, and with --kernels its kernels."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from relay.supervisor import StateFolder

STOP_TIMEOUT: Final = 30.0
"""Seconds that a relay has to stop before it is killed."""
KERNELS_TIMEOUT: Final = 20.0
"""Seconds for the kernels to end."""
HOLDERS_TIMEOUT: Final = 5.0
"""Seconds for the kernels' holders to end after that."""
_INTERVAL: Final = 0.05


def down(
    *,
    state_dir: Annotated[Path | None, typer.Option(help="As given to `relay up`.")] = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="End the kernels too.")] = False,
) -> None:
    """Stop a running `relay up`. Kernels keep running, unless --kernels is given."""
    from relay import supervisor
    from relay.cli import output

    path = (state_dir or supervisor.default_state_dir(os.environ)).expanduser().absolute()
    typer.echo(_stop(supervisor.StateFolder(path)))
    if kernels:
        from relay.agent.holders.stop_all import end_kernels

        ended = asyncio.run(end_kernels(path, KERNELS_TIMEOUT)) if path.is_dir() else 0
        typer.echo(f"Ended {output.count(ended, 'kernel')}.")
        if left := _remaining(path):
            typer.echo(f"relay: {output.count(left, 'kernel')} did not end", err=True)
            raise typer.Exit(1)
    else:
        option = output.state_option(path, os.environ)
        output.show(output.remaining_kernels(supervisor.living_kernels(path), option))


def _stop(folder: StateFolder) -> str:
    """Stop the relay of this directory; return the message for the user."""
    from relay.supervisor import lock_owner

    owner = lock_owner(folder)
    if owner is None:
        return f"No relay is running on {folder.path}."
    os.kill(owner, signal.SIGTERM)
    if _gone(folder, owner, STOP_TIMEOUT):
        return f"Stopped the relay, process {owner}."
    # The edge and the agents are ended with their parent.
    os.kill(owner, signal.SIGKILL)
    _gone(folder, owner, STOP_TIMEOUT)
    return f"Killed the relay, process {owner}: it did not stop within {STOP_TIMEOUT:.0f} s."


def _gone(folder: StateFolder, owner: int, timeout: float) -> bool:
    from relay.supervisor import lock_owner

    deadline = time.monotonic() + timeout
    while lock_owner(folder) == owner:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_INTERVAL)
    return True


def _remaining(path: Path) -> int:
    """Wait until the kernels' holders have ended; return the number of kernels that remain."""
    from relay.supervisor import living_kernels

    deadline = time.monotonic() + HOLDERS_TIMEOUT
    while (left := living_kernels(path).total()) and time.monotonic() < deadline:
        time.sleep(_INTERVAL)
    return left
