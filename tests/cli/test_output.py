from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest

from relay.cli import output
from relay.supervisor import Ready
from relay.supervisor.state import MetricsUrls, Pids

READY = Ready(
    https_url="https://127.0.0.1:1",
    wss_url="wss://127.0.0.1:2",
    token="relay_" + "t" * 43,
    ca="/home/a b/[red]/ca.pem",
    clusters=("alpha", "beta"),
    metrics=MetricsUrls(edge="http://127.0.0.1:3/metrics", agents={}),
    pids=Pids(supervisor=1, edge=(), agents={}),
)


def text(*, shared: bool = True) -> str:
    lines = output.ready(READY, Path("/state"), 1000, shared=shared)
    return "\n".join(line.text for line in lines)


def test_everything_that_is_needed_is_there() -> None:
    shown = text()
    for needed in (
        READY.https_url,
        READY.wss_url,
        READY.token,
        READY.ca,
        "alpha, beta",
        "uid 1000",
        "users are not isolated",
        "/state/<cluster>/kernels/<id>/*.log",
        "stderr",
    ):
        assert needed in shown


def test_the_jupyterlab_lines_paste_as_one_command() -> None:
    lines = text().splitlines()
    last = next(n for n, line in enumerate(lines) if "jupyter lab" in line)
    first = max(n for n in range(last) if not lines[n].endswith("\\")) + 1
    assert shlex.split("\n".join(lines[first : last + 1]).replace("\\\n", " ")) == [
        f"SSL_CERT_FILE={READY.ca}",
        "JUPYTER_GATEWAY_WS_URL=wss://127.0.0.1:2/alpha",
        f"JUPYTER_GATEWAY_AUTH_TOKEN={READY.token}",
        *("jupyter", "lab", "--gateway-url", "https://127.0.0.1:1/alpha"),
    ]


def test_the_curl_line() -> None:
    (line,) = (line for line in text().splitlines() if line.lstrip().startswith("curl -"))
    assert shlex.split(line) == [
        *("curl", "--cacert", READY.ca, "-H", f"Authorization: token {READY.token}"),
        "https://127.0.0.1:1/alpha/api/kernelspecs",
    ]


def test_isolation_is_not_denied_where_there_is_one_user_only() -> None:
    assert "not isolated" not in text(shared=False)
    only = "All kernels run as uid 1000, for one user only; --shared-uid admits more users."
    assert only in text(shared=False).splitlines()


def test_the_vscode_line() -> None:
    assert f"  https://127.0.0.1:1/alpha/?token={READY.token}\n" in text()
    assert f"  NODE_EXTRA_CA_CERTS='{READY.ca}' code\n" in text()


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ({}, ["No kernel is running."]),
        (
            {"beta": 1},
            [
                "1 kernel keeps running (beta: 1).",
                "`relay up -x` serves it again; `relay down --kernels -x` ends it.",
            ],
        ),
        (
            {"beta": 1, "alpha": 2},
            [
                "3 kernels keep running (alpha: 2, beta: 1).",
                "`relay up -x` serves them again; `relay down --kernels -x` ends them.",
            ],
        ),
    ],
)
def test_what_is_left_behind(kernels: dict[str, int], expected: list[str]) -> None:
    assert [line.text for line in output.remaining_kernels(Counter(kernels), " -x")] == expected


def test_the_default_state_folder_needs_no_option() -> None:
    environ = {"RELAY_STATE_DIR": "/a b"}
    assert output.state_option(Path("/a b"), environ) == ""
    assert output.state_option(Path("/c d"), environ) == " --state-dir '/c d'"


def test_plain_output(capsys: pytest.CaptureFixture[str]) -> None:
    output.show([output.OutputLine("one", "bold"), output.OutputLine("[two]")])
    assert capsys.readouterr().out == "one\n[two]\n"


def test_a_narrow_terminal_breaks_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "dumb")
    output.show(output.ready(READY, Path("/state"), 1000, shared=False))
    assert capsys.readouterr().out == text(shared=False) + "\n"


def test_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as broken:  # noqa: PTH123 - opens a descriptor
        monkeypatch.setattr(sys, "stdout", broken)
        output.show([output.OutputLine("x" * 100_000)])
        monkeypatch.undo()
        # What is left in the buffer cannot be flushed when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
