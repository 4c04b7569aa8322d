"""`relay up` and what it runs, from its start to its end; edge and agent run by hand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trustme
from websockets.exceptions import ConnectionClosed

from relay import __version__, pki
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket, TicketSigner
from relay.auth.tokens import TokenStore, generate
from relay.config import (
    AgentConfig,
    AgentTls,
    ClusterSettings,
    EdgeConfig,
    ListenSettings,
    TlsSettings,
    UpstreamSettings,
    UpstreamTls,
)
from relay.model import Principal
from tests.system.channels import Channels, connect
from tests.system.running import (
    Answer,
    RunningRelay,
    environment,
    http_request,
    processes_of,
    wait_for,
)
from tests.system.separate import Separate, admitting, log_lines
from tests.system.wire import Wire, refusal

BOUND = 12.0
"""Seconds in which a relay that is told to stop must be gone, on a busy machine."""


def run(folder: Path, *argv: str, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a program to its end: exit code, output, errors."""
    done = subprocess.run(
        argv,
        env=environ or environment(folder),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def relay_up(folder: Path, *options: str) -> tuple[int, str, str]:
    """Run a `relay up` that is not going to come up."""
    state = ("--state-dir", str(folder / "state"))
    return run(folder, sys.executable, "-m", "relay", "up", *state, *options)


def one_line(text: str) -> str:
    """The line that says why nothing was started."""
    assert re.fullmatch(r"relay: [^\n]+\n", text), text
    return text


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kernel_pid(channels: Channels) -> int:
    return int(channels.execute("import os\nprint(os.getpid())").stdout)


def read_to_the_end(channels: Channels) -> NoReturn:
    while True:
        channels.receive()


# --- what it says no to ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cluster", "httpd"], "--cluster httpd: a cluster's name does not contain 'http'"),
        (["--cluster", "api"], "--cluster api: the name 'api' is reserved"),
        (["--cluster", "Alpha"], "--cluster Alpha: a cluster's name is 1 to 31 of"),
        (["--cluster", "../x"], "--cluster ../x: a cluster's name is 1 to 31 of"),
        (["--cluster", "one", "--cluster", "one"], "a name appears twice"),
        (["--https-port", "9", "--wss-port", "9"], "different ports"),
        (["--https-port", "99999"], "--https-port"),
        (["--config", "/absent.yaml"], "cannot be read"),
    ],
)
def test_what_cannot_be_started_is_one_line(tmp_path: Path, options: list[str], said: str) -> None:
    code, out, err = relay_up(tmp_path, *options)
    assert (code, out) == (2, "")
    assert said in one_line(err)
    assert not (tmp_path / "state").exists()


def test_every_mistake_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "up.yaml"
    path.write_text("clusters: [tree]\nedge_workers: 0\nhttsp: 1\n")
    code, _, err = relay_up(tmp_path, "--config", str(path))
    assert code == 2
    for start in ("clusters.0: the name 'tree' is res", "edge_workers: ", "httsp: no such setting"):
        assert any(line.startswith(f"relay: {start}") for line in err.splitlines()), err


@pytest.mark.parametrize("option", ["--https-port", "--wss-port"])
def test_a_port_in_use(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        other = {"--https-port": "--wss-port", "--wss-port": "--https-port"}[option]
        code, out, err = relay_up(tmp_path, option, str(port), other, "0")
    assert (code, out) == (2, "")
    holder = f"process {os.getpid()} ("
    assert f"port {port} on 127.0.0.1 is in use by {holder}" in one_line(err)


@pytest.mark.parametrize(
    "argv", [("jupyter", "relay"), ("jupyter-relay",), ("relay",), ("python", "-m", "relay")]
)
def test_the_version_by_each_of_its_names(tmp_path: Path, argv: Sequence[str]) -> None:
    name, *rest = argv
    program = str(Path(sys.executable).parent / name)
    assert run(tmp_path, program, *rest, "--version") == (0, f"relay {__version__}\n", "")


# --- a whole life ---


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def check_relay_json(relay: RunningRelay) -> dict[str, Any]:
    """``relay.json`` as the documentation has it."""
    path = relay.state / "relay.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found: dict[str, Any] = json.loads(path.read_bytes())
    assert found.keys() == {"https_url", "metrics", "wss_url", "token", "ca", "clusters", "pids"}
    assert re.fullmatch(r"https://127\.0\.0\.1:\d+", found["https_url"])
    assert re.fullmatch(r"wss://127\.0\.0\.1:\d+", found["wss_url"])
    assert found["https_url"].rpartition(":")[2] != found["wss_url"].rpartition(":")[2]
    assert found["token"].startswith("relay_")
    assert Path(found["ca"]).is_relative_to(relay.state)
    pids = found["pids"]
    assert pids.keys() == {"supervisor", "edge", "agents"}
    assert pids["supervisor"] == relay.process.pid
    assert list(pids["agents"]) == found["clusters"]
    for pid in (*pids["edge"], *(pid for agents in pids["agents"].values() for pid in agents)):
        assert isinstance(pid, int)
    return found


@pytest.mark.timeout(120)
def wait_until_served(relay: RunningRelay, cluster: str) -> None:
    wait_for(cluster, lambda: relay.request("GET", f"/{cluster}/api").status == 200)


def test_relay_json_is_kept_current_until_the_end() -> None:
    options = ("--edge-workers", "1")
    with RunningRelay(("one", "two"), options) as relay:
        first = check_relay_json(relay)
        assert first["clusters"] == ["one", "two"]
        assert [len(first["pids"]["agents"][name]) for name in ("one", "two")] == [1, 1]
        (worker,) = first["pids"]["edge"]
        shown = relay.log.read_text()
        for part in ("https_url", "wss_url", "token", "ca"):
            assert first[part] in shown
        assert f"jupyter lab --gateway-url {first['https_url']}/one" in shown
        assert stat.S_IMODE(relay.state.stat().st_mode) == 0o700

        os.kill(worker, signal.SIGKILL)
        wait_for("another worker", lambda: relay.info.pids.edge not in {(worker,), ()})
        (agent,) = first["pids"]["agents"]["two"]
        os.kill(agent, signal.SIGKILL)
        wait_for("another agent", lambda: relay.info.pids.agents["two"] not in {(agent,), ()})
        second = check_relay_json(relay)
        # Everything else is as it was, the other agent too, and it works.
        assert second["pids"]["agents"]["one"] == first["pids"]["agents"]["one"]
        assert {**second, "pids": None} == {**first, "pids": None}
        for cluster in ("one", "two"):
            # The new agent is a process before it listens.
            wait_until_served(relay, cluster)

        # A second one on its folder, or on its ports.
        state = ("--state-dir", str(relay.state), "--https-port", "0", "--wss-port", "0")
        code, _, err = run(relay.folder, sys.executable, "-m", "relay", "up", *state)
        assert code == 2
        said = f"a relay is already running on {relay.state}: process {relay.process.pid}"
        assert said in one_line(err)
        port = first["https_url"].rpartition(":")[2]
        code, _, err = relay_up(relay.folder / "other", "--https-port", port, "--wss-port", "0")
        assert code == 2
        assert f"port {port} on 127.0.0.1 is in use by process " in one_line(err)
        assert relay.request("GET", "/one/api").status == 200

        with within(BOUND):
            assert relay.stop(signal.SIGTERM) == 0
        assert relay.log.read_text().endswith("\nNo kernel is running.\n")
        assert not (relay.state / "relay.json").exists()
        assert processes_of(relay.folder) == {}


def start_again_on_the_same_ports(relay: RunningRelay) -> None:
    urls = relay.info.https_url, relay.info.wss_url
    relay.restart_on(*(url.rpartition(":")[2] for url in urls))


@pytest.mark.timeout(120)
def test_kernels_outlive_the_relay_however_it_ends() -> None:
    with RunningRelay(("alpha",), ("--edge-workers", "1")) as relay:
        kernel = relay.start_kernel("alpha")
        opened = relay.connect("alpha", kernel)
        opened.execute("x = 6 * 7")
        pid = kernel_pid(opened)
        before = relay.info
        ours = {*before.pids.edge, *before.pids.agents["alpha"]}
        # The supervisor, the edge's parent and workers, agent, holder and kernel: none other.
        everybody = set(processes_of(relay.folder))
        assert len(everybody - ours) == 4
        assert pid in everybody

        assert relay.stop(signal.SIGKILL) == -signal.SIGKILL
        # The client's connection is open still: that must not keep the port.
        start_again_on_the_same_ports(relay)
        assert not {each for each in ours if is_alive(each)}
        after = relay.info
        assert (after.https_url, after.wss_url) == (before.https_url, before.wss_url)
        assert (after.token, after.ca) == (before.token, before.ca)
        assert [each["id"] for each in relay.request("GET", "/alpha/api/kernels").json] == [kernel]
        opened.socket.close_socket()
        opened = relay.connect("alpha", kernel)
        assert kernel_pid(opened) == pid
        assert opened.execute("print(x)").stdout == "42\n"

        # In the middle of something, with somebody listening.
        opened.send("shell", "execute_request", {"code": "import time\ntime.sleep(1)\ny = x"})
        with within(BOUND):
            assert relay.stop(signal.SIGINT) == 0
        with pytest.raises(ConnectionClosed) as closed:
            read_to_the_end(opened)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        state = f"--state-dir {relay.state}"
        assert relay.log.read_text().endswith(
            "\n1 kernel keeps running (alpha: 1).\n"
            f"`relay up {state}` serves it again; `relay down --kernels {state}` ends it.\n"
        )
        # Holder and kernel.
        assert len(processes_of(relay.folder)) == 2
        assert is_alive(pid)

        relay.start()
        with relay.connect("alpha", kernel) as channels:
            assert channels.execute("print(y)").stdout == "42\n"
        with within(BOUND):
            said = relay.end_kernels()
        assert re.fullmatch(r"Stopped the relay, process \d+\.\nEnded 1 kernel\.\n", said)
        assert relay.process.wait(BOUND) == 0
        wait_for("no process", lambda: not processes_of(relay.folder), 5.0)
        assert list((relay.state / "alpha" / "kernels").iterdir()) == []
        assert relay.end_kernels() == f"No relay is running on {relay.state}.\nEnded 0 kernels.\n"


# --- one request, all processes ---


def test_a_request_is_found_in_every_process_by_its_id(relay: RunningRelay, kernel: str) -> None:
    started = relay.request("POST", "/alpha/api/kernels", {"name": "python3"})
    other = started.json["id"]
    asked = relay.request("POST", f"/alpha/api/kernels/{other}/interrupt")
    request_ids = {answer.headers["X-Request-Id"]: set[str]() for answer in (started, asked)}
    logs = (relay.log, relay.state / "alpha" / "kernels" / other / "holder.log")

    def components() -> bool:
        for line in log_lines("".join(log.read_text() for log in logs)):
            if line.get("request_id") in request_ids:
                request_ids[line["request_id"]].add(line["component"])
        return all(found == {"edge", "agent", "holder"} for found in request_ids.values())

    wait_for("all three", components, 5.0)
    assert relay.request("DELETE", f"/alpha/api/kernels/{other}").status == 204
    # Every line of an edge or an agent that is about a request has one.
    for line in log_lines(relay.log.read_text()):
        if line["event"] in {"request", "refused"}:
            assert re.fullmatch("[0-9a-f]{32}", line["request_id"]), line


# --- separate programs ---


class Deployment:
    """The files of an edge and its agent: keys, certificates, one token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = environment(folder)
        keys = pki.new_ticket_keys()
        self.signer = TicketSigner(keys.private)
        self.token, record = generate("somebody", time.time())
        authority, stranger = trustme.CA(), trustme.CA()
        self._write("ticket.pub", keys.public)
        self._write("ticket.key", keys.private)
        self._write("tokens.json", TokenStore((record,)).dump())
        self._write("ca.pem", authority.cert_pem.bytes())
        self._write("stranger-ca.pem", stranger.cert_pem.bytes())
        for name in ("edge", "client", "agent", "stranger"):
            issuer = stranger if name == "stranger" else authority
            issued = issuer.issue_cert("127.0.0.1")
            self._write(f"{name}.key", issued.private_key_pem.bytes())
            self._write(f"{name}.pem", b"".join(pem.bytes() for pem in issued.cert_chain_pems))

    def _write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def agent(self, *, tls: bool) -> Separate:
        mutual = AgentTls(
            certificate=self.path("agent.pem"),
            key=self.path("agent.key"),
            client_ca=self.path("ca.pem"),
        )
        settings = AgentConfig(
            cluster="alpha",
            listen=ListenSettings(port=0),
            state_dir=self.path("state"),
            ticket_keys=[self.path("ticket.pub")],
            tls=mutual if tls else None,
        )
        return Separate(settings, self.folder, self.environ)

    def edge(self, clusters: dict[str, ClusterSettings]) -> Separate:
        settings = EdgeConfig(
            https=ListenSettings(port=0),
            wss=ListenSettings(port=0),
            tls=TlsSettings(certificate=self.path("edge.pem"), key=self.path("edge.key")),
            workers=1,
            clusters=clusters,
            **admitting(self.folder / "tokens.json"),
            ticket_key=self.path("ticket.key"),
            upstream=UpstreamSettings(hold=0.1),
        )
        return Separate(settings, self.folder, self.environ)

    def upstream(self, ca: str, name: str | None) -> UpstreamTls:
        """What the edge believes, and what it shows of itself."""
        return UpstreamTls(
            ca=self.path(ca),
            certificate=None if name is None else self.path(f"{name}.pem"),
            key=None if name is None else self.path(f"{name}.key"),
        )

    def client(self, name: str | None = None) -> ssl.SSLContext:
        """For somebody who shows this certificate, or none."""
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        if name is not None:
            context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        return context

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}

    def ask(self, edge: Separate, method: str, target: str, body: Any = None) -> Answer:
        url = f"https://{edge.ready['https']}"
        headers = self.authorization
        return http_request(url, method, target, body, headers=headers, tls=self.client())


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    # Resolved and short, as `RunningRelay` has it.
    folder = Path(tempfile.mkdtemp(prefix="relay-")).resolve()
    try:
        yield Deployment(folder)
    finally:
        for pid in processes_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


def serve_a_kernel(deployment: Deployment, edge: Separate, agent: Separate) -> None:
    """From its start over its channels to its end; all logs know of it."""
    started = deployment.ask(edge, "POST", "/alpha/api/kernels", {"name": "python3"})
    assert started.status == 201
    kernel = started.json["id"]
    url = f"wss://{edge.ready['wss']}/alpha/api/kernels/{kernel}/channels"
    tls = deployment.client()
    tls.maximum_version = ssl.TLSVersion.TLSv1_2  # as in `RunningRelay.tls_for_threads`
    with connect(url, headers=deployment.authorization, tls=tls) as channels:
        code = "import os\nprint(os.environ['KERNEL_USERNAME'])"
        assert channels.execute(code).stdout == "somebody\n"
    holder = deployment.folder / "state" / "alpha" / "kernels" / kernel / "holder.log"
    for log in (edge.log, agent.log, holder):
        assert started.headers["X-Request-Id"] in log.read_text()
    assert deployment.ask(edge, "DELETE", f"/alpha/api/kernels/{kernel}").status == 204
    wait_for("no holder", lambda: not holder.parent.exists())


def test_an_edge_and_an_agent_by_themselves(deployment: Deployment) -> None:
    with deployment.agent(tls=False) as agent:
        url = f"http://127.0.0.1:{agent.ready['port']}"
        with deployment.edge({"alpha": ClusterSettings(agents=[url])}) as edge:
            serve_a_kernel(deployment, edge, agent)
            with within(BOUND):
                assert edge.stop() == 0
        with within(BOUND):
            assert agent.stop() == 0
    assert processes_of(deployment.folder) == {}


def test_an_edge_and_an_agent_that_trust_each_other_only(deployment: Deployment) -> None:
    with deployment.agent(tls=True) as agent:
        url = f"https://127.0.0.1:{agent.ready['port']}"
        clusters = {
            "alpha": ("ca.pem", "client"),
            "another-authority": ("stranger-ca.pem", "client"),
            "another-edge": ("ca.pem", "stranger"),
            "nobody": ("ca.pem", None),
        }
        settings = {
            name: ClusterSettings(agents=[url], tls=deployment.upstream(*tls))
            for name, tls in clusters.items()
        }
        with deployment.edge(settings) as edge:
            serve_a_kernel(deployment, edge, agent)
            for cluster in list(clusters)[1:]:
                answer = deployment.ask(edge, "GET", f"/{cluster}/api/kernels")
                refusal(answer, 503, "Cluster unavailable")
                assert int(answer.headers["Retry-After"]) > 0
            down = {
                line["cluster"]: line["problem"]
                for line in edge.lines
                if line["event"] == "agent_down"
            }
            assert down.keys() == clusters.keys() - {"alpha"}
            assert "certificate verify failed" in down["another-authority"]
        # No ticket was looked at: it went no further than the handshake.
        assert not [line for line in agent.lines if line["event"] == "ticket_refused"]
        check_mutual_tls(deployment, url)


def check_mutual_tls(deployment: Deployment, url: str) -> None:
    """Certificate and ticket are both needed."""
    principal = Principal("token", "somebody")
    ticket = deployment.signer.sign(
        Ticket(
            principal=principal,
            cluster="alpha",
            kernel=None,
            rights=Rights({Action.LIST: None}),
            request_id="0",
        ),
        time.time(),
        30,
    )
    request = "GET /api HTTP/1.1\r\nHost: agent\r\n{}\r\n"
    with_ticket = request.format(f"Authorization: Bearer {ticket}\r\n").encode()
    with Wire(url, deployment.client("client")) as wire:
        wire.send(with_ticket)
        assert wire.answer().status == 200
        wire.send(request.format("").encode())
        assert wire.answer().status == 401
    for tls in (deployment.client(), deployment.client("stranger"), None):
        answered = b""
        # Refused in the handshake, or (TLS 1.3) with the first bytes after it.
        with contextlib.suppress(OSError), Wire(url, tls) as wire:
            wire.send(with_ticket)
            answered = wire.read(1000)
        assert answered == b""
