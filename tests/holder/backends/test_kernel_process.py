"""A kernel's process, with kernelspecs whose program is no kernel but does as it is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.bridge.messages import Channel
from relay.errors import StartFailed
from relay.holder.backends.kernel_process import KernelProcess, LaunchPlan
from relay.kernel_folders import KernelRecord, process_started

SLEEPER = "import signal, time; signal.signal(signal.SIGINT, lambda *_: exit(7)); "
SLEEPER += "print('up', '{word}', flush=True); time.sleep(60)"


def write_spec(folder: Path, name: str, **more: Any) -> None:
    spec = {"argv": [sys.executable, "-c", SLEEPER], "display_name": "S", "language": "none"}
    (folder / "kernels" / name).mkdir(parents=True)
    (folder / "kernels" / name / "kernel.json").write_text(json.dumps({**spec, **more}))


def plan(folder: Path, **more: Any) -> LaunchPlan:
    chosen = {
        "kernel_id": "k",
        "name": "sleeper",
        "environment": dict(os.environ),
        "working_folder": None,
        "connection_file": folder / "connection.json",
        "log_file": folder / "kernel.log",
        "ipc_prefix": folder / "s",
        "shutdown_timeout": 0.1,
        **more,
    }
    return LaunchPlan(**chosen)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    write_spec(tmp_path, "sleeper")
    return tmp_path


@pytest.fixture
async def process(folder: Path) -> AsyncIterator[KernelProcess]:
    made = KernelProcess(plan(folder, parameters={"word": "{word}"}))
    yield made
    await made.stop(now=True)


async def test_a_process_is_launched_and_ended(process: KernelProcess, folder: Path) -> None:
    assert await process.exit_code() == -1
    endpoints = await process.launch()
    assert endpoints.addresses[Channel.SHELL].startswith(f"ipc://{folder}/s-")
    assert process.pid is not None
    assert await process.exit_code() is None
    await process.stop(now=True)
    assert process_started(process.pid or 0) is None
    assert not (folder / "connection.json").exists()


async def test_what_another_holder_needs_is_noted(process: KernelProcess) -> None:
    await process.launch()
    assert process.noted["kernelspec"]["display_name"] == "S"
    # A value that looks like a parameter is none.
    assert "'up', '{word}'" in process.noted["kernelspec"]["argv"][-1]
    assert "connection_info" not in process.noted["provisioner"]


async def test_a_process_of_another_holder_is_adopted_and_ended(
    process: KernelProcess, folder: Path
) -> None:
    endpoints = await process.launch()
    pid = process.pid
    assert pid is not None
    record = KernelRecord(
        holder_pid=1,
        holder_started=1,
        epoch="e",
        kernel_pid=pid,
        kernel_started=process_started(pid),
        **process.noted,
    )
    next_one = KernelProcess(plan(folder))
    assert await next_one.adopt(record) == endpoints
    assert next_one.pid == pid
    assert await next_one.exit_code() is None
    assert (next_one.key, next_one.transport) == (process.key, "ipc")
    await next_one.stop(now=True)
    assert await next_one.exit_code() is not None


async def test_a_process_that_is_gone_is_adopted_as_one_that_has_ended(
    process: KernelProcess, folder: Path
) -> None:
    await process.launch()
    pid = process.pid
    assert pid is not None
    record = KernelRecord(
        holder_pid=1,
        holder_started=1,
        epoch="e",
        kernel_pid=pid,
        # Another process by now.
        kernel_started=(process_started(pid) or 0) + 1,
        **process.noted,
    )
    next_one = KernelProcess(plan(folder))
    await next_one.adopt(record)
    assert next_one.pid is None
    assert await next_one.exit_code() is not None
    os.kill(pid, signal.SIGKILL)


async def test_a_kernelspec_that_is_not_there_is_named(folder: Path) -> None:
    other = KernelProcess(plan(folder, name="other"))
    with pytest.raises(StartFailed, match="no kernelspec named 'other'"):
        await other.launch()
    other.log.close()


async def test_a_program_that_is_not_there_tells_no_path(folder: Path) -> None:
    write_spec(folder, "broken", argv=["/secret/place/program"])
    broken = KernelProcess(plan(folder, name="broken"))
    with pytest.raises(StartFailed) as caught:
        await broken.launch()
    broken.log.close()
    assert "secret" not in caught.value.message


async def test_ports_are_of_the_range_and_free(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        tcp = plan(folder, transport="tcp", port_range=f"{port}-{port}")
        with pytest.raises(StartFailed, match="no five free ports"):
            KernelProcess(tcp)
    made = KernelProcess(plan(folder, transport="tcp", port_range="20000-60000"))
    ports = {getattr(made._manager, f"{name}_port") for name in ("shell", "iopub", "stdin", "hb")}
    assert len(ports) == 4
    assert all(20000 <= each <= 60000 for each in ports)


async def test_tcp_takes_the_place_of_ipc_for_good(process: KernelProcess) -> None:
    assert process.transport == "ipc"
    process.use_tcp()
    endpoints = await process.launch()
    assert process.transport == "tcp"
    assert endpoints.heartbeat.startswith("tcp://127.0.0.1:")
