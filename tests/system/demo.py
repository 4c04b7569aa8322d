"""Shows that the relay works: real notebooks through it, and output while its agents are killed.

Run by `make demo`. Exit code 0 only if everything held.
"""

from __future__ import annotations

import base64
import inspect
import signal
import struct
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from unittest.mock import ANY

from rich.console import Console

from tests.system.channels import Channels, Count, Execution, count_lines
from tests.system.gateway_mode import JupyterServer
from tests.system.notebook import code_cell, execute
from tests.system.running import RunningRelay

LINES: Final = 100
KILL_AT: Final = (10, 40)
"""The agent is killed when so many lines have come."""
WAITS_AT: Final = 60
"""The line at which the cell waits until the last kill is done, however busy the machine is."""
PATIENCE: Final = 120
"""Seconds that the cell waits for it at most."""

MOVED_TO: Final = 7
"""Where the notebook's slider is moved."""
_WIDGETS: Final = "application/vnd.jupyter.widget-state+json"
_VIEW: Final = "application/vnd.jupyter.widget-view+json"


class Cell(NamedTuple):
    """A cell and what must come of it. ``does`` and ``sees`` are those of `notebook`'s person."""

    name: str
    source: str
    outputs: list[dict[str, Any]]
    does: Mapping[str, Any] = MappingProxyType({})
    sees: Mapping[str, Any] = MappingProxyType({})


def picture() -> bytes:
    """A PNG of 16 by 16 pixels, each of its own colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    rows = (
        bytes([0, *(part for x in range(16) for part in (x * 16, y * 16, 128))]) for y in range(16)
    )
    head = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def stream(name: str, text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


CELLS: Final = (
    Cell(
        "stdout",
        'print("one\\ntwo")\nprint("drei: ✓")',
        [stream("stdout", "one\ntwo\ndrei: ✓\n")],
    ),
    Cell(
        "stderr",
        'import sys\nprint("careful", file=sys.stderr)',
        [stream("stderr", "careful\n")],
    ),
    Cell(
        "rich display",
        "class Rich:\n"
        '    def __repr__(self): return "plain"\n'
        '    def _repr_html_(self): return "<b>rich</b>"\n'
        "Rich()",
        [
            {
                "output_type": "execute_result",
                "data": {"text/plain": "plain", "text/html": "<b>rich</b>"},
            }
        ],
    ),
    Cell(
        "image",
        f"import struct, zlib\n{inspect.getsource(picture)}\n"
        "from IPython.display import Image, display\ndisplay(Image(picture()))",
        [
            {
                "output_type": "display_data",
                "data": {
                    "text/plain": "<IPython.core.display.Image object>",
                    "image/png": picture(),
                },
            }
        ],
    ),
    Cell(
        "error",
        "print(1 / 0)",
        [{"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division by zero"}],
    ),
    Cell(
        "input()",
        'print("Hello", input("Who is there? "))',
        [stream("stdout", "Hello Ada\n")],
        does={"answers": ["Ada"]},
        sees={"prompts": ["Who is there? "]},
    ),
    Cell(
        "widget",
        "from ipywidgets import IntSlider\n"
        "slider = IntSlider(3)\n"
        'slider.observe(lambda change: print("from", change.old, "to", change.new), "value")\n'
        "slider",
        [
            {
                "output_type": "execute_result",
                "data": {
                    "text/plain": "IntSlider(value=3)",
                    _VIEW: {"model_id": ANY, "version_major": 2, "version_minor": 0},
                },
            }
        ],
        does={"move": {"value": MOVED_TO}},
        sees={
            "opened": ["LayoutModel", "SliderStyleModel", "IntSliderModel"],
            "moved": [stream("stdout", f"from 3 to {MOVED_TO}\n")],
        },
    ),
    Cell(
        "widget moved",
        "print(slider.value)",
        [stream("stdout", f"{MOVED_TO}\n")],
    ),
)


class Difference(Exception):
    """Something came out otherwise than it should."""


class Show:
    """The terminal, and what failed so far."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._console = Console(highlight=False)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def step(self, what: str, action: Callable[[], object]) -> bool:
        """Show that something goes on, then whether it held."""
        try:
            with self._console.status(what, spinner="line"):
                action()
        except Exception as error:  # noqa: BLE001 - whatever it is, the demonstration failed
            self.failed.append(what)
            self._line("FAILED", "bold red", what)
            self.detail(f"{type(error).__name__}: {error}", "red")
            return False
        self._line("ok", "green", what)
        return True

    def detail(self, text: str, style: str = "dim") -> None:
        """More about a step."""
        self.say(textwrap.indent(text, " " * 14), style)

    def say(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def _line(self, mark: str, style: str, what: str) -> None:
        self.say(f"{self.seconds:6.1f} s  {mark}  {what}", style)


def demonstrate(show: Show, relay: RunningRelay) -> None:
    if not show.step("relay up, with the clusters alpha and beta", relay.start):
        return
    for cluster in relay.info.clusters:
        through_jupyter_server(show, relay, cluster)
    cluster = relay.info.clusters[-1]
    show.step(
        f"{cluster}: a cell of {LINES} lines, its agent killed {len(KILL_AT)} times (SIGKILL)",
        lambda: through_kills(show, relay, cluster),
    )


def through_jupyter_server(show: Show, relay: RunningRelay, cluster: str) -> None:
    """Execute the notebook by way of a Jupyter Server in gateway mode."""
    url = f"{relay.info.https_url}/{cluster}"
    server = JupyterServer(relay, cluster)
    cells = [code_cell(cell.source, **cell.does) for cell in CELLS]
    try:
        if show.step(f"{cluster}: jupyter server --gateway-url {url}", server.start):
            show.step(
                f"{cluster}: a notebook, executed with nbclient through jupyter server",
                lambda: show.detail(check(execute(cells, server))),
            )
    finally:
        server.stop()


def check(executed: dict[str, Any]) -> str:
    """Name what is as it should be. Raises `Difference` where anything is not."""
    wrong = [
        f"{cell.name}: {difference}"
        for number, (cell, came) in enumerate(zip(CELLS, executed["cells"], strict=True), 1)
        for difference in differences(cell, number, came)
    ]
    if wrong:
        raise Difference("\n".join(wrong))
    (slider,) = (
        output["data"][_VIEW]["model_id"]
        for cell in executed["cells"]
        for output in cell["outputs"]
        if _VIEW in output.get("data", {})
    )
    widgets = executed["metadata"]["widgets"][_WIDGETS]["state"]
    expect(widgets[slider]["state"]["value"], MOVED_TO)
    return ", ".join(cell.name for cell in CELLS)


def differences(cell: Cell, number: int, came: dict[str, Any]) -> Iterator[str]:
    pairs = (
        (came["execution_count"], number),
        ([relevant(output) for output in came["outputs"]], cell.outputs),
        ({name: came["metadata"].get(name) for name in cell.sees}, cell.sees),
    )
    return (f"expected {due!r}, came {found!r}" for found, due in pairs if found != due)


def relevant(output: dict[str, Any]) -> dict[str, Any]:
    """An output without what is free to differ: counts, metadata and an error's traceback."""
    kept = {"output_type", "name", "text", "data", "ename", "evalue"}
    found = {name: value for name, value in output.items() if name in kept}
    if "image/png" in found.get("data", {}):
        png = base64.b64decode(found["data"]["image/png"])
        found["data"] = {**found["data"], "image/png": png}
    return found


def expect(came: object, due: object) -> None:
    if came != due:
        raise Difference(f"expected {due!r}, came {came!r}")


def through_kills(show: Show, relay: RunningRelay, cluster: str) -> None:
    """Count the lines of a cell while the agent is killed in the middle of it."""
    kernel = relay.start_kernel(cluster)
    with relay.connect(cluster, kernel) as channels:
        execution = execute_and_kill(relay, cluster, channels)
    count = count_lines(execution.stdout, [str(number) for number in range(LINES)])
    show.detail(
        f"lines lost: {count.lost}, repeated: {count.repeated}, out of order: {count.out_of_order}"
    )
    expect(count, Count(lost=0, repeated=0, out_of_order=0, strange=0))
    expect([reply["status"] for reply in execution.replies], ["ok"])
    expect(execution.states, ["busy", "idle"])


def execute_and_kill(relay: RunningRelay, cluster: str, channels: Channels) -> Execution:
    """Execute a cell that does not end before the agent was killed as often as it is to be."""
    kills_done = relay.folder / "kills-done"
    kills = 0

    def seen(execution: Execution) -> None:
        nonlocal kills
        if kills < len(KILL_AT) and execution.stdout.count("\n") >= KILL_AT[kills]:
            relay.kill_agent(cluster)
            kills += 1
            if kills == len(KILL_AT):
                kills_done.touch()

    code = f"""
        import pathlib, time

        kills_done = pathlib.Path({str(kills_done)!r})
        for i in range({LINES}):
            print(i)
            time.sleep(0.05)
            deadline = time.monotonic() + {PATIENCE}
            while i == {WAITS_AT} and not kills_done.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
    """
    execution = channels.execute(textwrap.dedent(code), seen=seen)
    expect(kills, len(KILL_AT))
    return execution


def main() -> int:
    """Run the demonstration and end everything that it started; the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    show = Show()
    relay = RunningRelay()
    interrupted = False
    try:
        demonstrate(show, relay)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        show.step(
            "relay down --kernels, and nothing is left over",
            lambda: relay.close(keep=bool(show.failed)),
        )
    if show.failed:
        what = "\n".join(f"  {step}" for step in show.failed)
        show.say(f"Failed:\n{what}\nLogs are in {relay.folder}.", "bold red")
        return 1
    if interrupted:
        show.say("Interrupted.", "bold red")
        return 130
    show.say(f"All of it held, in {show.seconds:.0f} s.", "bold green")
    return 0


if __name__ == "__main__":
    sys.exit(main())
