from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from relay.config import (
    AuthenticationSettings,
    ClusterSettings,
    EdgeConfig,
    ListenSettings,
    TlsSettings,
    TokenSettings,
)
from relay.edge import parent
from relay.edge.reload import SharedConfig
from relay.kernel_folders import process_started
from relay.processes import Command, PortInUse, StartError, claim_notify_socket
from tests.programs import NOTIFY, READY, STUBBORN, python
from tests.waiting import WAIT, eventually

CONFIG = EdgeConfig(
    https=ListenSettings(port=0),
    wss=ListenSettings(port=0),
    tls=TlsSettings(certificate="c", key="k"),
    clusters={"alpha": ClusterSettings(agents=["http://127.0.0.1:1"])},
    authentication=AuthenticationSettings(tokens=TokenSettings(file="t")),
    ticket_key="k",
    drain=0.0,
)
DRIVER = """
import asyncio, sys
import msgspec
from relay.config import EdgeConfig
from relay.edge import parent
from relay.edge.reload import SharedConfig
from pathlib import Path
from relay.edge.shared_dir import private_folder
from relay.edge.reload import SharedConfig
from relay.processes import Command
path = Path(sys.argv[1])
config = msgspec.json.decode(path.read_bytes(), type=EdgeConfig)
command = Command(name="worker", argv=tuple(sys.argv[2:]), environment={})
listeners = parent.listening_sockets(config)
with private_folder() as folder:
    settings = SharedConfig(config, path, folder)
    sys.exit(asyncio.run(parent.Parent(settings, command, listeners, folder).run()))
"""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    claim_notify_socket.cache_clear()
    yield
    claim_notify_socket.cache_clear()


class Edge:
    """A parent in a process of its own, with workers of our own making; we are its supervisor."""

    def __init__(self, worker: str, folder: Path) -> None:
        self.settings = folder / "edge.json"
        self.settings.write_bytes(msgspec.json.encode(CONFIG))
        self._ears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ears.bind(b"")
        self._ears.settimeout(WAIT)
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(self.settings), *python(worker)],
            env={
                **os.environ,
                "NOTIFY_SOCKET": "@" + self._ears.getsockname()[1:].decode(),
            },
        )

    def hear(self) -> str:
        return self._ears.recv(1000).decode()

    def hear_workers(self) -> set[int]:
        """The next two workers that it reports."""
        while True:
            text = self.hear()
            if text.startswith("X_WORKERS=") and text.count(",") == 1:
                return set(map(int, text.removeprefix("X_WORKERS=").split(",")))

    def close(self) -> None:
        workers = []
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = psutil.Process(self.process.pid).children()
        self.process.kill()
        self.process.wait()
        for worker in workers:
            # These do not end with their parent, as real ones do.
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        self._ears.close()


@pytest.fixture
def edge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Edge]:
    made = Edge(request.param, tmp_path)
    yield made
    made.close()


with_workers = pytest.mark.parametrize("edge", [READY], indirect=True)


@with_workers
def test_ready_once_all_workers_are(edge: Edge) -> None:
    workers = edge.hear_workers()
    assert edge.hear() == "READY=1"
    assert not any(process_started(pid) is None for pid in workers)


@with_workers
def test_a_dead_worker_is_replaced_and_reported(edge: Edge) -> None:
    first = edge.hear_workers()
    assert edge.hear() == "READY=1"
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    second = edge.hear_workers()
    assert len(second) == 2
    assert first & second == first - {victim}


@with_workers
def test_sigterm_stops_the_workers(edge: Edge) -> None:
    workers = edge.hear_workers()
    edge.hear()
    edge.process.send_signal(signal.SIGTERM)
    assert edge.hear() == "STOPPING=1"
    assert edge.process.wait(WAIT) == 0
    assert all(process_started(pid) is None for pid in workers)


TELLING = (
    NOTIFY
    + "signal.signal(signal.SIGHUP, lambda *_: os.write(1, b'%d\\n' % os.getpid()))\n"
    + "notify('READY=1')\nwhile True: signal.pause()"
)
"""Prints its pid at each SIGHUP."""


class Printed:
    """What workers print from now on, and what their parent logs."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._text = ""

    def text(self) -> str:
        self._text += self._capfd.readouterr().out
        return self._text

    def pids(self) -> set[int]:
        return {int(line) for line in self.text().splitlines() if line.isdecimal()}


def test_sighup_is_passed_on_and_ends_nobody(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with contextlib.closing(Edge(TELLING, tmp_path)) as edge:
        workers = edge.hear_workers()
        assert edge.hear() == "READY=1"
        for _ in range(2):
            edge.process.send_signal(signal.SIGHUP)
            printed = Printed(capfd)
            eventually(lambda printed=printed: printed.pids() == workers)  # type: ignore[misc]
        # What cannot be used is nobody's business but the parent's.
        edge.settings.write_text("https: 1")
        edge.process.send_signal(signal.SIGHUP)
        printed = Printed(capfd)
        eventually(lambda: "configuration_invalid" in printed.text())
        # One that starts after it hears of it when it is ready: it may have read the old one.
        victim = min(workers)
        os.kill(victim, signal.SIGKILL)
        (new,) = edge.hear_workers() - workers
        eventually(lambda: new in printed.pids())
        assert printed.pids() == {new}
        edge.process.send_signal(signal.SIGTERM)
        assert edge.process.wait(WAIT) == 0


@pytest.mark.parametrize("edge", [STUBBORN], indirect=True)
def test_deaf_workers_are_killed(edge: Edge) -> None:
    workers = edge.hear_workers()
    edge.hear()
    edge.process.send_signal(signal.SIGTERM)
    assert edge.hear() == "STOPPING=1"
    edge.process.send_signal(signal.SIGTERM)
    assert edge.process.wait(WAIT) == 0
    assert all(process_started(pid) is None for pid in workers)


@pytest.mark.parametrize(
    ("edge", "code"),
    [
        ("raise SystemExit(2)", 2),
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", 1),
    ],
    indirect=["edge"],
)
def test_workers_that_cannot_start_are_an_end(edge: Edge, code: int) -> None:
    assert edge.process.wait(WAIT) == code


def test_it_opens_the_ports_where_it_inherits_none() -> None:
    listeners = parent.listening_sockets(CONFIG)
    try:
        assert list(listeners) == ["https", "wss"]
        assert all(
            each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for each in listeners.values()
        )
    finally:
        for each in listeners.values():
            each.close()


def test_it_takes_the_ports_that_it_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"wss": socket.socket(), "https": socket.socket()}
    monkeypatch.setattr(parent, "inherited_listeners", lambda: ours)
    assert parent.listening_sockets(CONFIG) is ours
    monkeypatch.setattr(parent, "inherited_listeners", lambda: {"http": ours["wss"]})
    with pytest.raises(StartError, match="https and wss, not http"):
        parent.listening_sockets(CONFIG)
    for each in ours.values():
        each.close()


def test_a_taken_port_closes_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []

    def listen(host: str, port: int) -> socket.socket:
        if opened:
            raise PortInUse("taken")
        opened.append(socket.create_server((host, port)))
        return opened[0]

    monkeypatch.setattr(parent, "listen_with_retry", listen)
    with pytest.raises(PortInUse):
        parent.listening_sockets(CONFIG)
    assert opened[0].fileno() == -1


def test_how_a_worker_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as https, socket.socket() as wss:
        both = {"wss": wss, "https": https}
        command = parent.worker_command(Path("/f/s"), both, Path("/f"))
        assert list(command.listeners.items()) == [("https", https.fileno()), ("wss", wss.fileno())]
    assert command.argv == (
        *(sys.executable, "-P", "-m", "relay.edge.worker"),
        *("--settings", "/f/s", "--die-with-parent", str(os.getpid())),
        *("--parent-socket", "/f/parent.sock"),
    )


async def test_workers_find_the_shared_sockets(tmp_path: Path) -> None:
    """Both accept from the one socket: here each answers one connection and ends."""
    source = NOTIFY + (
        "s = socket.socket(fileno=3); s.setblocking(True); notify('READY=1')\n"
        "c, _ = s.accept(); c.sendall(b'hello'); c.close(); os._exit(0)"
    )
    listeners = parent.listening_sockets(CONFIG)
    port = listeners["https"].getsockname()[1]
    command = Command(
        name="worker",
        argv=python(source),
        environment={},
        listeners={name: each.fileno() for name, each in listeners.items()},
    )
    settings = SharedConfig(CONFIG, tmp_path / "edge.yaml", tmp_path)
    edge = parent.Parent(settings, command, listeners, tmp_path)
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        task = group.create_task(edge.run())
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b"hello"
            writer.close()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await task == 0
