from __future__ import annotations

import pytest
import typer
from aiohttp import http_parser

from relay.cli.exit_on_error import exit_on_error, require_strict_parser
from relay.config import ConfigError
from relay.config.loading import Problem
from relay.processes import StartError


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([Problem("port", "is required"), Problem("host", "is required")]),
        StartError("port: is required\nhost: is required"),
    ],
)
def test_an_error_of_the_operator_is_a_line_each_and_exit_code_2(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, exit_on_error():
        raise error
    assert caught.value.exit_code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "relay: port: is required\nrelay: host: is required\n")


def test_a_defect_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), exit_on_error():
        raise KeyError("x")
    assert capsys.readouterr() == ("", "")


def test_without_an_error_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with exit_on_error():
        done = True
    assert done
    assert capsys.readouterr() == ("", "")


def test_the_c_parser_is_accepted() -> None:
    require_strict_parser({"AIOHTTP_NO_EXTENSIONS": ""})


def test_a_variable_that_turns_the_c_parser_off_is_refused() -> None:
    with pytest.raises(StartError, match="AIOHTTP_NO_EXTENSIONS is set"):
        require_strict_parser({"AIOHTTP_NO_EXTENSIONS": "0"})


def test_an_installation_without_the_c_parser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(StartError, match="installed without its C parser"):
        require_strict_parser({})
