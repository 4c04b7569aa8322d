"""The rooms import only what .importlinter and docs/architecture.md allow them."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PURE_ROOMS = ("auth", "routing", "bridge")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter over the ``relay`` package in ``folder``."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache", "--no-logo"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its rules, to break."""
    shutil.copy(ROOT / ".importlinter", tmp_path)
    shutil.copytree(ROOT / "relay", tmp_path / "relay", ignore=shutil.ignore_patterns("*.pyc"))
    return tmp_path


def test_every_room_keeps_the_rules() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("bridge/planted.py", "import relay.config", "Imports point down only"),
        ("auth/planted.py", "import relay.bridge", "Imports point down only"),
        ("edge/planted.py", "import relay.agent", "Imports point down only"),
        ("agent/channels/planted.py", "import relay.agent.api.access", "Within the agent imports"),
        ("agent/holders/planted.py", "import relay.agent.main", "Within the agent imports"),
        ("agent/launchers/planted.py", "import relay.agent.holders", "Within the agent imports"),
        ("agent/privsep/planted.py", "import relay.agent.launchers", "Within the agent imports"),
        ("agent/unplaced.py", "", "Within the agent imports"),
        ("processes/planted.py", "import relay.config", "Imports point down only"),
        ("unplaced.py", "", "Imports point down only"),
        ("auth/planted.py", "import time", "auth, routing, bridge and backoff do no I/O"),
        (
            "bridge/planted.py",
            "import asyncio.streams",
            "auth, routing, bridge and backoff do no I/O",
        ),
        (
            "routing/planted.py",
            "from os import path",
            "auth, routing, bridge and backoff do no I/O",
        ),
        ("agent/planted.py", "import zmq.asyncio", "Only the holder imports zmq"),
        (
            "agent/planted.py",
            "import jupyter_client",
            "Only holder.backends and agent.api.kernelspecs",
        ),
        (
            "holder/planted.py",
            "import jupyter_client",
            "Only holder.backends and agent.api.kernelspecs",
        ),
        ("client/planted.py", "import relay.config", "The client for scripts knows"),
        ("edge/upstream/planted.py", "import relay.edge.http", "In the edge, imports"),
        ("edge/authn/planted.py", "import relay.edge.listener", "In the edge, imports"),
        ("edge/caller.py", "import relay.edge.upstream.call", "In the edge, imports"),
        ("edge/unplaced.py", "", "In the edge, imports"),
        ("edge/ipc/server.py", "import relay.edge.ipc.quotas", "The edge's IPC knows none of its"),
    ],
)
def test_a_broken_rule_is_noticed(copy: Path, module: str, line: str, rule: str) -> None:
    file = copy / "relay" / module
    file.parent.mkdir(exist_ok=True)
    (file.parent / "__init__.py").touch()
    with file.open("a") as text:
        text.write(f"\n{line}\n")
    result = lint(copy)
    assert result.returncode != 0
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text]
    assert [text for text in broken if text.startswith(rule)], result.stdout


AIOHTTP_CLIENTS = ("edge/upstream/", "edge/authn/jwks_client.py", "edge/authn/jupyterhub.py")
"""The parts of the edge that open HTTP connections, and so meet aiohttp's client errors."""
SERVER_NAMES = {"web", "hdrs", "HttpVersion11"}
"""What the others may use of aiohttp."""


def aiohttp_names(source: str) -> Iterator[str]:
    """Name what ``source`` imports of aiohttp; "*" for all of it."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ("*" for each in names if each.name.split(".")[0] == "aiohttp")
            case ast.ImportFrom(module="aiohttp", names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=str(module)) if module.startswith("aiohttp."):
                yield "*"


def test_aiohttps_client_stays_where_connections_are_opened() -> None:
    edge = ROOT / "relay" / "edge"
    found = {
        str(file.relative_to(edge.parent)): set(aiohttp_names(file.read_text())) - SERVER_NAMES
        for file in sorted(edge.rglob("*.py"))
    }
    users = {file for file, names in found.items() if names}
    assert users
    assert not [file for file in users if not file.startswith(AIOHTTP_CLIENTS)]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import aiohttp", ["*"]),
        ("import aiohttp.client", ["*"]),
        ("from aiohttp import ClientError, web", ["ClientError", "web"]),
        ("from aiohttp.client_exceptions import ClientError", ["*"]),
        ("from relay import aiohttp", []),
    ],
)
def test_an_import_of_aiohttp_is_noticed(source: str, names: list[str]) -> None:
    assert list(aiohttp_names(source)) == names


def impure_calls(source: str) -> Iterator[str]:
    """Name the calls in ``source`` that read a clock or touch a file without any import to see."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="open" | "print" | "input" as name)):
                yield name
            case ast.Attribute(
                value=ast.Name(id="datetime" | "date") | ast.Attribute(attr="datetime" | "date"),
                attr="now" | "utcnow" | "today" as name,
            ):
                yield name


@pytest.mark.parametrize("room", PURE_ROOMS)
def test_pure_rooms_read_no_clock_and_open_no_file(room: str) -> None:
    files = sorted((ROOT / "relay" / room).rglob("*.py"))
    assert files
    impure = {str(file): list(impure_calls(file.read_text())) for file in files}
    assert not {file: calls for file, calls in impure.items() if calls}


@pytest.mark.parametrize(
    "source",
    ["open('x')", "datetime.now(UTC)", "dt.datetime.utcnow()", "f(date.today)", "print(1)"],
)
def test_an_impure_call_is_noticed(source: str) -> None:
    assert list(impure_calls(source))
