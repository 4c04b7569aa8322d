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
from relay.agent.launchers.local import RuntimeInfo
from relay.agent.launchers.other_user import OtherUserLauncher
from relay.agent.privsep.os_users import OsUser, OsUsers
from relay.agent.privsep.protocol import HelperRequest, HelperResponse, close, receive, send
from relay.config import AgentConfig, LaunchAs, ListenSettings
from relay.errors import AgentUnavailable, Conflict, Forbidden, RelayError
from relay.kernel_folders import KernelFolder, kernels_folder
from relay.model import Principal

AGENT = OsUser("relay", 54001, 54001, "/", "")
ALICE = OsUser("alice", os.geteuid(), 54002, "/home/alice", "/bin/zsh")
OWNER = Principal("token", "alice")


class Users(OsUsers):
    def of(self, principal: Principal) -> OsUser:
        if principal != OWNER:
            raise Forbidden("launch_as")
        return ALICE


class FakeHelper:
    """The other end: notes orders, and answers as it is told."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.orders: list[tuple[HelperRequest, int]] = []
        self.answer: Callable[[HelperRequest], list[HelperResponse]] = lambda order: [
            HelperResponse(id=order.id, pid=7)
        ]

    def read(self) -> None:
        order, files = receive(self.channel, HelperRequest)
        assert order is not None
        self.orders.append((order, len(files)))
        close(files)
        for done in self.answer(order):
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
            ticket_keys=["a.pub"],
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (ours, theirs):
            each.settimeout(0)
        self.helper = FakeHelper(theirs)
        asyncio.get_running_loop().add_reader(theirs, self.helper.read)
        self.launcher = OtherUserLauncher(config, Users(LaunchAs(), AGENT), ours)
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
    quarters = await bench.launcher.prepare(bench.kernel_folder, OWNER)
    assert quarters == RuntimeInfo(
        runtime=tmp_path / "run" / str(ALICE.uid),
        environment={
            "HOME": "/home/alice",
            "USER": "alice",
            "LOGNAME": "alice",
            "SHELL": "/bin/zsh",
        },
        working_folder="/",
    )
    ((order, files),) = bench.helper.orders
    assert (order.op, order.kernel_id, order.owner) == ("prepare", "k", "token:alice")
    assert files == 0


async def test_who_is_nobody_is_not_even_asked_for(bench: Bench) -> None:
    with pytest.raises(Forbidden):
        await bench.launcher.prepare(bench.kernel_folder, Principal("token", "bob"))
    assert bench.helper.orders == []


async def test_lock_and_log_go_along(bench: Bench) -> None:
    lock = bench.kernel_folder.try_lock()
    assert lock is not None
    assert await bench.launcher.start(bench.kernel_folder, "token:alice", lock) == 7
    os.close(lock)
    ((order, files),) = bench.helper.orders
    assert (order.op, files) == ("start", 2)
    assert bench.kernel_folder.holder_log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"kind": "forbidden", "problem": "no"}, Forbidden),
        ({"kind": "conflict", "problem": "no"}, Conflict),
        ({"kind": "os", "problem": "full", "errno": errno.ENOSPC}, OSError),
    ],
)
async def test_what_the_launcher_refuses_is_refused(
    bench: Bench, answer: dict[str, Any], error: type[Exception]
) -> None:
    bench.helper.answer = lambda order: [HelperResponse(id=order.id, **answer)]
    with pytest.raises(error) as raised:
        await bench.launcher.prepare(bench.kernel_folder, OWNER)
    if isinstance(raised.value, OSError):
        # So that a full disk is a 507, as without a launcher.
        assert raised.value.errno == errno.ENOSPC


async def test_answers_to_others_are_nobodys(bench: Bench) -> None:
    bench.helper.answer = lambda order: [
        HelperResponse(id="of an agent that was killed", kind="forbidden"),
        HelperResponse(id=order.id),
        HelperResponse(id=order.id, kind="forbidden"),
    ]
    await bench.launcher.prepare(bench.kernel_folder, OWNER)
    bench.helper.answer = lambda order: [HelperResponse(id=order.id)]
    await bench.launcher.prepare(bench.kernel_folder, OWNER)


async def test_a_silent_launcher_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_user, "_ANSWER", 0.05)
    bench.helper.answer = lambda _: []
    with pytest.raises(AgentUnavailable):
        await bench.launcher.prepare(bench.kernel_folder, OWNER)


async def test_without_a_launcher_nothing_starts(bench: Bench) -> None:
    asyncio.get_running_loop().remove_reader(bench.helper.channel)
    bench.helper.channel.close()
    with pytest.raises((OSError, RelayError)):
        await bench.launcher.prepare(bench.kernel_folder, OWNER)


async def test_only_the_folders_own_user_is_believed(bench: Bench, tmp_path: Path) -> None:
    assert bench.launcher.believes(bench.kernel_folder, "token:alice")
    for owner in ("token:bob", "alice", "", "oidc:alice"):
        assert not bench.launcher.believes(bench.kernel_folder, owner)
    assert not bench.launcher.believes(KernelFolder(tmp_path / "nowhere"), "token:alice")


async def test_a_link_in_the_place_of_the_log_is_not_written_to(
    bench: Bench, tmp_path: Path
) -> None:
    bench.kernel_folder.holder_log.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r"holder\.log"):
        await bench.launcher.start(bench.kernel_folder, "token:alice", 0)
    assert not (tmp_path / "target").exists()
    assert bench.helper.orders == []
