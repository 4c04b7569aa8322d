from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from relay import __version__

Run = Callable[..., tuple[int, str, str]]


def test_version(relay: Run) -> None:
    assert relay("--version") == (0, f"relay {__version__}\n", "")


def test_python_m_relay() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "relay", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"relay {__version__}\n"


def test_help_lists_the_subcommands(relay: Run) -> None:
    code, out, _ = relay("--help")
    assert code == 0
    assert all(f" {name} " in out for name in ("up", "down", "edge", "agent"))
    assert "die-with-parent" not in relay("edge", "--help")[1]


def test_nothing_asked_shows_help(relay: Run) -> None:
    code, out, err = relay()
    assert code == 2
    assert "Usage" in out
    assert err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--https-port", "many"],
        ["up", "--https-port", "65536"],
        ["up", "--wss-port", "-1"],
        ["up", "--edge-workers", "0"],
        ["up", "--no-such-option"],
        ["up", "alpha"],
        ["edge"],
        ["agent"],
        ["sideways"],
    ],
)
def test_bad_usage_is_one_line(relay: Run, arguments: list[str]) -> None:
    code, out, err = relay(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("relay: ")
    assert err.count("\n") == 1


def test_help_imports_no_program() -> None:
    source = (
        "import sys, relay.cli\n"
        "heavy = {'aiohttp', 'cryptography', 'zmq', 'jupyter_client', 'yaml', 'uvloop'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", source], check=True)
