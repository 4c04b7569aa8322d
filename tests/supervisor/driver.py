"""Runs the supervisor with stand-ins for its programs: driver.py STATE_DIR HTTPS WSS."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from relay import log
from relay.config import ListenSettings, UpConfig
from relay.processes import Command, StartError
from relay.supervisor import ProgramFailed, Ready, StateFolder, plan, run

real = plan.command


def command(*arguments: Any) -> Command:
    """The real command, run by the stand-in instead of ``-m relay``."""
    made = real(*arguments)
    standin = str(Path(__file__).with_name("standin.py"))
    python, *_, program = made.argv[: made.argv.index("--config")]
    options = made.argv[made.argv.index("--config") :]
    return Command(
        name=made.name,
        argv=(python, "-I", "-S", standin, "relay", program, *options),
        environment=made.environment,
        listeners=made.listeners,
    )


def announce(ready: Ready) -> None:
    print("ready", ready.https_url, flush=True)  # noqa: T201 - read by the test


setattr(plan, "command", command)  # noqa: B010 - of another signature
log.configure(component="supervisor")
state, https, wss = sys.argv[1:]
config = UpConfig(
    https=ListenSettings(port=int(https)),
    wss=ListenSettings(port=int(wss)),
    clusters=["alpha", "wss"],
)
try:
    run(config, StateFolder(Path(state)), os.environ, announce)
except StartError as error:
    sys.exit(f"refused: {error}")
except ProgramFailed as error:
    sys.exit(f"failed: {error}")
