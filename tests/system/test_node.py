"""JupyterLab's own client library, @jupyterlab/services, in Node."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.system.channels import Count, count_lines
from tests.system.javascript import install, services
from tests.system.running import RunningRelay

both = pytest.mark.parametrize("legacy", [False, True], ids=["v1", "legacy"])
both_in_time = pytest.mark.parametrize(
    "legacy", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["v1", "legacy"]
)
"""For what needs a kernel of its own, and has little to do with how messages are packed."""

pytestmark = pytest.mark.usefixtures("installed")

EVERY = bytes(range(256))
NOTHING = Count(lost=0, repeated=0, out_of_order=0, strange=0)


@pytest.fixture(scope="session")
def installed() -> None:
    install()


def digest(buffer: bytes) -> str:
    return hashlib.sha256(buffer).hexdigest()


def ended(ran: dict[str, Any]) -> tuple[list[str], list[str]]:
    """An execution's replies, and the states that the kernel went through."""
    return [each["status"] for each in ran["replies"]], ran["states"]


ONCE = ["ok"], ["busy", "idle"]
FAILED = ["error"], ["busy", "idle"]


def count(ran: dict[str, Any], lines: int) -> Count:
    return count_lines(ran["stdout"], [str(number) for number in range(lines)])


def test_kernelspecs(relay: RunningRelay) -> None:
    specs = services("specs", relay, "alpha")
    assert (specs["name"], specs["language"]) == ("python3", "python")
    assert specs["logo"] == [200, "PNG"]


def test_a_kernels_life(relay: RunningRelay) -> None:
    done = services("kernels", relay, "alpha")
    assert done["info"] == "python"
    assert done["model"]["same"]
    # Both connections were told: the one that ended it, and the one that only saw the list.
    assert done["disposed"] == [True, True]
    assert done["left"] is False
    assert done["found"] is None


def test_refusals_say_why(relay: RunningRelay) -> None:
    refused = services("refusals", relay, "alpha")
    assert refused["stranger"]["status"] == 401
    assert refused["spec"]["status"] == 404
    assert "nope" in refused["spec"]["message"]
    assert refused["kernel"] is None
    assert refused["session"]["status"] == 404
    assert refused["restart"]["status"] == 404
    # The library takes it for done.
    assert refused["shutdown"] is None


def test_sessions(relay: RunningRelay) -> None:
    done = services("sessions", relay, "alpha")
    assert done["again"] == [True, True]
    assert done["moved"] == [True, "b.ipynb", "console", True]
    assert done["found"] == [True, True, True]
    assert done["stdout"] == ["first\n", "second\n"]
    assert done["left"] == []
    assert done["gone"] is None
    assert done["refused"]["status"] == 404


@both
def test_execution(relay: RunningRelay, kernel: str, legacy: bool) -> None:
    done = services("execute", relay, "alpha", legacy=legacy, kernel=kernel)
    assert done["protocol"] == ("" if legacy else "v1.kernel.websocket.jupyter.org")
    ran, failed = done["ran"], done["failed"]
    assert ended(ran) == ONCE
    assert (ran["stdout"], ran["stderr"]) == ("out\n", "err\n")
    assert ran["replies"][0]["user_expressions"]["two"]["data"]["text/plain"] == "2"
    shown, updated, result = (each for each in ran["outputs"] if each["type"] != "execute_input")
    assert (shown["type"], shown["data"]["text/html"]) == ("display_data", "<b>1</b>")
    assert (updated["type"], updated["data"]["text/html"]) == ("update_display_data", "<b>2</b>")
    assert (result["type"], result["data"]["text/plain"]) == ("execute_result", "42")
    assert ended(failed) == FAILED
    assert failed["outputs"][-1]["evalue"] == "no ☃"
    assert (done["inspected"], done["completed"], done["whole"]) == (True, True, "incomplete")
    assert done["past"] == 1


@both
def test_questions_answered_over_a_new_connection(
    relay: RunningRelay, kernel: str, legacy: bool
) -> None:
    ran = services("stdin", relay, "alpha", legacy=legacy, kernel=kernel)
    assert ran["asked"] == [["name? ", False], ["word? ", True]]
    assert ran["stdout"] == "answer 1;answer 2;\n"
    assert ended(ran) == ONCE


@both
def test_comms_with_buffers_both_ways(relay: RunningRelay, kernel: str, legacy: bool) -> None:
    done = services("comms", relay, "alpha", legacy=legacy, kernel=kernel)
    assert ended(done["prepared"]) == ONCE
    big = digest(EVERY * 4096)
    assert done["came"] == [
        ["open", {"number": 1}, [digest(EVERY), digest(b"")]],
        ["msg", {"number": 2}, [big]],
        ["close", {"number": 3}, []],
    ]
    assert done["page"] == big
    assert done["echoed"] == [[{"echo": {"a": 1}}, [digest(EVERY[::-1])]]]
    assert done["subshell"] is True
    assert done["waiting"]["stdout"] == "True\n"


@both_in_time
def test_a_busy_kernel_answers(relay: RunningRelay, legacy: bool) -> None:
    done = services("busy", relay, "alpha", legacy=legacy)
    assert done["info"] == "ipython"
    assert done["usable"] < 1000
    assert done["meanwhile"] == ["busy", "busy", ""]
    # It kept its place behind the cell, which nobody disturbed.
    assert (done["next"]["stdout"], ended(done["next"])) == ("next\n", ONCE)
    assert done["took"] > 3000
    assert (done["ran"]["stdout"], ended(done["ran"])) == ("begins\nends\n", ONCE)
    assert done["states"][0] == "idle"


@both_in_time
def test_interrupt(relay: RunningRelay, legacy: bool) -> None:
    done = services("interrupt", relay, "alpha", legacy=legacy)
    assert ended(done["ran"]) == FAILED
    assert done["ran"]["replies"][0]["ename"] == "KeyboardInterrupt"
    assert done["after"]["stdout"] == "1\n"


@both_in_time
def test_restart(relay: RunningRelay, legacy: bool) -> None:
    done = services("restart", relay, "alpha", legacy=legacy)
    assert ended(done["after"]) == FAILED
    assert done["after"]["replies"][0]["ename"] == "NameError"
    assert done["after"]["replies"][0]["execution_count"] == 1
    assert done["connection"] == "connected"
    assert "dead" not in done["states"]


@both_in_time
def test_a_kernel_that_dies(relay: RunningRelay, legacy: bool) -> None:
    done = services("death", relay, "alpha", legacy=legacy)
    assert ended(done["after"]) == FAILED
    assert done["after"]["replies"][0]["ename"] == "NameError"
    # It connects anew when it hears of that, and isn't told again.
    assert done["states"].count("autorestarting") == 1
    assert "dead" not in done["states"]
    assert done["sockets"] == 2


@both
def test_a_connection_cut_in_mid_cell(relay: RunningRelay, kernel: str, legacy: bool) -> None:
    done = services("reconnect", relay, "alpha", legacy=legacy, kernel=kernel)
    # What came since the last proof comes again; nobody who brings no library of their own can
    # tell it from what is new.
    assert count(done["ran"], 80)._replace(repeated=0) == NOTHING
    assert ended(done["ran"]) == ONCE
    assert done["next"]["stdout"] == "next\n"
    assert ended(done["next"]) == ONCE
    assert done["sockets"] == 3


@both
def test_a_killed_agent_is_not_noticed(relay: RunningRelay, kernel: str, legacy: bool) -> None:
    done = services(
        "agent",
        relay,
        "alpha",
        legacy=legacy,
        kernel=kernel,
        on_event=lambda _: relay.kill_agent("alpha"),
    )
    assert count(done["ran"], 100) == NOTHING
    assert ended(done["ran"]) == ONCE
    assert done["sockets"] == 1
    assert done["connection"] == ["connected"]
