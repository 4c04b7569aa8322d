"""Runs a real JupyterHub: its proxy, its users' servers, its services.

    with Hub(folder, relay_url) as hub:
        token = hub.token_of("alice")

JupyterHub is installed into an environment of its own beside ours, once; its proxy comes with the
JavaScript packages. Users are alice, bob and carol, of whom carol may not use the relay, and one
who is called like a service.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from tests.system import javascript
from tests.system.running import Answer, Program, environment, http_request, processes_of, wait_for

PREFIX: Final = "/services/relay"
"""Under which the Hub's proxy shows the relay."""
USERS: Final = ("alice", "bob", "bot")
"""Who may use the relay; ``bot`` is also the name of a service."""
_PACKAGES: Final = ("jupyterhub==6.1.1", "jupyter-server==2.20.0")
_START: Final = 200.0
"""Seconds for a Hub to start; its database waits for the disk again and again."""
_PLACE: Final = Path(sys.prefix) / "jupyterhub"


def install() -> Path:
    """Install JupyterHub where that hasn't been done yet; the folder of its programs."""
    javascript.install()
    stamp = _PLACE / ".installed"
    wanted = "\n".join(_PACKAGES)
    with _one_at_a_time():
        if not stamp.exists() or stamp.read_text() != wanted:
            uv = str(Path(sys.prefix) / "bin" / "uv")
            python = str(_PLACE / "bin" / "python")
            _perform([sys.executable, "-m", "venv", "--clear", "--without-pip", str(_PLACE)])
            _perform([uv, "pip", "install", "--quiet", "--python", python, *_PACKAGES])
            stamp.write_text(wanted)
    return _PLACE / "bin"


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """pytest may run in several processes."""
    descriptor = os.open(sys.prefix, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _perform(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stderr}"


def free_port() -> int:
    """A TCP port that nobody uses just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Hub:
    """A JupyterHub with the relay as its service. Killed, it can be started again on its state.

    ``ca`` is what the certificate of the relay comes from. With a ``command`` the Hub starts the
    relay itself; without, the relay is somebody else's and knows ``service_token``.
    """

    def __init__(
        self,
        folder: Path,
        relay_url: str,
        ca: str,
        *,
        command: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.log = folder / "hub.log"
        self.service_token = secrets.token_hex(16)
        self.bot_token = secrets.token_hex(16)
        """Of a service that may use the relay."""
        self.stranger_token = secrets.token_hex(16)
        """Of one that may not."""
        self._admin_token = secrets.token_hex(16)
        self._port, self._api_port, self._hub_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        """Of the proxy."""
        self.api_url = f"http://127.0.0.1:{self._hub_port}/hub/api"
        self._programs = install()
        self._program: Program | None = None
        path = os.pathsep.join([str(self._programs), os.environ.get("PATH", os.defpath)])
        self._environ = {
            **environment(folder),
            "PATH": path,
            # The Hub looks whether its services are there; its proxy sends them requests.
            "SSL_CERT_FILE": ca,
            "NODE_EXTRA_CA_CERTS": ca,
            "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(16),
        }
        relay = {
            "name": "relay",
            "url": relay_url,
            "timeout": int(_START),
            "api_token": self.service_token,
            "command": list(command),
            "environment": dict(environ or {}),
        }
        self._write_config(relay, ca)

    def _write_config(self, relay: Mapping[str, Any], ca: str) -> None:
        services = [
            relay,
            {"name": "admin", "api_token": self._admin_token},
            {"name": "bot", "api_token": self.bot_token},
            {"name": "stranger", "api_token": self.stranger_token},
        ]
        access = "access:services!service=relay"
        roles = [
            {"name": "relay", "scopes": ["users:activity"], "services": ["relay"]},
            {"name": "may-use-relay", "scopes": [access], "users": USERS, "services": ["bot"]},
            {
                "name": "server",
                "scopes": ["users:activity!user", "access:servers!server", access],
            },
            {
                "name": "tests",
                "scopes": ["admin:users", "admin:servers", "tokens", "groups"],
                "services": ["admin"],
            },
        ]
        proxy = javascript.FOLDER / "node_modules" / ".bin" / "configurable-http-proxy"
        gateway = f"{relay['url']}{PREFIX}/alpha"
        settings = {
            "JupyterHub.bind_url": self.url,
            "JupyterHub.hub_bind_url": f"http://127.0.0.1:{self._hub_port}",
            "JupyterHub.authenticator_class": "dummy",
            "JupyterHub.spawner_class": "simple",
            "JupyterHub.load_groups": {"people": {"users": ["alice", "bob"]}},
            "JupyterHub.load_roles": roles,
            "JupyterHub.services": services,
            "Authenticator.allowed_users": {*USERS, "carol"},
            "ConfigurableHTTPProxy.command": ["node", str(proxy)],
            "ConfigurableHTTPProxy.api_url": f"http://127.0.0.1:{self._api_port}",
            "SimpleLocalProcessSpawner.home_dir_template": f"{self.folder}/homes/{{username}}",
            "Spawner.args": ["--allow-root"],
            "Spawner.http_timeout": int(_START),
            "Spawner.start_timeout": int(_START),
            "Spawner.default_url": "/api",
        }
        lines = [f"c.{name} = {value!r}" for name, value in settings.items()]
        lines += [
            "c.Spawner.environment = {",
            f"    'JUPYTER_GATEWAY_URL': {gateway!r},",
            # The server's own token: its scopes name the server that the Hub is told of.
            "    'JUPYTER_GATEWAY_AUTH_TOKEN': lambda spawner: spawner.api_token,",
            f"    'SSL_CERT_FILE': {ca!r},",
            "}",
        ]
        self._config = self.folder / "jupyterhub_config.py"
        self._config.write_text("\n".join([*lines, ""]))

    # --- its life ---

    def start(self) -> Self:
        """Start it and wait until its API answers. Raises `NotRunning`."""
        argv = ("-m", "jupyterhub", "--config", str(self._config))
        self._program = Program(
            argv, self.log, self._environ, python=str(self._programs / "python")
        )
        self._program.wait_until("the Hub", self._answers, _START)
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("GET", "/").status == 200
        return False

    def wait_for_route(self) -> None:
        """Wait until its proxy knows the way to the relay, which it learns after the start."""

        def found() -> bool:
            return self.through_proxy("GET", f"{PREFIX}/alpha/api", token="x").status == 401

        wait_for("the proxy's route", found, timeout=_START)

    def kill(self) -> None:
        """SIGKILL for the Hub alone: its proxy, and its users' servers, go on."""
        assert self._program is not None
        self._program.stop(signal.SIGKILL)

    def close(self) -> None:
        """End everything that it started."""
        assert self._program is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            # What it does not end itself is ended below.
            self._program.stop()
        for pid in processes_of(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- its API, as an administrator has it ---

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """Ask the Hub's API, past its proxy."""
        headers = {"Authorization": f"token {self._admin_token}"}
        return http_request(self.api_url, method, f"/hub/api{path}", body, headers=headers)

    def new_token(self, user: str, **body: Any) -> tuple[str, str]:
        """A new token of a user's: its id, and the token."""
        answer = self.ask("POST", f"/users/{user}/tokens", body)
        assert answer.status == 201, answer
        return answer.json["id"], answer.json["token"]

    def revoke(self, user: str, token_id: str) -> None:
        """End one of a user's tokens."""
        assert self.ask("DELETE", f"/users/{user}/tokens/{token_id}").status == 204

    def user(self, name: str) -> Any:
        """A user, with servers."""
        answer = self.ask("GET", f"/users/{name}")
        assert answer.status == 200, answer
        return answer.json

    def through_proxy(self, method: str, target: str, body: Any = None, *, token: str) -> Answer:
        """Ask for something of the relay, or of a user's server, as people do."""
        headers = {"Authorization": f"token {token}"}
        return http_request(self.url, method, target, body, headers=headers)

    def log_text(self) -> str:
        """Its log, and those of what it started."""
        return self.log.read_text(errors="replace")


def config_file(folder: Path, settings: Mapping[str, Any]) -> str:
    """A configuration for `relay up`; JSON is YAML."""
    path = folder / "up.yaml"
    path.write_text(json.dumps(settings))
    return str(path)
