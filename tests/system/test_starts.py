"""What a kernel may be started with, how many there may be, and when nobody needs one any more."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from websockets.exceptions import ConnectionClosed

from tests.system.channels import Channels, Message
from tests.system.running import RunningRelay, wait_for

SPEC = {
    "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "With parameters",
    "language": "python",
    "env": {"COLOUR": "{colour}", "NOTE": "{note}"},
    "metadata": {
        "parameters": {
            "properties": {
                "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                "note": {"type": "string", "default": "none"},
            }
        }
    },
}
QUICKLY_IDLE = {**SPEC, "env": {}, "metadata": {"cull_idle_timeout": 2}}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    """A relay with kernelspecs and a root folder of its own, and room for four kernels."""
    folder = tmp_path_factory.mktemp("starts")
    for name, spec in {"chosen": SPEC, "quick": QUICKLY_IDLE}.items():
        place = folder / "share" / "kernels" / name
        place.mkdir(parents=True)
        (place / "kernel.json").write_text(json.dumps(spec))
    (folder / "root" / "work").mkdir(parents=True)
    environ = {
        "JUPYTER_PATH": str(folder / "share"),
        "RELAY_ROOT_DIR": str(folder / "root"),
        "RELAY_CULLING__CULL_INTERVAL": "0.5",
        "RELAY_CULLING__CULL_CONNECTED": "true",
        "RELAY_KERNELS__MAX_KERNELS": "4",
        "RELAY_KERNELS__PORT_RANGE": "21000-21999",
        "RELAY_KERNELS__TRANSPORT": "tcp",
    }
    with RunningRelay(("alpha",), environ=environ) as running:
        yield running


def read_on(channels: Channels, into: list[Message]) -> NoReturn:
    """Read until that raises."""
    while True:
        into.append(channels.receive())


def place_of(relay: RunningRelay, kernel: str) -> Path:
    return relay.state / "alpha" / "kernels" / kernel


def run(relay: RunningRelay, kernel: str, code: str) -> str:
    with relay.connect("alpha", kernel) as channels:
        return channels.execute(code).stdout.strip()


def end(relay: RunningRelay, kernel: str) -> None:
    assert relay.request("DELETE", f"/alpha/api/kernels/{kernel}").status == 204


def test_parameters_path_and_id_of_ones_own(own: RunningRelay) -> None:
    shown = own.request("GET", "/alpha/api/kernelspecs/chosen").json
    assert shown["spec"]["metadata"]["parameters"] == SPEC["metadata"]["parameters"]  # type: ignore[index]
    chosen = str(uuid.uuid4())
    body = {"parameters": {"colour": "blue"}, "path": "work/a.ipynb", "kernel_id": chosen}
    kernel = own.start_kernel("alpha", name="chosen", **body)
    assert kernel == chosen
    code = (
        "import os; print(os.environ['COLOUR'], os.environ['NOTE'], os.path.basename(os.getcwd()))"
    )
    assert run(own, kernel, code) == "blue none work"
    # The same id again is the same kernel, whatever else is asked for.
    assert own.start_kernel("alpha", name="chosen", kernel_id=chosen) == chosen
    connection = place_of(own, kernel) / "connection.json"
    ports = {
        value for key, value in json.loads(connection.read_text()).items() if key.endswith("_port")
    }
    assert len(ports) == 5
    assert all(21000 <= port <= 21999 for port in ports)
    end(own, kernel)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"colour": "green"}, "colour"),
        ({"note": "x; touch /tmp/evil"}, "kernels.allow_free_parameters"),
        ({"absent": 1}, "absent"),
    ],
)
def test_parameters_that_may_not_be(
    own: RunningRelay, parameters: dict[str, object], problem: str
) -> None:
    body = {"name": "chosen", "parameters": parameters}
    answer = own.request("POST", "/alpha/api/kernels", body)
    assert answer.status == 400
    assert problem in answer.json["message"]


def test_a_path_out_of_the_root_is_refused(own: RunningRelay) -> None:
    answer = own.request("POST", "/alpha/api/kernels", {"name": "chosen", "path": "../x"})
    assert answer.status == 400
    assert "root_dir" in answer.json["message"]


def test_no_more_kernels_than_there_may_be(own: RunningRelay) -> None:
    kernels = [own.start_kernel("alpha", name="chosen") for _ in range(4)]
    answer = own.request("POST", "/alpha/api/kernels", {"name": "chosen"})
    assert answer.status == 403
    assert "kernels.max_kernels" in answer.json["message"]
    assert "kernels.max_kernels" in own.log_text()
    end(own, kernels.pop())
    kernels.append(own.start_kernel("alpha", name="chosen"))
    for kernel in kernels:
        end(own, kernel)


def test_a_kernel_nobody_uses_is_culled_and_its_clients_are_told(own: RunningRelay) -> None:
    kernel = own.start_kernel("alpha", name="quick")
    with own.connect("alpha", kernel) as channels:
        assert channels.execute("print(1)").stdout == "1\n"
        came: list[Message] = []
        with pytest.raises(ConnectionClosed) as closed:
            read_on(channels, came)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
    contents = [each["content"] for each in came]
    assert any("culling.cull_idle_timeout" in each.get("text", "") for each in contents)
    assert contents[-1] == {"execution_state": "dead"}
    target = f"/alpha/api/kernels/{kernel}"
    wait_for("its end", lambda: own.request("GET", target).status == 404)
    wait_for("its folder's end", lambda: not place_of(own, kernel).exists())
