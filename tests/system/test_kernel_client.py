"""`jupyter-kernel-client`: a script's client that knows one URL, the HTTPS port's."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_kernel_client import JupyterKernelClient, JupyterSubprotocol, KernelHttpManager

from tests.system.channels import count_lines
from tests.system.running import RunningRelay

pytestmark = [
    pytest.mark.usefixtures("v1_runs_at_all"),
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
]
both = pytest.mark.parametrize(
    "subprotocol", [JupyterSubprotocol.DEFAULT, JupyterSubprotocol.V1], ids=["legacy", "v1"]
)


@pytest.fixture(autouse=True)
def _own_ca(relay: RunningRelay, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # It has no setting for them: these are requests' and websocket-client's own.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", relay.info.ca)
    monkeypatch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", relay.info.ca)
    yield
    # It leaves sockets to the garbage collector, whose warning some later test would get.
    gc.collect()


def access(relay: RunningRelay, subprotocol: JupyterSubprotocol) -> dict[str, Any]:
    """All that a user says."""
    return {
        "server_url": f"{relay.info.https_url}/beta",
        "token": relay.info.token,
        "client_kwargs": {"subprotocol": subprotocol},
    }


@pytest.fixture(scope="module")
def shared(relay: RunningRelay) -> str:
    """A kernel for the tests that leave it as it was."""
    return relay.start_kernel("beta")


@pytest.fixture
def client(
    relay: RunningRelay, shared: str, subprotocol: JupyterSubprotocol
) -> Iterator[JupyterKernelClient]:
    running = JupyterKernelClient(kernel_id=shared, **access(relay, subprotocol))
    running.start()
    yield running
    # Over TLS its close takes ten seconds, with Jupyter Server too: websocket-client waits for the
    # socket in one thread after another one closed it. Here that thread is told first; the slow
    # tests close as everybody does.
    channels = running._manager.client
    channels.kernel_socket.sock.abort()
    channels.connection_thread.join(5)
    running.stop()


@both
def test_it_executes(client: JupyterKernelClient) -> None:
    done = client.execute("print('Grüße'); 6 * 7")
    assert done["status"] == "ok"
    stream, result = done["outputs"]
    assert stream == {"output_type": "stream", "name": "stdout", "text": "Grüße\n"}
    assert result["data"]["text/plain"] == "42"
    failed = client.execute("1 / 0")
    assert failed["status"] == "error"
    assert failed["outputs"][0]["ename"] == "ZeroDivisionError"


@both
def test_every_line_of_a_long_output_comes(client: JupyterKernelClient) -> None:
    # As many as an ipykernel's PUB socket keeps (1000) while nobody else gets a processor.
    done = client.execute("for number in range(900): print('line', number, flush=True)")
    text = "".join(each["text"] for each in done["outputs"])
    assert count_lines(text, [f"line {number}" for number in range(900)]) == (0, 0, 0, 0)


@both
def test_it_answers_questions(client: JupyterKernelClient) -> None:
    prompts = []

    def answer(request: dict[str, Any]) -> None:
        prompts.append(request["content"]["prompt"])
        client._manager.client.input("Ada")

    done = client.execute("print(input('who? '))", allow_stdin=True, stdin_hook=answer)
    assert prompts == ["who? "]
    # In one piece or two.
    assert "".join(each["text"] for each in done["outputs"]).endswith("Ada\n")


@both
def test_variables_go_there_and_back(client: JupyterKernelClient) -> None:
    client.set_variable("there", {"text": "Grüße", "numbers": [1, 2, 3]})
    assert client.execute("there['numbers']")["outputs"][0]["data"]["text/plain"] == "[1, 2, 3]"
    assert client.get_variable("there") == {"text": "Grüße", "numbers": [1, 2, 3]}
    assert "there" in {each["name"] for each in client.list_variables()}


@both
def test_its_interrupt_ends_a_cell_and_keeps_the_kernel(client: JupyterKernelClient) -> None:
    client.execute("kept = 1")
    began = threading.Event()
    failed: dict[str, Any] = {}

    def seen(message: dict[str, Any]) -> None:
        if message["header"]["msg_type"] == "stream":
            began.set()

    def run() -> None:
        code = "import time; print('began', flush=True); time.sleep(60)"
        failed.update(client.execute_interactive(code, output_hook=seen)["content"])

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(30)
    client.interrupt()
    thread.join(30)
    assert (failed["status"], failed["ename"]) == ("error", "KeyboardInterrupt")
    assert client.execute("kept")["outputs"][0]["data"]["text/plain"] == "1"


@both
def test_its_restart_keeps_the_socket_and_clears_the_kernel(client: JupyterKernelClient) -> None:
    client.execute("gone = 1")
    before = client.id
    client.restart()
    assert client.is_alive()
    assert client.id == before
    assert client.execute("'gone' in globals()")["outputs"][0]["data"]["text/plain"] == "False"


@both
def test_it_finds_its_kernel_among_the_others(
    relay: RunningRelay, shared: str, client: JupyterKernelClient
) -> None:
    assert client.id == shared
    assert shared in {each["id"] for each in client.list_kernels()}
    assert client.last_activity is not None


@pytest.mark.slow
@both
def test_it_leaves_a_kernel_that_it_did_not_start(
    relay: RunningRelay, shared: str, subprotocol: JupyterSubprotocol
) -> None:
    with JupyterKernelClient(kernel_id=shared, **access(relay, subprotocol)) as client:
        client.execute("1")
    assert relay.request("GET", f"/beta/api/kernels/{shared}").status == 200


@pytest.mark.slow
def test_a_kernel_that_it_starts_ends_with_it(relay: RunningRelay) -> None:
    with JupyterKernelClient(**access(relay, JupyterSubprotocol.DEFAULT)) as client:
        kernel = client.id
        assert client.execute("print(1)")["outputs"][0]["text"] == "1\n"
        assert relay.request("GET", f"/beta/api/kernels/{kernel}").status == 200
    assert relay.request("GET", f"/beta/api/kernels/{kernel}").status == 404
    assert not client.has_kernel


@pytest.mark.slow
@both
def test_its_shutdown_by_message(relay: RunningRelay, subprotocol: JupyterSubprotocol) -> None:
    manager = KernelHttpManager(**access(relay, subprotocol))
    kernel = manager.start_kernel("python3")["id"]
    manager.client.start_channels()
    manager.client.wait_for_ready(30)
    client = manager.client
    # It asks the kernel, waits for the server to forget it, and at last says DELETE: a kernel that
    # ends and was not asked to by REST is started again, as Jupyter Server does.
    manager.shutdown_kernel(now=False, timeout=10)
    client.stop_channels()
    assert not manager.is_alive()
    assert relay.request("GET", f"/beta/api/kernels/{kernel}").status == 404


def test_a_wrong_token_is_refused(relay: RunningRelay) -> None:
    told = {**access(relay, JupyterSubprotocol.DEFAULT), "token": "wrong"}
    client = JupyterKernelClient(**told)
    with pytest.raises(OSError, match="401"):
        client.start()
    assert client.list_kernels() == []
