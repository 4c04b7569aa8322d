from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.agent.launchers import other_user
from relay.agent.launchers.local import LocalLauncher, RuntimeInfo
from relay.agent.launchers.other_user import OtherUserRunner
from relay.agent.privsep.os_users import OsUser, OsUsers
from relay.agent.privsep.protocol import HelperRequest, HelperResponse, close, receive, send
from relay.config import AgentConfig, AgentTls, LaunchAs, ListenSettings
from relay.errors import AgentUnavailable, Conflict, Forbidden, RelayError
from relay.kernel_folders import KernelFolder, kernels_folder
from relay.model import Principal
from tests.agent.launching import holder_config

AGENT = OsUser("relay", 54001, 54001, "/", "")
ALICE = OsUser("alice", os.geteuid(), 54002, "/home/alice", "/bin/zsh")
OWNER = Principal("token", "alice")
OTHER = 54003
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


class Users(OsUsers):
    def of(self, principal: Principal) -> OsUser:
        if principal != OWNER:
            raise Forbidden("launch_as")
        return ALICE


class FakeHelper:
    """The other end: notes requests, and answers as it is told."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.requests: list[tuple[HelperRequest, int]] = []
        self.answer: Callable[[HelperRequest], list[HelperResponse]] = lambda request: [
            HelperResponse(id=request.id, pid=7)
        ]

    def read(self) -> None:
        request, files = receive(self.channel, HelperRequest)
        assert request is not None
        self.requests.append((request, len(files)))
        close(files)
        for done in self.answer(request):
            send(self.channel, done)


class Bench:
    def __init__(self, folder: Path) -> None:
        config = AgentConfig(
            cluster="alpha",
            listen=ListenSettings(port=0),
            state_dir=str(folder),
            runtime_dir=str(folder / "run"),
            user="relay",
            launch_as=LaunchAs(),
            tls=AgentTls(certificate="a.pem", key="a.key", client_ca="ca.pem"),
            ticket_keys=["a.pub"],
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (ours, theirs):
            each.settimeout(0)
        self.helper = FakeHelper(theirs)
        asyncio.get_running_loop().add_reader(theirs, self.helper.read)
        self.runner = OtherUserRunner(config, Users(LaunchAs(), AGENT), ours)
        self.launcher = LocalLauncher(folder, "alpha", self.runner)
        self.state = folder
        self.config = holder_config(str(OWNER))
        self.sockets = ours, theirs
        self.kernel_folder = KernelFolder(kernels_folder(folder, "alpha") / "k")
        self.kernel_folder.path.mkdir(parents=True)

    def close(self) -> None:
        for each in self.sockets:
            if each.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(each)
            each.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


async def test_a_folder_is_asked_for_by_principal(bench: Bench, tmp_path: Path) -> None:
    info = await bench.runner.prepare(bench.kernel_folder, str(OWNER))
    assert info == RuntimeInfo(
        sockets=tmp_path / "run" / str(ALICE.uid),
        environment={
            "HOME": "/home/alice",
            "USER": "alice",
            "LOGNAME": "alice",
            "SHELL": "/bin/zsh",
        },
        working_folder="/",
    )
    ((request, files),) = bench.helper.requests
    assert (request.op, request.kernel_id, request.owner) == ("prepare", "k", "token:alice")
    assert files == 0


async def test_who_is_nobody_is_not_even_asked_for(bench: Bench) -> None:
    with pytest.raises(Forbidden):
        await bench.runner.prepare(bench.kernel_folder, "token:bob")
    assert bench.helper.requests == []


async def test_lock_log_and_signal_go_along(bench: Bench) -> None:
    await bench.launcher.submit(bench.kernel_folder, bench.config)
    prepare, (start, files) = bench.helper.requests
    assert prepare[0].op == "prepare"
    assert (start.op, start.owner, files) == ("start", "token:alice", 3)
    assert bench.kernel_folder.holder_log.stat().st_mode & 0o777 == 0o600
    noted = bench.kernel_folder.read_address()
    assert noted is not None
    assert noted.socket.parent == bench.state / "run" / str(ALICE.uid)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"kind": "forbidden", "problem": "no"}, Forbidden),
        ({"kind": "conflict", "problem": "no"}, Conflict),
        ({"kind": "os", "problem": "full", "errno": errno.ENOSPC}, OSError),
    ],
)
async def test_what_the_helper_refuses_is_refused(
    bench: Bench, answer: dict[str, Any], error: type[Exception]
) -> None:
    bench.helper.answer = lambda request: [HelperResponse(id=request.id, **answer)]
    with pytest.raises(error) as raised:
        await bench.runner.prepare(bench.kernel_folder, str(OWNER))
    if isinstance(raised.value, OSError):
        # So that a full disk is a 507, as without a helper.
        assert raised.value.errno == errno.ENOSPC


async def test_answers_to_others_are_nobodys(bench: Bench) -> None:
    bench.helper.answer = lambda request: [
        HelperResponse(id="of an agent that was killed", kind="forbidden"),
        HelperResponse(id=request.id),
        HelperResponse(id=request.id, kind="forbidden"),
    ]
    await bench.runner.prepare(bench.kernel_folder, str(OWNER))
    bench.helper.answer = lambda request: [HelperResponse(id=request.id)]
    await bench.runner.prepare(bench.kernel_folder, str(OWNER))


async def test_a_silent_helper_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_user, "_TIMEOUT", 0.05)
    bench.helper.answer = lambda _: []
    with pytest.raises(AgentUnavailable):
        await bench.runner.prepare(bench.kernel_folder, str(OWNER))


async def test_without_a_helper_nothing_starts(bench: Bench) -> None:
    asyncio.get_running_loop().remove_reader(bench.helper.channel)
    bench.helper.channel.close()
    with pytest.raises((OSError, RelayError)):
        await bench.runner.prepare(bench.kernel_folder, str(OWNER))


async def test_only_the_folders_own_user_owns_a_kernel_there(bench: Bench, tmp_path: Path) -> None:
    assert bench.runner.owner_matches(bench.kernel_folder, "token:alice")
    for owner in ("token:bob", "alice", "", "oidc:alice"):
        assert not bench.runner.owner_matches(bench.kernel_folder, owner)
    assert not bench.runner.owner_matches(KernelFolder(tmp_path / "nowhere"), "token:alice")


async def test_a_link_in_the_place_of_the_log_is_not_written_to(
    bench: Bench, tmp_path: Path
) -> None:
    bench.kernel_folder.holder_log.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r"holder\.log"):
        await bench.launcher.submit(bench.kernel_folder, bench.config)
    assert not (tmp_path / "target").exists()
    assert [request.op for request, _ in bench.helper.requests] == ["prepare"]


@as_root
async def test_a_cleanup_is_asked_for_with_the_lock(bench: Bench) -> None:
    os.chown(bench.kernel_folder.path, OTHER, -1)
    bench.kernel_folder.request.touch()
    async with bench.launcher.claim(bench.kernel_folder) as claim:
        assert claim is not None
        await claim.cancel()
    # One that has a holder is ended without.
    await bench.launcher.cancel(bench.kernel_folder)
    assert [(request.op, files) for request, files in bench.helper.requests] == [
        ("clean_up", 1),
        ("clean_up", 0),
    ]


async def test_a_folder_of_a_time_without_other_users_is_cleaned_up_here(bench: Bench) -> None:
    bench.kernel_folder.request.touch()
    async with bench.launcher.claim(bench.kernel_folder) as claim:
        assert claim is not None
        await claim.cancel()
    assert bench.helper.requests == []
    assert not bench.kernel_folder.path.exists()
