"""Kernels of a running relay: their kernelspecs, their folders, their holders."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from relay.kernel_folders import KernelFolder, KernelRecord, kernels_folder
from tests.system.running import RunningRelay

IPYKERNEL = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
# A kernel whose ZMQ cannot do ipc.
TCP_ONLY = """
import json, os, sys
connection, *ipykernel = sys.argv[1:]
if json.load(open(connection))["transport"] == "ipc":
    sys.exit("I cannot do ipc")
os.execv(ipykernel[0], ipykernel)
"""


def kernelspec(folder: Path, name: str, *argv: str, **more: Any) -> None:
    """Write a kernelspec into a folder of ``JUPYTER_PATH``."""
    place = folder / "kernels" / name
    place.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": "python", **more}
    (place / "kernel.json").write_text(json.dumps(spec))


def wrapped(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script, "{connection_file}", *IPYKERNEL)


def place_of(relay: RunningRelay, kernel: str, cluster: str = "alpha") -> KernelFolder:
    return KernelFolder(kernels_folder(relay.state, cluster) / kernel)


def record_of(relay: RunningRelay, kernel: str) -> KernelRecord:
    record = place_of(relay, kernel).read_record()
    assert record is not None
    return record


def kill_holder(relay: RunningRelay, kernel: str) -> KernelRecord:
    """SIGKILL for a kernel's holder; what it had noted."""
    record = record_of(relay, kernel)
    os.kill(record.holder_pid, signal.SIGKILL)
    return record
