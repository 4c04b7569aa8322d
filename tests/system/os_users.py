"""OS users for a test, and an agent that launches their kernels; as root only.

    with deployment() as (edge, agent, alice, bob):
        ...

The users are made for the test and removed after it. Their kernels must be able to run the
interpreter and read what is installed: where these are in a home folder that nobody else can
enter, the agent runs in a mount namespace in which that folder is empty but for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.auth.policy import Action
from relay.auth.tokens import TokenRecord, TokenStore
from relay.config import (
    AgentConfig,
    AuthenticationSettings,
    ClusterSettings,
    CullSettings,
    EdgeConfig,
    KernelEnvironment,
    KernelSettings,
    LaunchAs,
    ListenSettings,
    LogSettings,
    PolicySettings,
    RuleSettings,
    TlsSettings,
    TokenSettings,
)
from relay.kernel_folders import KernelFolder, KernelRecord, kernels_folder
from relay.processes import reserve
from tests.system.channels import Channels, connect
from tests.system.kernels import IPYKERNEL, kernelspec
from tests.system.running import Answer, environment, http_request, processes_of, wait_for
from tests.system.separate import Separate

ROOT: Final = Path(__file__).parents[2]

# Its arguments: folders to hide, a dash, folders to show, a dash, the interpreter's arguments.
_NAMESPACE: Final = """
import ctypes, os, subprocess, sys, tempfile
hidden, shown, rest = [], [], list(sys.argv[1:])
for found in hidden, shown:
    while (each := rest.pop(0)) != "-":
        found.append(each)
def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)
if hidden:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000):
        sys.exit("unshare: " + os.strerror(ctypes.get_errno()))
    mount("--make-rprivate", "/")
    kept = tempfile.mkdtemp()
    mount("-t", "tmpfs", "tmpfs", kept)
    for number, each in enumerate(shown):
        os.mkdir(f"{kept}/{number}")
        mount("--bind", each, f"{kept}/{number}")
    for each in hidden:
        mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", each)
    for number, each in enumerate(shown):
        os.makedirs(each, exist_ok=True)
        mount("--bind", f"{kept}/{number}", each)
    os.chdir("/")
os.execv(sys.executable, [sys.executable, *rest])
"""


def readable_by_all() -> tuple[str, ...]:
    """What to put before an interpreter's arguments, so that all users can run what it runs."""
    shown = sorted({str(Path(path).resolve()) for path in (sys.base_prefix, sys.prefix, ROOT)})
    hidden = {
        str(parent)
        for path in shown
        for parent in reversed(Path(path).parents)
        if not parent.stat().st_mode & 0o001
    }
    outermost = [
        each for each in hidden if not any(Path(each).is_relative_to(o) for o in hidden - {each})
    ]
    below = [path for path in shown if any(Path(path).is_relative_to(each) for each in outermost)]
    return "-c", _NAMESPACE, *outermost, "-", *below, "-"


def namespaces_work() -> bool:
    """Whether `readable_by_all` does what it says here."""
    command = [sys.executable, *readable_by_all(), "-c", ""]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


class OsUser:
    """An OS user made for a test."""

    def __init__(self, name: str, homes: Path) -> None:
        self.name = f"{name}{secrets.token_hex(4)}"
        command = ["useradd", "--create-home", "--base-dir", str(homes), "--user-group"]
        subprocess.run([*command, "--shell", "/bin/sh", self.name], check=True, capture_output=True)
        entry = pwd.getpwnam(self.name)
        Path(entry.pw_dir).chmod(0o700)
        self.uid, self.gid, self.home = entry.pw_uid, entry.pw_gid, Path(entry.pw_dir)

    def join(self, group: str) -> None:
        subprocess.run(["usermod", "-aG", group, self.name], check=True, capture_output=True)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.uids().real == self.uid:
                    found.append(process)
        return found

    def remove(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(Exception):
            wait_for("the user's processes to end", lambda: not self.processes(), 10)
        subprocess.run(["userdel", "--force", self.name], check=True, capture_output=True)


class Person:
    """Somebody with a token, and the OS user whom the kernels are to run as."""

    def __init__(self, subject: str, user: OsUser) -> None:
        self.subject = subject
        self.user = user
        self.token = f"relay_{secrets.token_hex(32)}"

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}

    @property
    def record(self) -> TokenRecord:
        hashed = hashlib.sha256(self.token.encode()).hexdigest()
        return TokenRecord(id=self.subject, hash=hashed, user=self.subject, created=time.time())


class Site:
    """An edge, an agent started as root, and the people who use them."""

    def __init__(self, folder: Path, kernels: KernelSettings, **launch_as: Any) -> None:
        self.folder = folder
        folder.chmod(0o711)
        self.private = folder / "private"
        self.private.mkdir(mode=0o700)
        homes = folder / "homes"
        homes.mkdir(mode=0o711)
        self.users: list[OsUser] = []
        self.agent_user = self._user("relay", homes)
        self.alice = Person("alice", self._user("alice", homes))
        self.bob = Person("bob", self._user("bob", homes))
        self.carol = Person("carol", self._user("carol", homes))
        self.people = [self.alice, self.bob, self.carol]
        subprocess.run(["groupadd", self.group], check=True, capture_output=True)
        self.alice.user.join(self.group)
        self.state = folder / "state"
        self.runtime = folder / "run"
        self.etc = folder / "etc"
        self.etc.mkdir()
        os.chown(self.etc, 0, self.agent_user.gid)
        self.etc.chmod(0o750)
        self._keys()
        self.specs = folder / "specs"
        kernelspec(self.specs, "no-curve", *IPYKERNEL)
        kernelspec(self.specs, "short", *IPYKERNEL, metadata={"cull_idle_timeout": 2})
        curve = {"supported_encryption": ["curve"]}
        kernelspec(self.specs, "curve", *IPYKERNEL, metadata=curve)
        self.prefix = readable_by_all()
        # An agent that is replaced has it again.
        self.port = reserve("127.0.0.1")
        mapped = {f"token:{p.subject}": p.user.name for p in (self.alice, self.bob)}
        self.settings = AgentConfig(
            cluster="alpha",
            listen=ListenSettings(port=self.port.getsockname()[1]),
            state_dir=str(self.state),
            runtime_dir=str(self.runtime),
            user=self.agent_user.name,
            launch_as=LaunchAs(map=mapped, **launch_as),
            ticket_keys=[str(self.etc / "ticket.pub")],
            environment=KernelEnvironment(allowed=["HOME"]),
            kernels=kernels,
            culling=CullSettings(cull_interval=0.5),
            log=LogSettings(format="json"),
        )
        self.agent = self._separate(self.settings)
        self.edge: Separate

    @property
    def group(self) -> str:
        return f"g{self.agent_user.name}"

    def _user(self, name: str, homes: Path) -> OsUser:
        user = OsUser(name, homes)
        self.users.append(user)
        return user

    def _keys(self) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (self.etc / "ticket.pub").write_bytes(public)
        for name, data in {
            "ticket.key": private,
            "tokens.json": TokenStore([person.record for person in self.people]).dump(),
            "ca.pem": authority.cert_pem.bytes(),
            "edge.key": issued.private_key_pem.bytes(),
            "edge.pem": b"".join(pem.bytes() for pem in issued.cert_chain_pems),
        }.items():
            (self.private / name).write_bytes(data)
            (self.private / name).chmod(0o600)

    def _separate(self, settings: AgentConfig) -> Separate:
        kept = {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
        environ = {
            **kept,
            "PATH": os.defpath,
            "HOME": "/root",
            "SECRET_OF_ROOT": "1",
            "JUPYTER_PATH": str(self.specs),
        }
        return Separate(settings, self.etc, environ, self.prefix)

    def start(self) -> None:
        config = self.etc / "agent-alpha.yaml"
        os.chown(config, 0, self.agent_user.gid)
        config.chmod(0o640)
        self.agent.start()
        url = f"http://127.0.0.1:{self.agent.ready['port']}"
        everybody = RuleSettings(
            authenticator="token", actions=[each for each in Action if each is not Action.ADMIN]
        )
        settings = EdgeConfig(
            https=ListenSettings(port=0),
            wss=ListenSettings(port=0),
            tls=TlsSettings(
                certificate=str(self.private / "edge.pem"), key=str(self.private / "edge.key")
            ),
            workers=1,
            clusters={"alpha": ClusterSettings(agents=[url])},
            authentication=AuthenticationSettings(
                tokens=TokenSettings(file=str(self.private / "tokens.json"))
            ),
            policy=PolicySettings(rules=[everybody]),
            ticket_key=str(self.private / "ticket.key"),
        )
        self.edge = Separate(settings, self.private, environment(self.private))
        self.edge.start()

    def start_again(self) -> None:
        """Start the agent, which was stopped or killed."""
        self.agent.stop()
        self.agent.log.write_text("")
        self.agent.start()

    def end_kernels(self) -> subprocess.CompletedProcess[str]:
        """Run `relay down --kernels` as root."""
        down = ("-m", "relay", "down", "--kernels", "--state-dir", str(self.state))
        return subprocess.run(
            [sys.executable, *self.prefix, *down], capture_output=True, text=True, check=False
        )

    def close(self) -> None:
        for program in (self.agent, getattr(self, "edge", None)):
            if program is not None:
                with contextlib.suppress(AssertionError):
                    program.stop()
        for pid in processes_of(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for user in self.users:
            user.remove()
        self.port.close()
        subprocess.run(["groupdel", self.group], check=False, capture_output=True)

    # --- what people do ---

    @property
    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.private / "ca.pem"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # as in `RunningRelay.tls_for_threads`
        return context

    def ask(self, person: Person, method: str, target: str, body: Any = None) -> Answer:
        url = f"https://{self.edge.ready['https']}"
        return http_request(url, method, target, body, headers=person.authorization, tls=self.tls)

    def start_kernel(self, person: Person, **body: Any) -> str:
        answer = self.ask(person, "POST", "/alpha/api/kernels", {"name": "python3", **body})
        assert answer.status == 201, answer
        return str(answer.json["id"])

    def connect(self, person: Person, kernel: str, session: str = "s") -> Channels:
        url = f"wss://{self.edge.ready['wss']}/alpha/api/kernels/{kernel}/channels"
        return connect(url, headers=person.authorization, tls=self.tls, session=session)

    # --- what root sees ---

    def place(self, kernel: str) -> KernelFolder:
        return KernelFolder(kernels_folder(self.state, "alpha") / kernel)

    def record(self, kernel: str) -> KernelRecord:
        record = self.place(kernel).read_record()
        assert record is not None
        return record

    def log_text(self) -> str:
        """The logs, while the kernels' folders are there."""
        logs = [*self.folder.glob("etc/*.log"), *self.private.glob("*.log")]
        logs += self.state.glob("*/kernels/*/*.log")
        return "\n".join(f"=== {log}\n{log.read_text(errors='replace')[-8000:]}" for log in logs)

    def agent_pid(self, *, other_than: int = 0) -> int:
        """The agent proper, a child of what was started."""

        def look() -> int | None:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self.agent.pid).children():
                    if child.pid != other_than and child.uids().real == self.agent_user.uid:
                        return child.pid
            return None

        return wait_for("the agent", look)


@contextlib.contextmanager
def site(kernels: KernelSettings | None = None, **launch_as: Any) -> Iterator[Site]:
    """Skips where OS users cannot be made or used."""
    if os.geteuid() != 0:
        pytest.skip("only root can make OS users")
    if not shutil.which("useradd"):
        pytest.skip("there is no useradd")
    if not namespaces_work():
        pytest.skip("the interpreter is in a folder of root's, and no mount namespace can be made")
    folder = Path(tempfile.mkdtemp(prefix="relay-")).resolve()
    made = Site(folder, kernels or KernelSettings(), **launch_as)
    try:
        made.start()
        yield made
    except BaseException:
        sys.stderr.write(made.log_text())
        raise
    finally:
        made.close()
        shutil.rmtree(folder)
