"""Kernels that are not ipykernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.channels import Message, is_over, of
from tests.system.kernels import kill_holder
from tests.system.running import RunningRelay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def xpython(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with xeus-python's kernelspec, installed from its package."""
    folder = tmp_path_factory.mktemp("xeus")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    done = subprocess.run(
        [folder / "bin/pip", "install", "--quiet", "xeus-python"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"xeus-python cannot be installed: {done.stderr[-300:]}")
    # Its argv begins with "python", which means the agent's: here it has an environment of its own.
    for path in (folder / "share/jupyter/kernels").glob("*/kernel.json"):
        spec = json.loads(path.read_text())
        spec["argv"][0] = str(folder / "bin/python")
        path.write_text(json.dumps(spec))
    return folder / "share/jupyter"


@pytest.fixture(scope="module")
def irkernel() -> Path:
    """A folder with IRkernel's kernelspec, from the distribution's packages."""
    if shutil.which("R") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("R is not installed, and cannot be by this user")
        for command in (
            ["apt-get", "update"],
            [
                "apt-get",
                "-o",
                "DPkg::Lock::Timeout=300",
                "install",
                "-y",
                "--no-install-recommends",
                "r-cran-irkernel",
            ],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"IRkernel cannot be installed: {done.stderr[-300:]}")
    return Path("/usr/share/jupyter")


def relay_with(folder: Path) -> Iterator[RunningRelay]:
    with RunningRelay(("alpha",), environ={"JUPYTER_PATH": str(folder)}) as running:
        yield running


@pytest.fixture(scope="module")
def with_xpython(xpython: Path) -> Iterator[RunningRelay]:
    yield from relay_with(xpython)


@pytest.fixture(scope="module")
def with_r(irkernel: Path) -> Iterator[RunningRelay]:
    yield from relay_with(irkernel)


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
def test_xeus_python(with_xpython: RunningRelay, v1: bool) -> None:
    names = with_xpython.request("GET", "/alpha/api/kernelspecs").json["kernelspecs"]
    name = next(name for name in sorted(names) if name.startswith("xpython"))
    kernel = with_xpython.start_kernel("alpha", name=name)
    with with_xpython.connect("alpha", kernel, v1=v1) as channels:
        done = channels.execute("for i in range(500): print(i)")
        assert done.stdout.split() == [str(number) for number in range(500)]
        assert done.states == ["busy", "idle"]
        assert "ZeroDivisionError" in channels.execute("1/0").replies[0]["ename"]
        with_xpython.kill_agent("alpha")
        assert channels.execute("print('still here')").stdout == "still here\n"
    assert with_xpython.request("POST", f"/alpha/api/kernels/{kernel}/restart", {}).status == 200
    assert with_xpython.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204


def test_xeus_python_is_adopted(with_xpython: RunningRelay) -> None:
    names = with_xpython.request("GET", "/alpha/api/kernelspecs").json["kernelspecs"]
    name = next(name for name in sorted(names) if name.startswith("xpython"))
    kernel = with_xpython.start_kernel("alpha", name=name)
    with with_xpython.connect("alpha", kernel) as channels:
        channels.execute("kept = 1")
        done = 0
        for code in ("pass", "import time; time.sleep(2)"):
            running = channels.submit(code)
            queued = channels.submit("kept += 1")
            kill_holder(with_xpython, kernel)
            # What was lost of the first may be made up for behind the second.
            came: list[Message] = []
            while not (is_over(came, running) and is_over(came, queued)):
                came.append(channels.receive())
            for msg_id in (running, queued):
                (reply,) = of(came, msg_id).replies
                assert reply["status"] == "ok" or reply["ename"] == "RelayReplyLost"
            done += of(came, queued).replies[0]["status"] == "ok"
        # One whose reply is lost may have died with the holder, on its way to the kernel.
        assert 1 + done <= int(channels.execute("print(kept)").stdout) <= 3
    assert with_xpython.request("POST", f"/alpha/api/kernels/{kernel}/restart", {}).status == 200
    assert with_xpython.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204


def test_irkernel(with_r: RunningRelay) -> None:
    names = with_r.request("GET", "/alpha/api/kernelspecs").json["kernelspecs"]
    assert "ir" in names
    kernel = with_r.start_kernel("alpha", name="ir")
    with with_r.connect("alpha", kernel) as channels:
        assert channels.execute("cat(6 * 7, '\\n')").stdout.strip() == "42"
        assert channels.execute("stop('no')").replies[0]["status"] == "error"
    assert with_r.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204
