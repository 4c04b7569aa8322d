"""Runs the real programs, for the demonstration and the system tests.

    with RunningRelay() as relay:
        kernel = relay.start_kernel("alpha")
        with relay.connect("alpha", kernel) as channels:
            assert channels.execute("print(1)").stdout == "1\n"

Everything is synchronous, takes free ports and lives in one temporary folder: home, Jupyter's
folders, the relay's state, logs. Nothing of the user's own settings gets in. Leaving a ``with``
ends what runs, kernels too; processes that are left over after that are killed and named in a
`LeftOver`.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from relay.supervisor import Ready
from tests.system.channels import Channels, connect

WAIT: Final = 60.0
"""Seconds that anything may take on a busy machine."""
_KEPT: Final = (
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "TZ",
)

MANY: Final = {
    "RELAY_LOGINS__FAILURES": "1000000",
    "RELAY_QUOTAS__USER_BURST": "1000000",
    "RELAY_QUOTAS__USER_SOCKETS": "1000",
}
"""Variables for a relay whose tests all have one address, and often one token."""

T = TypeVar("T")


class NotRunning(Exception):
    """A program did not start, or did not do in time what it should; the message says where
    its log is."""


class LeftOver(Exception):
    """Processes that should have ended and had to be killed."""


class Answer(NamedTuple):
    """What an HTTP server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def wait_for(what: str, check: Callable[[], T | None], timeout: float = WAIT) -> T:
    """The first true value of ``check``; raises `NotRunning` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            raise NotRunning(f"not within {timeout:.0f} s: {what}")
        time.sleep(0.02)
    return found


def environment(folder: Path) -> dict[str, str]:
    """Variables for a program that is to have its home in ``folder`` and nothing else."""
    places = {
        name: folder / part
        for name, part in {
            "HOME": "home",
            "IPYTHONDIR": "ipython",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "TMPDIR": "tmp",
            "XDG_RUNTIME_DIR": "xdg",
        }.items()
    }
    for place in places.values():
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return {**kept, **{name: str(place) for name, place in places.items()}, "PATH": path}


def processes_of(folder: Path) -> dict[int, str]:
    """Processes that have ``folder`` in their arguments or environment: pid and arguments.

    Kernels and what they start are among them, wherever their parents went.
    """
    found: dict[int, str] = {}
    mark = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes()
                if mark in arguments or mark in (entry / "environ").read_bytes():
                    found[int(entry.name)] = arguments.replace(b"\0", b" ").decode().strip()
    return found


def http_request(
    url: str,
    method: str,
    target: str,
    body: Any = None,
    *,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None = None,
    timeout: float = WAIT,
) -> Answer:
    """Ask ``url``'s host for ``target``, which is sent as it is. ``body`` goes as JSON."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = (
        http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        if tls is None
        else http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=tls)
    )
    payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    more = {} if payload is None else {"Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request(method, target, payload, {**more, **headers})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


class Program:
    """A process with a log file, in a session of its own: Ctrl-C goes to us, not to it."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        environ: Mapping[str, str],
        *,
        python: str = sys.executable,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [python, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environ,
                cwd=log.parent,
            )

    def wait_until(self, what: str, check: Callable[[], T | None], timeout: float = WAIT) -> T:
        """As `wait_for`, but not beyond the program's end."""

        def check_both() -> T | None:
            if self.process.poll() is not None:
                raise NotRunning(f"ended with {self.process.returncode}; its log: {self.log}")
            return check()

        try:
            return wait_for(what, check_both, timeout)
        except NotRunning as error:
            raise NotRunning(f"{error}; its log: {self.log}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code. Killed where that takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(WAIT)
        except BaseException:  # Ctrl-C too
            self.process.kill()
            self.process.wait()
            raise


class RunningRelay:
    """`relay up` with clusters of its own. Stopped, it can be started again on its state."""

    def __init__(
        self,
        clusters: Sequence[str] = ("alpha", "beta"),
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``options`` are more of `relay up`'s; ``environ`` is set over `environment`."""
        # Resolved and short: unix sockets are in it, and processes are known by it.
        self.folder = Path(tempfile.mkdtemp(prefix="relay-")).resolve()
        self.state = self.folder / "state"
        self.log = self.folder / "relay.log"
        self.environ = {**environment(self.folder), **(environ or {})}
        self._ports: tuple[str, ...] = ("--https-port", "0", "--wss-port", "0")
        chosen = [part for name in clusters for part in ("--cluster", name)]
        self._up = ("-m", "relay", "up", "--state-dir", str(self.state), *chosen, *options)
        self._program: Program | None = None
        self._killed: dict[str, int] = {}

    # --- its life ---

    def start(self) -> Self:
        """Start it and wait until it is ready. Raises `NotRunning`."""
        self._program = Program((*self._up, *self._ports), self.log, self.environ)
        self._program.wait_until("relay.json", self._announced)
        return self

    def restart_on(self, https_port: str, wss_port: str) -> None:
        """Start it again, on these ports, and wait until it is ready. Raises `NotRunning`."""
        self._ports = ("--https-port", https_port, "--wss-port", wss_port)
        with contextlib.suppress(FileNotFoundError):
            # One that was killed leaves it behind.
            (self.state / "relay.json").unlink()
        self.start()

    def command(self, https_port: str, wss_port: str) -> tuple[str, ...]:
        """What somebody else is to run who starts it, on these ports and with `environ`."""
        return (sys.executable, *self._up, "--https-port", https_port, "--wss-port", wss_port)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The supervisor."""
        assert self._program is not None
        return self._program.process

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it, or kill it, and leave its kernels; the exit code of `relay up`."""
        assert self._program is not None
        return self._program.stop(number)

    def end_kernels(self) -> str:
        """Run `relay down --kernels`, which stops the relay too; what it says."""
        down = ("-m", "relay", "down", "--kernels", "--state-dir", str(self.state))
        done = subprocess.run(
            [sys.executable, *down],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        if done.returncode:
            raise NotRunning(f"relay down ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def close(self, *, keep: bool = False) -> None:
        """End everything; ``keep`` the folder, to look at its logs.

        Raises `LeftOver` where `relay down --kernels` leaves a process behind.
        """
        if keep:
            # The kernels' own logs go with them.
            (self.folder / "all.log").write_text(self.log_text())
        try:
            if self._program is not None:
                self._program.stop()
                self.end_kernels()
        finally:
            left = self._kill_left_overs()
        if left:
            raise LeftOver(f"{left}; logs are in {self.folder}")
        if not keep:
            shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close(keep=True)
            raise

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(keep=kind is not None)

    def _kill_left_overs(self) -> dict[int, str]:
        """Kill what is there a moment after the end, when even a kernel's last threads ended."""
        with contextlib.suppress(NotRunning):
            wait_for("no process", lambda: not processes_of(self.folder), 2.0)
        left = processes_of(self.folder)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    # --- what it says of itself ---

    @property
    def info(self) -> Ready:
        """``relay.json`` as it is now. Raises `FileNotFoundError` where the relay isn't ready."""
        return msgspec.json.decode((self.state / "relay.json").read_bytes(), type=Ready)

    def _announced(self) -> Ready | None:
        with contextlib.suppress(FileNotFoundError):
            return self.info
        return None

    @functools.cached_property
    def tls(self) -> ssl.SSLContext:
        """Trusts the relay's own CA, and nobody else."""
        return ssl.create_default_context(cafile=self.info.ca)

    @functools.cached_property
    def tls_for_threads(self) -> ssl.SSLContext:
        """The same for clients that read in one thread and write in another: TLS 1.2.

        With TLS 1.3 the server sends session tickets after its handshake. Read while the first
        request is written they leave that unsent, for OpenSSL wants a connection to have one
        thread, and Python has a lock for it only since 3.13.
        """
        context = ssl.create_default_context(cafile=self.info.ca)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    @property
    def authorization(self) -> dict[str, str]:
        """The header with its first token."""
        return {"Authorization": f"token {self.info.token}"}

    def agent_pid(self, cluster: str, *, other_than: int = 0) -> int:
        """The pid of a cluster's agent, once one runs that is another than before."""

        def found() -> int | None:
            pids = self.info.pids.agents[cluster]
            return pids[0] if pids and pids[0] != other_than else None

        return wait_for(f"an agent of {cluster}", found)

    def kill_agent(self, cluster: str) -> int:
        """SIGKILL for a cluster's agent, or for the next one where it was killed before: its pid.

        `agent_pid` waits for the one that comes after it.
        """
        pid = self._killed[cluster] = self.agent_pid(
            cluster, other_than=self._killed.get(cluster, 0)
        )
        os.kill(pid, signal.SIGKILL)
        return pid

    def log_text(self) -> str:
        """The relay's log and those of the holders that are there."""
        texts: list[str] = []
        for folder in (self.log.parent, *self.state.glob("*/kernels/*")):
            # A kernel may end meanwhile, and with it its folder.
            with contextlib.suppress(FileNotFoundError):
                texts.extend(
                    f"=== {log}\n{log.read_text(errors='replace')}"
                    for log in sorted(folder.glob("*.log"))
                )
        return "\n".join(texts)

    def metrics(self, cluster: str | None = None) -> str:
        """The metrics of a cluster's agent, or of the edge, as Prometheus gets them."""
        urls = self.info.metrics
        url = urls.edge if cluster is None else urls.agents[cluster]
        answer = http_request(url, "GET", "/metrics", headers={})
        assert answer.status == http.HTTPStatus.OK, answer
        return answer.body.decode()

    # --- its clients ---

    def request(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        port: Literal["https", "wss"] = "https",
        timeout: float = WAIT,
    ) -> Answer:
        """Ask the edge. ``headers`` are sent as they are; without any, the token goes along."""
        url = self.info.https_url if port == "https" else self.info.wss_url
        chosen = self.authorization if headers is None else headers
        return http_request(
            url, method, target, body, headers=chosen, tls=self.tls, timeout=timeout
        )

    def start_kernel(self, cluster: str, **body: Any) -> str:
        """Start a kernel: its id. ``body`` is what POST takes, by default no more than a name."""
        answer = self.request("POST", f"/{cluster}/api/kernels", {"name": "python3", **body})
        assert answer.status == http.HTTPStatus.CREATED, answer
        return str(answer.json["id"])

    def connect(
        self,
        cluster: str,
        kernel_id: str,
        *,
        v1: bool = True,
        session: str | None = None,
        last_seq: str | None = None,
        port: Literal["https", "wss"] = "wss",
        headers: Mapping[str, str] | None = None,
    ) -> Channels:
        """A WebSocket to a kernel's channels, by v1 or the legacy subprotocol.

        ``session`` is the ``session_id``, by default a new one; "" sends none. ``headers`` are as
        in `request`.
        """
        base = self.info.wss_url if port == "wss" else self.info.https_url.replace("http", "ws", 1)
        return connect(
            f"{base}/{cluster}/api/kernels/{kernel_id}/channels",
            headers=self.authorization if headers is None else headers,
            tls=self.tls_for_threads,
            v1=v1,
            session=secrets.token_hex(16) if session is None else session,
            last_seq=last_seq,
        )
