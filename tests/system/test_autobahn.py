"""The cases of the Autobahn test suite, run by `kosoku` on the edge's own WebSockets.

Behind the edge is an agent that says everything back; before it, since kosoku speaks no TLS, a
door that takes TLS and the token upon itself and passes on every byte.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from relay.config import EdgeLimits
from tests.system.echo import echoing, fronting
from tests.system.recorder import watched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VERSION: Final = "0.1.0"
RUN: Final = """
import asyncio, json, os, sys
from kosoku import FailureError, run_fuzzingclient

async def run(url, cases):
    try:
        results = await run_fuzzingclient(url, cases)
    except FailureError as failure:
        results = failure.results
    print(json.dumps([
        [each.case_id, each.behavior.value, each.behavior_close.value, each.passed,
         each.remote_close_code, each.result, each.result_close]
        for each in results
    ]), flush=True)
    # Its threads do not survive an interpreter that ends in good order.
    os._exit(0)

asyncio.run(run(sys.argv[1], sys.argv[2:]))
"""

# Whoever asks for compression (12 and 13) is not given it: the frames that agents make have none.
GROUPS: Final = {
    "1": 16,
    "2": 11,
    "3": 7,
    "4": 10,
    "5": 20,
    "6": 145,
    "7": 37,
    "9": 54,
    "10": 1,
}
"""Groups of cases, and how many each has."""


DIFFERENT: Final = {
    # A close in the middle of a message: `websockets` takes it for an error (1002), not for a
    # goodbye (1000). The half of a message is nobody's request either way.
    "7.1.5": 1002,
}
"""Cases in which the edge means to answer with another close code."""


class Case(NamedTuple):
    """One case's result."""

    name: str
    behavior: str
    close: str
    passed: bool
    code: int | None
    said: str
    said_of_close: str


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has kosoku."""
    folder = tmp_path_factory.mktemp("kosoku")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    done = subprocess.run(
        [folder / "bin/pip", "install", "--quiet", f"kosoku=={VERSION}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"kosoku cannot be installed: {done.stderr[-300:]}")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A plain WebSocket on which the edge says everything back."""
    # 9.3 and 9.4 cut a message into as many frames as this, which nobody may by default.
    limits = EdgeLimits(message_frames=65_536)
    with (
        echoing() as agent,
        watched(agent, limits) as edge,
        fronting(edge.wss, edge.tls, edge.token) as port,
    ):
        yield f"ws://127.0.0.1:{port}"


def run(python: Path, url: str, *cases: str) -> list[Case]:
    done = subprocess.run(
        [python, "-c", RUN, url, *cases], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Case(*each) for each in json.loads(done.stdout)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_case_of_a_group(python: Path, url: str, group: str) -> None:
    results = run(python, url, f"{group}.*")
    counts = Counter((each.behavior, each.close) for each in results)
    with_close = ", ".join(f"{what}/{close}: {n}" for (what, close), n in sorted(counts.items()))
    print(f"Autobahn {group}.*: {len(results)} cases; {with_close}")  # noqa: T201 - wanted
    failed = [each for each in results if not each.passed and each.name not in DIFFERENT]
    # It waits a second for an answer, which is not long where much else runs: once more, alone.
    again = run(python, url, *(each.name for each in failed)) if failed else []
    assert [each for each in again if not each.passed] == []
    for each in results:
        assert each.code == DIFFERENT.get(each.name, each.code)
    assert len(results) == GROUPS[group]


def test_no_compression_is_agreed_to(python: Path, url: str) -> None:
    results = run(python, url, "12.1.1", "12.2.5", "13.1.1", "13.7.1")
    assert {each.behavior for each in results} == {"UNIMPLEMENTED"}
    assert len(results) == 4
