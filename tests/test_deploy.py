from __future__ import annotations

import configparser
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from relay.cli import app

UNITS = sorted((Path(__file__).parent.parent / "deploy/systemd").glob("*.service"))


def read(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return parser


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_run_commands_that_exist(unit: Path) -> None:
    program, *arguments = shlex.split(read(unit)["Service"]["ExecStart"])
    assert Path(program).name == "relay"
    # The configuration is not there: everything else must have been understood.
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "/etc/kernel-relay/" in result.output
    assert "o such option" not in result.output


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_wait_until_the_program_says_it_is_ready(unit: Path) -> None:
    assert read(unit)["Service"]["Type"] == "notify"


def test_stopping_an_agent_leaves_its_kernels() -> None:
    [agent] = [unit for unit in UNITS if "agent" in unit.stem]
    assert read(agent)["Service"]["KillMode"] == "process"
