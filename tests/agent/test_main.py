from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from relay import pki, processes
from relay.agent import main
from relay.agent.launchers.base import Launcher
from relay.agent.launchers.local import LocalLauncher
from relay.agent.launchers.other_user import OtherUserRunner
from relay.agent.launchers.own_user import OwnUserRunner
from relay.auth.policy import Action, Rights
from relay.auth.tickets import Ticket, TicketSigner, TicketVerifier
from relay.config import AgentConfig, AgentTls, LaunchAs, ListenSettings
from relay.processes import StartError
from tests.agent.launching import ADA, running_node
from tests.waiting import until

KERNEL_ID = "0a0a0a0a-0000-4000-8000-000000000001"
KEYS = pki.new_ticket_keys()


@pytest.fixture
def ports() -> list[int]:
    """Two that are free."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, other)]


def config(state: Path, port: int = 1, **settings: Any) -> AgentConfig:
    return AgentConfig(
        cluster="alpha",
        listen=ListenSettings(host="127.0.0.1", port=port),
        state_dir=str(state),
        ticket_keys=[str(state / "ticket.pub")],
        runtime_dir=str(state / "run"),
        drain=1.0,
        **settings,
    )


def ticket(*actions: Action, kernel: str | None = None) -> str:
    wanted = Ticket(
        principal=ADA,
        cluster="alpha",
        kernel=kernel,
        rights=Rights(dict.fromkeys(actions)),
        request_id="r",
    )
    return TicketSigner(KEYS.private).sign(wanted, time.time(), 60.0)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def running_agent(
    settings: AgentConfig, launcher: Launcher, scraped: socket.socket | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """Run an agent until SIGTERM, which this process sends to itself."""
    verifier = TicketVerifier([KEYS.public], "alpha")
    base = f"http://127.0.0.1:{settings.listen.port}"
    async with asyncio.TaskGroup() as tasks:
        agent = tasks.create_task(main._run(settings, launcher, verifier, None, scraped))
        async with aiohttp.ClientSession(base) as client:
            await until(lambda: listens(settings.listen.port))
            yield client
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(agent, 10)


async def test_an_agent_serves_kernels_by_ticket_until_it_is_told_to_stop(
    tmp_path: Path, ports: list[int]
) -> None:
    port, metrics = ports
    with processes.listen("127.0.0.1", metrics) as scraped:
        await serve_by_ticket(tmp_path, port, metrics, scraped)


async def serve_by_ticket(tmp_path: Path, port: int, metrics: int, scraped: socket.socket) -> None:
    async with running_node(tmp_path) as node:
        settings = config(tmp_path, port, shared_uid=True)
        kernel_folder = await node.submit(KERNEL_ID)
        async with running_agent(settings, node.launcher, scraped) as client:
            async with client.get("/alpha/api/kernels") as refused:
                assert refused.status == 401
            headers = {"Authorization": f"Bearer {ticket(Action.LIST, Action.USE)}"}
            async with client.get("/api/kernels", headers=headers) as response:
                (kernel,) = await response.json()
                assert kernel["id"] == KERNEL_ID
            async with client.get("/readyz") as ready:
                assert await ready.json() == {"ready": True}
            async with client.get(f"http://127.0.0.1:{metrics}/metrics") as page:
                assert "relay_agent_kernels 1.0" in await page.text()
            # To a daemon it means "read the configuration again".
            os.kill(os.getpid(), signal.SIGHUP)
            headers = {"Authorization": f"Bearer {ticket(Action.USE, kernel=KERNEL_ID)}"}
            async with client.get(f"/api/kernels/{KERNEL_ID}", headers=headers) as response:
                assert response.status == 200
        # Its kernels live on.
        assert kernel_folder.is_locked()
        assert node.runner.cleaned == []


async def test_who_starts_holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = main._launcher(config(tmp_path))
    assert isinstance(alone, LocalLauncher)
    assert isinstance(alone._runner, OwnUserRunner)
    tls = AgentTls(certificate="a.pem", key="a.key", client_ca="ca.pem")
    others = config(tmp_path, launch_as=LaunchAs(), user="daemon", tls=tls)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asked: list[str] = []

    def inherited_channel(name: str) -> socket.socket:
        asked.append(name)
        return ours

    monkeypatch.setattr(processes, "inherited_channel", inherited_channel)
    with ours, theirs:
        launcher = main._launcher(others)
        assert isinstance(launcher, LocalLauncher)
        assert isinstance(launcher._runner, OtherUserRunner)
    assert asked == ["privileged-helper"]


def test_without_a_helper_no_kernel_runs_as_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    (tmp_path / "ticket.pub").write_bytes(KEYS.public)
    tls = AgentTls(certificate="a.pem", key="a.key", client_ca="ca.pem")
    with pytest.raises(StartError, match=r"a\.pem|No such file"):
        main.run(config(tmp_path, launch_as=LaunchAs(), user="daemon", tls=tls))
    with pytest.raises(StartError, match="can only be started by its privileged-helper"):
        main._launcher(config(tmp_path, launch_as=LaunchAs(), user="daemon", tls=tls))


@pytest.mark.parametrize("broken", ["no key", "no public key", "no folder"])
def test_what_is_not_as_it_has_to_be_ends_the_start(tmp_path: Path, broken: str) -> None:
    settings = config(tmp_path)
    if broken != "no key":
        (tmp_path / "ticket.pub").write_bytes(b"" if broken == "no public key" else KEYS.public)
    if broken == "no folder":
        settings = msgspec.structs.replace(settings, runtime_dir=str(tmp_path / ("x" * 120)))
    with pytest.raises(StartError):
        main.run(settings)


def test_edges_are_asked_for_a_certificate(tmp_path: Path) -> None:
    assert main._tls(None) is None
    authority = pki.new_authority(time.time())
    server = pki.new_server(authority, ["localhost"], time.time())
    for name, text in (("ca", authority.public), ("pem", server.public), ("key", server.private)):
        (tmp_path / name).write_bytes(text)
    settings = AgentTls(
        certificate=str(tmp_path / "pem"),
        key=str(tmp_path / "key"),
        client_ca=str(tmp_path / "ca"),
    )
    context = main._tls(settings)
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
