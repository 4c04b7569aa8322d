"""Jupyter Server's own tests of its kernels' and kernelspecs' API, with the relay as the server.

They are in its source distribution only, which is fetched when they run.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.system.running import RunningRelay

FILES: Final = {
    "kernels/test_api.py": 7,
    "kernels/test_execution_state.py": 1,
    "kernels/test_restart_error.py": 2,
    "kernelspecs/test_api.py": 6,
}
"""What is run, and how many of its tests must pass at least."""

LEFT_OUT: Final = {
    "test_resolve_path": "/api/resolvePath looks for files of Jupyter Server's contents API, "
    "which the relay does not have",
    "test_kernel_handler_startup_error_pending": "of pending kernels, a setting of Jupyter "
    "Server's: the relay answers when the kernel is there",
    "test_restart_failure_returns_500_json": "replaces a method of the server in this process",
}
"""Of those files; a name stands for all that begin with it.

Other files of services/kernels are not run at all: test_config, test_connection, test_events and
test_transport_encryption look into Jupyter Server's objects, and test_cull sets its own options
anew for every test (the relay's culling has tests of its own).
"""


@pytest.fixture(scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution of the version that is installed."""
    assert request.config.cache is not None
    version = importlib.metadata.version("jupyter_server")
    cache = request.config.cache.mkdir("sdists")
    archive = cache / f"jupyter_server-{version}.tar.gz"
    if not archive.exists():
        # Under another name until it is whole.
        folder = tmp_path_factory.mktemp("download")
        wanted = f"jupyter_server=={version}"
        options = ("--quiet", "--disable-pip-version-check", "--no-binary", ":all:", "--no-deps")
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, "--dest", folder, wanted],
            check=True,
            timeout=240,
        )
        shutil.copy(folder / archive.name, cache / f"{archive.name}.part")
        (cache / f"{archive.name}.part").replace(archive)
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def own() -> Iterator[RunningRelay]:
    """A relay without any other kernels."""
    with RunningRelay(("alpha",)) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jupyter_servers_own_tests_pass(own: RunningRelay, source: Path) -> None:
    shutil.copy(Path(__file__).with_name("server_api.py"), source / "tests/services/conftest.py")
    left_out = " or ".join(LEFT_OUT)
    done = subprocess.run(
        # Their settings, without what they take for a failure of Jupyter Server.
        [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(source)]
        + ["-p", "no:asyncio", "-p", "no:cacheprovider", "-k", f"not ({left_out})", "-vv", "-rA"]
        + [f"tests/services/{file}" for file in FILES],
        cwd=source,
        env={
            **own.environ,
            "RELAY_URL": f"{own.info.https_url}/alpha",
            "RELAY_TOKEN": own.info.token,
            "RELAY_CA": own.info.ca,
            "RELAY_DATA": own.environ["JUPYTER_DATA_DIR"],
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for file, count in FILES.items():
        passed = re.findall(rf"^PASSED \S*{file}::\S+", done.stdout, re.MULTILINE)
        assert len(passed) == count, done.stdout
